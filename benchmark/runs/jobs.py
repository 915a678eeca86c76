"""Jobs of a run: its training, and the evaluation of its checkpoint, whole or in parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmark.engines import Engine, WorkFailed
from benchmark.engines.jobs import Job
from benchmark.evaluation.parts import Part
from benchmark.evaluation.runner import measure, measure_part, pending, prepare
from benchmark.evaluation.selection import Selection
from benchmark.evaluation.shards import Shards
from benchmark.models.spec import DataSpec, ModelSpec, Which
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement, SubjectInfo
from benchmark.results.layout import STORE
from benchmark.results.store import Store
from benchmark.specs.protocol import Protocol
from methods.training.config import Experiment
from methods.training.devices import select_device
from methods.training.distributed import RankFailed
from methods.training.progress import progress
from methods.training.provenance import provenance
from methods.training.run_folder import read_manifest
from methods.training.trainer import TrainingFailed, train


@dataclass(frozen=True)
class Evaluation:
    """How checkpoints are evaluated: what is measured, of which checkpoint of a run, and by which workers."""

    selection: Selection = field(default_factory=Selection)
    which: Which = "best"
    surrogate: Path | None = None
    """A checkpoint on which transfer attacks are made; None: the reference network of the data set."""
    device: str = "auto"
    engine: Engine = field(default_factory=Engine)


@dataclass(frozen=True)
class Measured:
    """The measurements of a model, which model that was, and where they were made."""

    measurements: dict[str, Measurement]
    subject: SubjectInfo
    provenance: dict[str, Any]


@dataclass(frozen=True)
class TrainingJob(Job):
    """Train, resume, or find already trained; return why the training was stopped, where it was."""

    experiment: Experiment
    data: DataSpec
    device: str
    runs: Path
    folder: Path
    devices: int = 1

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to do."""
        return read_manifest(self.folder).get("status") in ("finished", "failed")

    def __call__(self, kept: dict[Any, Any]) -> str | None:
        """Train."""
        # What is trained already is found on any machine.
        device = select_device("cpu" if self.settled else self.device)
        try:
            train(self.experiment, self.data.load(kept), self.runs, device, self.devices)
        except TrainingFailed as error:
            return str(error)
        except RankFailed as error:
            raise WorkFailed(str(error)) from error
        return None


@dataclass(frozen=True)
class EvaluationJob(Job):
    """Measure all that is not in the store yet and return the result; or, with a part, store its shards."""

    model: ModelSpec
    data: DataSpec
    protocol: Protocol
    evaluation: Evaluation
    store: Path
    """Folder of the store."""
    run: int = 0
    """Number of the model among those of all jobs."""
    part: Part | None = None
    """The shards that are this job's; None: all."""

    def parts(self, images: int) -> list[EvaluationJob]:
        """Return the jobs that share this one's shards, of a data set of so many test images, and this one last."""
        engine, n = self.evaluation.engine, self.evaluation.selection.images(images)
        # Twice as many parts as workers: the last evaluation, too, leaves none of them idle for long.
        count = 1 if engine.alone else min(math.ceil(n / self.protocol.shard), 2 * engine.workers)
        if count == 1:
            return [self]
        cut = [
            replace(
                self, part=part, name=(self.run, part), title=f"{self.title}, part {part.number}/{count}", kind="part"
            )
            for part in (Part(number, count) for number in range(1, count + 1))
        ]
        return [*cut, replace(self, after=self.after | {job.name for job in cut})]

    def shards(self, kept: dict[Any, Any], here: bool = True) -> list[Shards]:
        """Return what each metric is to be given; where it is not measured ``here``, this machine needs no device."""
        dataset, evaluation = self.data.load(kept), self.evaluation
        device = select_device(evaluation.device if here else "cpu")
        surrogate = evaluation.surrogate and ModelSpec(evaluation.surrogate).load(dataset, device, kept)
        return prepare(
            self.model.load(dataset, device, kept),
            dataset,
            self.protocol,
            evaluation.selection,
            store=Store(self.store),
            surrogate=surrogate,
        )

    def stored(self, kept: dict[Any, Any]) -> bool:
        """Tell whether all that is to be measured is in the store."""
        return self.model.missing or pending(self.shards(kept)) == 0

    def __call__(self, kept: dict[Any, Any]) -> Measured | None:
        """Measure; None where there is no result: of a part, or of a training that left no such checkpoint."""
        if self.model.missing:
            return None
        todo = self.shards(kept)
        if self.part is None:
            return self._measured(todo)
        total = sum(sum(shard in self.part for shard in range(len(data))) for data in todo)
        with progress(self.title, total) as advance:
            # A metric that reuses another's shards reports them again.
            counted = iter(range(1, total + 1))
            measure_part(todo, self.part, lambda: advance(next(counted, total)))
        return None

    def result(self, kept: dict[Any, Any]) -> Measured:
        """Measure by the engine's workers, or in this process where there is too little for several, and return all.

        Raises:
            WorkFailed: workers died of it.
        """
        engine = self.evaluation.engine
        todo = self.shards(kept, engine.here)
        # A single shard is no reason to start processes; but a cluster may have another device.
        if engine.alone or pending(todo) < (2 if engine.here else 1):
            return self._measured(todo)
        ended = list(engine.run(self.parts(len(todo[0].images)), {}, self.store.parent))
        if failures := [finished.error for finished in ended if finished.error is not None]:
            raise WorkFailed(failures[0])
        return ended[-1].value

    def _measured(self, todo: list[Shards]) -> Measured:
        subject = todo[0].subject
        return Measured(measure(todo), describe(subject, self.model), provenance(subject.device))


def evaluation_job(
    evaluation: Evaluation, model: ModelSpec, data: DataSpec, protocol: Protocol, runs: Path, title: str, **job: Any
) -> EvaluationJob:
    """Return the job that measures a model, called ``title``, whole; ``job`` has further fields of it."""
    return EvaluationJob(
        model=model,
        data=data,
        protocol=protocol,
        evaluation=evaluation,
        store=runs / STORE,
        name=(job.get("run", 0), None),
        title=f"evaluate {title}",
        kind="assembly",
        gpus=gpus(evaluation.device),
        **job,
    )


def gpus(device: str) -> int:
    """Return the number of CUDA devices that a job on a device occupies."""
    return int(device.startswith("cuda"))


def describe(subject: Subject, model: ModelSpec) -> SubjectInfo:
    """Return what an entry says of a model."""
    return SubjectInfo(
        kind=subject.kind,
        weights_digest=subject.digest,
        which=None if model.checkpoint is None else model.which,
        architecture=subject.architecture,
        parameters=subject.parameters,
        flags=list(subject.flags),
    )


def failed_metrics(name: str, measurements: Mapping[str, Measurement]) -> list[str]:
    """Return a sentence for each metric of a model that failed."""
    return [f"{name}, {metric}: {found.error}" for metric, found in measurements.items() if found.status == "failed"]
