"""The commands that train recipes: ``run``, ``train`` and ``ablate``."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.options import Leaderboards, Machine, Measuring, Training, finish, grouped, names

Recipes = Annotated[str, typer.Option("--methods", help="Recipes, comma-separated (see: list recipes).")]


commands = typer.Typer()


@commands.command()
@grouped
def run(
    methods: Recipes,
    training: Training,
    measuring: Measuring,
    machine: Machine,
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Train each recipe with each seed, evaluate the checkpoints, and rebuild the leaderboards."""
    from benchmark.runs import pipeline

    engine, device = machine.started()
    plan = training.plan(names(methods), device)
    finish(pipeline.run(plan, measuring.evaluation(engine, device), leaderboards))


@commands.command()
@grouped
def train(methods: Recipes, training: Training, machine: Machine) -> None:
    """Train each recipe with each seed; finished runs are skipped, interrupted ones resume."""
    from benchmark.runs import pipeline

    engine, device = machine.started()
    finish(pipeline.train_all(training.plan(names(methods), device), engine))


@commands.command()
@grouped
def ablate(
    name: Annotated[str, typer.Argument(help="An ablation (see: list ablations).")],
    training: Training,
    measuring: Measuring,
    machine: Machine,
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Train and evaluate every row of an ablation, and rebuild its table and figure."""
    from benchmark.leaderboard import ablation
    from benchmark.runs import pipeline

    chosen = ablation.load(name)
    engine, device = machine.started()
    plan = training.plan([chosen.recipe], device)
    evaluation = measuring.evaluation(engine, device, chosen.metrics)
    finish(pipeline.ablate(name, plan, evaluation, leaderboards))
