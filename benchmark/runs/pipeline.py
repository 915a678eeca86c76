"""From recipes to entries: train each run, evaluate its checkpoint, write its entry, rebuild the tables."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.engines import Engine, WorkFailed
from benchmark.engines.jobs import Finished, Job
from benchmark.evaluation import bundle
from benchmark.evaluation.runner import pending
from benchmark.leaderboard import ablation as ablations
from benchmark.leaderboard import sample_grids, tables
from benchmark.models.subject import Subject
from benchmark.results.entry import Cell, DataInfo, Entry, ProtocolInfo, SubjectInfo
from benchmark.results.layout import picture_path, write_entry
from benchmark.results.store import Store
from benchmark.results.training_record import training_record
from benchmark.runs.experiments import Evaluation, Measured, Measuring, Plan, Source, failed_metrics
from benchmark.specs import recipes as files
from benchmark.specs.protocol import Protocol
from methods.errors import InputError
from methods.training.checkpoint import FILES
from methods.training.config import Experiment
from methods.training.distributed import RankFailed, check_devices
from methods.training.trainer import TrainingFailed, check, read_manifest, run_folder, select_device, train


@dataclass(frozen=True)
class Training:
    """A job: train, resume, or find already trained; return why the training was stopped, where it was."""

    experiment: Experiment
    source: Source
    runs: Path
    folder: Path
    devices: int = 1

    @property
    def name(self) -> Hashable:
        """See :class:`benchmark.engines.jobs.Job`."""
        return self.folder

    @property
    def after(self) -> frozenset[Any]:
        """See :class:`benchmark.engines.jobs.Job`."""
        return frozenset()

    @property
    def title(self) -> str:
        """See :class:`benchmark.engines.jobs.Job`."""
        return f"train {self.experiment.recipe} on {self.experiment.dataset}, seed {self.experiment.seed}"

    @property
    def kind(self) -> str:
        """See :class:`benchmark.engines.jobs.Job`."""
        return "training"

    @property
    def gpus(self) -> int:
        """See :class:`benchmark.engines.jobs.Job`."""
        return int(self.source.device.startswith("cuda"))

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to do."""
        return read_manifest(self.folder).get("status") in ("finished", "failed")

    def __call__(self, kept: dict[Any, Any]) -> str | None:
        """Train."""
        # What is trained already is found on any machine.
        device = select_device("cpu" if self.settled else self.source.device)
        try:
            train(self.experiment, self.source.data(kept), self.runs, device, self.devices)
        except TrainingFailed as error:
            return str(error)
        except RankFailed as error:
            raise WorkFailed(str(error)) from error
        return None


@dataclass(frozen=True)
class Run:
    """A run of a plan, and what is measured of it for which entry, where anything is."""

    plan: Plan
    experiment: Experiment
    evaluation: Evaluation | None = None
    protocol: Protocol | None = None
    leaderboards: Path | None = None
    cell: Cell | None = None
    """Of the ablation that the run stands for."""
    evidence: bool = True
    """Whether to keep the bundle, and a copy of the weights, with which the entry can be verified."""
    after: frozenset[Path] = frozenset()
    """Folders of runs that must be trained before it is measured."""

    @cached_property
    def folder(self) -> Path:
        """Where it lies."""
        return run_folder(self.plan.runs, self.experiment, self.plan.data(self.experiment))

    @property
    def title(self) -> str:
        """Which run, and where a protocol is not that of its plan, under which."""
        name = f"{self.cell.name} {self.cell.row}" if self.cell else self.experiment.recipe
        apart = self.protocol is not None and self.protocol.hash != self.plan.evaluation_protocol.hash
        under = f" under {self.protocol.id} at {self.protocol.threat}" if self.protocol and apart else ""
        return f"{name} on {self.experiment.dataset}, seed {self.experiment.seed}{under}"

    def check(self, here: bool) -> None:
        """Refuse what cannot be trained or measured.

        Args:
            here: whether this machine must have the device.
        """
        if self.evaluation is not None and self.protocol is not None:
            self.evaluation.check(self.protocol, self.plan.dataset)
        devices = self.plan.devices
        if here:
            check_devices(self.plan.torch_device, devices)
        elif devices > 1:
            raise InputError("--devices spreads a training over devices of this machine: it goes with --engine local.")
        check(self.experiment, self.plan.data(self.experiment), devices)

    def training(self) -> Training:
        """Return the job that trains it."""
        source = self.plan.source(self.experiment)
        return Training(self.experiment, source, self.plan.runs, self.folder, self.plan.devices)

    def measuring(self, number: int) -> list[Measuring]:
        """Return the jobs that measure it, the assembling one last."""
        if self.evaluation is None or self.protocol is None:
            return []
        source = replace(self.plan.source(self.experiment), checkpoint=self.folder, which=self.evaluation.which)
        dataset, store = self.plan.data(self.experiment), Store(self.plan.runs / "measurements")
        after = self.after | {self.folder}
        return self.evaluation.jobs(self.title, source, dataset, self.protocol, store, number, after)


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
    kept, shared = runs[0].plan.loaded, runs[0].plan.runs
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
        if engine.here and jobs and {run.folder, *run.after} <= settled and _stored(jobs[-1], kept):
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


