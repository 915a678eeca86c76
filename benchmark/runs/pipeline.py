"""From recipes to entries: train each run, evaluate its checkpoint, write its entry, rebuild the tables."""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmark.engines import Engine
from benchmark.engines.jobs import Finished, Job
from benchmark.leaderboard import ablation as ablations
from benchmark.leaderboard import tables
from benchmark.results.entry import Cell
from benchmark.results.layout import picture_path
from benchmark.runs.jobs import Evaluation, EvaluationJob, TrainingJob, failed_metrics
from benchmark.runs.plan import Plan
from benchmark.runs.record import record
from benchmark.runs.run import Run
from methods.errors import InputError


@dataclass
class Outcome:
    """What became of a run."""

    entry: Path | None = None
    failures: list[str] = field(default_factory=list)
    """A sentence for its training if it was stopped, and for each metric that failed."""


def carry_out(runs: Sequence[Run], engine: Engine) -> list[Outcome]:
    """Check all runs, train and measure them, and write the entry of each as soon as it is measured.

    Trainings come first, in the order of the runs: they are long, and the parts of evaluations fill what they leave. A
    process alone evaluates each run as soon as it is trained.

    Returns:
        The outcome of each run.

    Raises:
        InputError: anything named does not fit, or a file cannot be written or belongs to something else.
    """
    for run in runs:
        run.check(engine.here)
    outcomes = [Outcome() for _ in runs]
    if not runs:
        return outcomes
    kept, shared = runs[0].plan.kept, runs[0].plan.runs
    trainings = {run.folder: run.training() for run in runs}
    settled = {folder for folder, training in trainings.items() if training.settled}
    ours: list[Job] = []
    theirs: list[Job] = []
    evaluations: list[Job] = []
    for place, run in enumerate(runs):
        if (training := trainings.pop(run.folder, None)) is not None:
            # A training on several devices has them to itself: other workers would want the same ones.
            (ours if run.folder in settled or training.devices > 1 else theirs).append(training)
        jobs = run.measuring(place)
        if engine.here and jobs and {run.folder, *run.after} <= settled and jobs[-1].stored(kept):
            ours.append(jobs[-1])
        else:
            (theirs if engine.alone else evaluations).extend(jobs)
    done = (Finished(job, job(kept)) for job in ours)
    with closing(engine.run([*theirs, *evaluations], kept, shared)) as working:
        for finished in chain(done, working):
            _take(finished, runs, outcomes)
    for run, outcome in zip(runs, outcomes, strict=True):
        if run.cell is not None:
            outcome.failures[:] = [f"{run.cell.row}: {failure}" for failure in outcome.failures]
    return outcomes


def _take(finished: Finished, runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
    """Make of a job that ended what becomes of its runs."""
    job = finished.job
    if isinstance(job, TrainingJob):
        stopped = finished.error or finished.value
        if stopped is None:
            print(f"{job.experiment.recipe} seed {job.experiment.seed}: {job.folder}", file=sys.stderr)
        for run, outcome in zip(runs, outcomes, strict=True):
            if stopped is not None and run.folder == job.folder:
                outcome.failures.append(stopped)
        return
    assert isinstance(job, EvaluationJob)
    run, outcome = runs[job.run], outcomes[job.run]
    if finished.error is not None:
        outcome.failures.append(finished.error)
    elif finished.value is not None:
        outcome.entry = record(run, finished.value)
        name = f"{run.experiment.recipe} seed {run.experiment.seed}"
        outcome.failures += failed_metrics(name, finished.value.measurements)


def train_all(plan: Plan, engine: Engine) -> list[str]:
    """Train every run of the plan; return a sentence for each that failed."""
    return failures(carry_out([Run(plan, experiment) for experiment in plan.experiments], engine))


def run(plan: Plan, evaluation: Evaluation, leaderboards: Path) -> list[str]:
    """Train and evaluate every run of the plan, write the entries and rebuild all tables.

    Returns:
        A sentence for each training or metric that failed; all others are kept.
    """
    return _run(_runs(plan, evaluation, leaderboards), plan.runs, evaluation, leaderboards, "leaderboard")


def ablate(name: str, plan: Plan, evaluation: Evaluation, leaderboards: Path) -> list[str]:
    """Train and evaluate every row of an ablation with every seed, and rebuild all tables.

    Args:
        name: of the ablation.
        plan: of the ablation's recipe; each row's settings are laid over its own.
        evaluation: what to measure.
        leaderboards: where entries and tables are kept.

    Returns:
        A sentence for each training or metric that failed; all others are kept.

    Raises:
        InputError: the plan changes what the ablation varies, or anything named does not fit.
    """
    ablation = ablations.load(name)
    if taken := ablations.varied(ablation, plan.changes):
        raise InputError(f'The ablation "{name}" varies "{taken[0]}" itself; it cannot be set for all of its rows.')
    runs: list[Run] = []
    for row in ablation.rows:
        its_plan = replace(plan, settings=row.set)
        runs += _runs(its_plan, evaluation, leaderboards, Cell(name=name, row=row.name))
    return _run(runs, plan.runs, evaluation, leaderboards, "table")


def _runs(plan: Plan, evaluation: Evaluation, leaderboards: Path, cell: Cell | None = None) -> list[Run]:
    protocol = plan.evaluation_protocol
    return [Run(plan, experiment, evaluation, protocol, leaderboards, cell) for experiment in plan.experiments]


def _run(runs: Sequence[Run], folder: Path, evaluation: Evaluation, leaderboards: Path, stem: str) -> list[str]:
    outcomes = carry_out(runs, evaluation.engine)
    tables.rebuild(leaderboards)
    shown = ablations.SHOWN if stem == "table" else tables.SHOWN
    _show([outcome.entry for outcome in outcomes if outcome.entry is not None], folder, stem, shown)
    return failures(outcomes)


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Return all sentences, each once."""
    return list(dict.fromkeys(failure for outcome in outcomes for failure in outcome.failures))


def _show(entries: Sequence[Path], runs: Path, stem: str, columns: Sequence[str]) -> None:
    """Print the tables that hold these entries, in the columns that fit a terminal, and where everything lies."""
    if not entries:
        return
    folder = entries[0].parents[1]
    for title, rows in tables.read_tables(folder, stem):
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    places = {"entries": folder / "entries", "tables": folder, "runs": runs}
    if drawn := [path for path in map(picture_path, entries) if path.is_file()]:
        places["samples"] = drawn[0].parent
    for title, path in places.items():
        print(f"{title}: {path}")
