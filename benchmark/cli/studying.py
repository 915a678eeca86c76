"""The commands of the studies: ``reproduce`` and ``masking-power``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.cli.options import (
    DatasetName,
    Device,
    Leaderboards,
    Machine,
    Measuring,
    Model,
    Runs,
    Settings,
    ThreatModel,
    Which,
    Workers,
    finish,
    grouped,
    seed_numbers,
)
from benchmark.engines import Engine
from methods.errors import InputError

commands = typer.Typer()


@commands.command()
@grouped
def reproduce(
    target: Annotated[str, typer.Argument(help="A table or figure of the paper (see: list paper), all, or gap.")],
    machine: Machine,
    model: Model,
    scale: Annotated[str | None, typer.Option(help="digits (the default), small or paper.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, comma-separated; the scale's by default.")] = None,
    overrides: Settings = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Train nothing: show the entries there are.")
    ] = False,
    dataset: Annotated[str | None, typer.Option(help="For gap: data set; a checkpoint's own by default.")] = None,
    threat: Annotated[str | None, typer.Option(help="For gap: threat model of the standard protocol.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="For gap: the released evaluator; by default its host's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="For gap: only the first N test images.")] = None,
    which: Annotated[Which | None, typer.Option(help="For gap: checkpoint, best by default.")] = None,
    runs: Runs = Path("runs"),
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Reproduce a table or figure of the paper beside what it reports, training and measuring what is missing.

    `reproduce gap --checkpoint C` walks a model from the evaluator released with EB-JDAT to the standard protocol,
    one difference at a time, and says what each contributes.
    """
    of_tables = {"--scale": scale, "--seeds": seeds, "--set": overrides, "--tables-only": tables_only or None}
    of_gap = {f"--{name.replace('_', '-')}": given for name, given in vars(model).items()}
    of_gap |= {"--dataset": dataset, "--threat": threat, "--protocol": protocol, "--limit": limit, "--which": which}
    if target == "gap":
        _refuse_options(target, of_tables, of_gap)
        from benchmark.results.layout import GAP, REPRODUCTION
        from benchmark.runs.evaluate import Question
        from benchmark.studies import gap

        engine, device = machine.started()
        kind = which or "best"
        found, written = gap.explain(
            model.spec(kind, threat),
            Question(dataset, threat, protocol),
            Measuring(limit=limit, which=kind).evaluation(engine, device),
            runs=runs,
            folder=leaderboards / REPRODUCTION / GAP,
        )
        for line in (*gap.lines(found), *written):
            typer.echo(line)
        return
    _refuse_options(target, of_gap, of_tables)
    from benchmark.studies import targets
    from benchmark.studies.reproduce import Reproduction

    chosen, its_scale = targets.targets(target), targets.scale(scale or "digits")
    engine, device = machine.started()
    reproduction = Reproduction(
        targets=chosen,
        scale=its_scale,
        seeds=its_scale.seeds if seeds is None else seed_numbers(seeds),
        overrides=overrides or [],
        device=device,
        runs=runs,
        leaderboards=leaderboards,
        engine=engine,
    )
    failures = [] if tables_only else reproduction.run()
    for path in reproduction.write():
        typer.echo(path)
    finish(failures)


def _refuse_options(target: str, others: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse options that are for another kind of target."""
    if given := [name for name, value in others.items() if value is not None and value != []]:
        raise InputError(f"{given[0]} is not for reproduce {target}, which takes {', '.join(own)}.")


@commands.command("masking-power")
def masking_power(
    dataset: DatasetName = "digits",
    threat: ThreatModel = None,
    device: Device = "auto",
    workers: Workers = 1,
    runs: Runs = Path("runs"),
    leaderboards: Leaderboards = Path("leaderboards"),
) -> None:
    """Measure how often the masking checks catch planted failures, and suspect the checkpoints of a table."""
    from benchmark.studies.masking_power import measure_power

    engine = Engine(workers=workers)
    found, folder = measure_power(dataset, threat, leaderboards, runs=runs, device=device, engine=engine)
    typer.echo(found.summary())
    typer.echo(f"tables: {folder}")


@commands.command("court", hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def court() -> None:
    """Say how the command is called now."""
    raise InputError('The command "court" is called "masking-power" now.')