def _stored(job: Measuring, kept: dict[Any, Any]) -> bool:
    """Tell whether all that a job is to measure is in the store."""
    return job.source.missing or pending(job.prepare(kept)) == 0


def _take(finished: Finished, runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
    """Make of a job that ended what becomes of its runs."""
    job = finished.job
    if isinstance(job, Training):
        stopped = finished.error or finished.value
        if stopped is None:
            print(f"{job.experiment.recipe} seed {job.experiment.seed}: {job.folder}", file=sys.stderr)
        for run, outcome in zip(runs, outcomes, strict=True):
            if stopped is not None and run.folder == job.folder:
                outcome.failures.append(stopped)
        return
    assert isinstance(job, Measuring)
    run, outcome = runs[job.of], outcomes[job.of]
    if finished.error is not None:
        outcome.failures.append(finished.error)
    elif finished.value is not None:
        outcome.entry = record(run, finished.value)
        name = f"{run.experiment.recipe} seed {run.experiment.seed}"
        outcome.failures += failed_metrics(name, finished.value.measurements)


def record(run: Run, measured: Measured) -> Path:
    """Write the entry of a measured run, and its evidence; return the entry's file."""
    assert run.evaluation is not None
    assert run.protocol is not None
    assert run.leaderboards is not None
    dataset, store, which = run.plan.data(run.experiment), Store(run.plan.runs / "measurements"), run.evaluation.which
    source = replace(run.plan.source(run.experiment), checkpoint=run.folder, which=which)
    subject = source.subject(dataset, here=False)
    entry = _entry(run, subject, which, run.protocol, measured)
    # A bundle holds what was added to the test images, and `verify` does not know their noise.
    kept = run.evidence and not run.protocol.noise
    digest = bundle.write(run.leaderboards, entry, store, run.folder / FILES[which]) if kept else None
    path = write_entry(run.leaderboards, entry.model_copy(update={"evidence": digest}))
    generated = measured.measurements.get("generation")
    if generated is not None and (panels := sample_grids.panels_of(generated, store)):
        title = f"{subject.name} on {dataset.name}, seed {run.experiment.seed}"
        sample_grids.write_panels(picture_path(path), title, panels, dataset.classes)
    return path


def _entry(run: Run, subject: Subject, which: str, protocol: Protocol, measured: Measured) -> Entry:
    dataset, manifest, experiment = run.plan.data(run.experiment), read_manifest(run.folder), run.experiment
    n = next(iter(measured.measurements.values())).n
    training = training_record(run.folder, manifest)
    return Entry(
        recipe=experiment.recipe,
        method=experiment.method,
        dataset=dataset.name,
        threat=protocol.threat,
        seed=experiment.seed,
        config_digest=manifest["digest"],
        ablation=run.cell,
        subject=_subject_info(subject, which, training.get("collapse")),
        data=DataInfo(digests=dict(dataset.digests), n=n, of=len(dataset.test)),
        partial=n < len(dataset.test),
        protocol=ProtocolInfo(id=protocol.id, hash=protocol.hash, role=protocol.role),
        measurements=measured.measurements,
        training=training
        | {"threat": experiment.threat, "budget": experiment.budget, "settings": experiment.resolved()},
        provenance=measured.provenance,
        overrides=files.flat(run.plan.changes),
    )


def _subject_info(subject: Subject, which: str, collapse: dict[str, Any] | None) -> SubjectInfo:
    flags = list(subject.flags)
    if collapse is not None:
        cause, epoch = collapse["cause"], collapse["epoch"]
        flags.append(f"the training collapsed ({cause}) and was stopped in epoch {epoch:.1f}; the weights are older")
    return SubjectInfo(
        kind=subject.kind,
        weights_digest=subject.digest,
        which=which,
        architecture=subject.architecture,
        parameters=subject.parameters,
        flags=flags,
    )


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
