"""What is trained and measured: plans, subjects with their data, evaluations, and the commands on one subject."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmark.engines import Engine, WorkFailed
from benchmark.evaluation import bundle
from benchmark.evaluation.parts import Part
from benchmark.evaluation.runner import measure, measure_part, pending, prepare
from benchmark.evaluation.shards import Shards
from benchmark.generation import generate as images
from benchmark.models import zoo
from benchmark.models.doctor import Diagnosis, examine
from benchmark.models.subject import Subject, from_checkpoint, from_factory, from_zoo, make_model
from benchmark.results.entry import Measurement, ProtocolInfo
from benchmark.results.layout import MASKING_CHECKS as COURT
from benchmark.results.layout import read_entries
from benchmark.results.store import Store
from benchmark.specs import protocol as protocols
from benchmark.specs import recipes as files
from benchmark.specs import registry
from benchmark.specs.protocol import Protocol
from benchmark.studies import gap as gaps
from benchmark.studies.masking_power import Study, study
from methods.data import Dataset, load
from methods.data.catalogue import slug
from methods.errors import InputError
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import FILES, write_json
from methods.training.config import DataConfig, Experiment, experiment, overlay
from methods.training.progress import progress
from methods.training.provenance import provenance
from methods.training.trainer import select_device

DATA = Path("data")
DEFAULT_THREAT = "Linf:8/255"
"""For data sets whose overlay and protocol name none."""


@dataclass(frozen=True)
class Plan:
    """Recipes x seeds on one data set: everything is resolved and checked before the first training starts.

    Raises:
        InputError: at the first use of what is wrong.
    """

    recipes: Sequence[str]
    dataset: str
    seeds: Sequence[int] = (0,)
    protocol: str | None = None
    overrides: Sequence[str] = ()
    config: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Laid over ``config`` and ``overrides``: what a row of an ablation sets."""
    device: str = "auto"
    devices: int = 1
    """Devices of each training."""
    runs: Path = Path("runs")
    loaded: dict[Any, Dataset] = field(default_factory=dict)
    """Data sets that this process has read; plans may share it."""

    @cached_property
    def evaluation_protocol(self) -> Protocol:
        """The protocol of the evaluation; its threat model is also that of recipes that name none."""
        name = self.protocol or protocols.default(files.canonical(self.dataset))
        chosen = self.changes.get("threat") or files.overlay(self.dataset).get("threat", DEFAULT_THREAT)
        return protocols.load(name, None if protocols.threat_of(name) else str(chosen))

    @cached_property
    def changes(self) -> dict[str, Any]:
        """What ``--config``, ``--set`` and an ablation's row change."""
        return files.merge(files.changes(self.config, self.overrides), self.settings)

    @cached_property
    def experiments(self) -> list[Experiment]:
        """One experiment for each recipe and seed, recipes outermost."""
        names = dict.fromkeys(files.find_recipe(recipe) for recipe in self.recipes)
        threat = self.evaluation_protocol.threat
        return [
            experiment(files.settings(name, self.dataset, seed=seed, changes=self.changes, threat=threat))
            for name in names
            for seed in self.seeds
        ]

    @cached_property
    def torch_device(self) -> torch.device:
        return select_device(self.device)

    def data(self, run: Experiment) -> Dataset:
        """Return the data set as an experiment splits it, loaded once."""
        return self.source(run).data(self.loaded)

    def source(self, run: Experiment) -> Source:
        """Return where an experiment's data come from."""
        return Source(run.dataset, run.data.validation, run.data.size, self.device, generated=run.data.generated.path)


@dataclass(frozen=True)
class Source:
    """Where a subject and its data come from, so that another process can load them too."""

    dataset: str
    validation: int | None = None
    size: int | None = None
    device: str = "auto"
    checkpoint: Path | None = None
    which: Literal["best", "last"] = "best"
    factory: str | None = None
    weights: Path | None = None
    robustbench: str | None = None
    """Id of a model of RobustBench's zoo."""
    threat: str = DEFAULT_THREAT
    """Whose norm is part of a model's place in the zoo."""
    model_dir: Path = zoo.MODEL_DIR
    generated: Path | None = None
    """Images that the training mixed with the real ones."""

    def check(self) -> None:
        """Refuse a zoo model that cannot be loaded before its data are, which may be a long download."""
        of = files.canonical(self.dataset).partition("-")[0]
        if self.robustbench is not None and of in zoo.DATASETS.values():
            zoo.check(self.robustbench, of, ThreatModel.parse(self.threat), self.model_dir)

    def data(self, kept: dict[Any, Dataset] | None = None) -> Dataset:
        """Load the data set, or take it from what is ``kept``; there it is kept."""
        kept = {} if kept is None else kept
        key = self.dataset, self.validation, self.size, self.generated
        if key not in kept:
            kept[key] = load(
                self.dataset, root=DATA, validation=self.validation, size=self.size, generated=self.generated
            )
        return kept[key]

    @property
    def missing(self) -> bool:
        """Whether it is a run that left no such checkpoint."""
        return (
            self.checkpoint is not None
            and self.checkpoint.is_dir()
            and not (self.checkpoint / FILES[self.which]).is_file()
        )

    def subject(self, dataset: Dataset, here: bool = True) -> Subject:
        """Load the model; onto the CPU where this machine need not have the device."""
        device = select_device(self.device if here else "cpu")
        if self.checkpoint is not None:
            return from_checkpoint(self.checkpoint, device, self.which)
        if self.robustbench is not None:
            return from_zoo(self.robustbench, ThreatModel.parse(self.threat), self.model_dir, dataset, device)
        assert self.factory is not None
        return from_factory(self.factory, self.weights, dataset, device)


@dataclass(frozen=True)
class Evaluation:
    """What to measure of each checkpoint, and by whom."""

    metrics: Sequence[str] | None = None
    limit: int | None = None
    batch_size: int | None = None
    which: Literal["best", "last"] = "best"
    surrogate: Path | None = None
    """A checkpoint on which transfer attacks are made; None: the reference network of the data set."""
    engine: Engine = field(default_factory=Engine)

    def check(self, protocol: Protocol, dataset: str) -> None:
        """Refuse a protocol for another data set, metrics that it does not define, and impossible numbers."""
        if protocol.dataset not in (None, files.canonical(dataset)):
            raise InputError(f'The protocol "{protocol.id}" is for {protocol.dataset}, not for {dataset}.')
        for metric in self.metrics or ():
            registry.get(metric)
            protocol.config(metric)
        for name, value in (("--limit", self.limit), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")

    def measure(
        self, subject: Subject, dataset: Dataset, protocol: Protocol, store: Store, source: Source
    ) -> dict[str, Measurement]:
        """Measure one subject, which workers load again from its source.

        Raises:
            WorkFailed: workers died of it.
        """
        todo = self.prepare(subject, dataset, protocol, store)
        # A single shard is no reason to start processes; but a cluster may have another device.
        if self.engine.alone or pending(todo) < (2 if self.engine.here else 1):
            return measure(todo)
        jobs = self.jobs(subject.name, source, dataset, protocol, store)
        ended = list(self.engine.run(jobs, {}, store.root.parent))
        if failures := [finished.error for finished in ended if finished.error is not None]:
            raise WorkFailed(failures[0])
        return ended[-1].value.measurements

    def jobs(
        self,
        title: str,
        source: Source,
        dataset: Dataset,
        protocol: Protocol,
        store: Store,
        of: int = 0,
        after: frozenset[Any] = frozenset(),
    ) -> list[Measuring]:
        """Return the jobs that measure one subject: its parts, and behind them the one that assembles them.

        Args:
            title: of the subject.
            source: of the subject.
            dataset: the one of the source.
            protocol: under which.
            store: keeps shards and measurements.
            of: its number, where there are several.
            after: jobs that come before.
        """
        n = len(dataset.test) if self.limit is None else min(self.limit, len(dataset.test))
        # Twice as many parts as workers: the last evaluation, too, leaves none of them idle for long.
        count = 1 if self.engine.alone else min(math.ceil(n / protocol.shard), 2 * self.engine.workers)
        parts = [Part(number, count) for number in range(1, count + 1)] if count > 1 else []
        work = Measuring(self, source, protocol, store.root, title, None, of, after)
        cut = [replace(work, part=part) for part in parts]
        return [*cut, replace(work, after=after | {job.name for job in cut})]

    def prepare(self, subject: Subject, dataset: Dataset, protocol: Protocol, store: Store) -> list[Shards]:
        """Return what each metric is to be given."""
        return prepare(
            subject,
            dataset,
            protocol,
            metrics=self.metrics,
            limit=self.limit,
            batch_size=self.batch_size,
            store=store,
            surrogate=None if self.surrogate is None else from_checkpoint(self.surrogate, subject.device),
        )


@dataclass(frozen=True)
class Measured:
    """The measurements of a subject, and where they were made."""

    measurements: dict[str, Measurement]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Measuring:
    """A job: measure a part of the shards, or without one all that is not in the store, and return the result."""

    evaluation: Evaluation
    source: Source
    protocol: Protocol
    store: Path
    subject: str
    """Its title."""
    part: Part | None
    of: int
    """The subject's number among those of all jobs."""
    after: frozenset[Any]

    @property
    def name(self) -> Hashable:
        """See :class:`benchmark.engines.jobs.Job`."""
        return self.of, self.part

    @property
    def title(self) -> str:
        """See :class:`benchmark.engines.jobs.Job`."""
        return f"evaluate {self.subject}" + (f", part {self.part.number}/{self.part.of}" if self.part else "")

    @property
    def kind(self) -> str:
        """See :class:`benchmark.engines.jobs.Job`."""
        return "part" if self.part else "assembly"

    @property
    def gpus(self) -> int:
        """See :class:`benchmark.engines.jobs.Job`."""
        return int(self.source.device.startswith("cuda"))

    def __call__(self, kept: dict[Any, Any]) -> Measured | None:
        """Measure; None where there is no result: of a part, or of a training that left no such checkpoint."""
        if self.source.missing:
            return None
        todo = self.prepare(kept)
        device = todo[0].subject.device
        if self.part is None:
            return Measured(measure(todo), provenance(device))
        total = sum(sum(shard in self.part for shard in range(len(data))) for data in todo)
        with progress(self.title, total) as advance:
            # A metric that reuses another's shards reports them again.
            counted = iter(range(1, total + 1))
            measure_part(todo, self.part, lambda: advance(next(counted, total)))
        return None

    def prepare(self, kept: dict[Any, Any], here: bool = True) -> list[Shards]:
        """Return what each metric is to be given, for measuring ``here`` or for asking what is pending."""
        dataset = self.source.data(kept)
        subject = self.source.subject(dataset, here)
        return self.evaluation.prepare(subject, dataset, self.protocol, Store(self.store))


def evaluate_one(
    evaluation: Evaluation,
    *,
    checkpoint: Path | None = None,
    factory: str | None = None,
    weights: Path | None = None,
    robustbench: str | None = None,
    model_dir: Path | None = None,
    dataset: str | None = None,
    threat: str | None = None,
    protocol: str | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    runs: Path = Path("runs"),
    json_file: Path | None = None,
    part: Part | None = None,
) -> list[str]:
    """Evaluate one checkpoint, stranger's model or zoo model, print the result, and write it as JSON where asked.

    With a part, its shards are stored and there is no result: the same call without one assembles it.

    Returns:
        A sentence for each metric that failed.

    Raises:
        InputError: not exactly one subject, or anything named does not fit.
    """
    _one_subject(checkpoint, factory, weights, robustbench, model_dir)
    here = evaluation.engine.here
    subject, name = _named(checkpoint, dataset, select_device(device if here else "cpu"), evaluation.which)
    size = _size(overrides)
    chosen = _protocol(name, threat, protocol, subject)
    evaluation.check(chosen, name)
    source = Source(
        name,
        size=size,
        device=device,
        checkpoint=checkpoint,
        which=evaluation.which,
        factory=factory,
        weights=weights,
        robustbench=robustbench,
        threat=chosen.threat,
        model_dir=model_dir or zoo.MODEL_DIR,
    )
    source.check()
    data = source.data()
    subject = subject or source.subject(data, here)
    store = Store(runs / "measurements")
    if part is not None:
        measure_part(evaluation.prepare(subject, data, chosen, store), part)
        print(f"shards of part {part.number} of {part.of}: {store.root}")
        return []
    measurements = evaluation.measure(subject, data, chosen, store, source)
    result = _result(subject, data, chosen, measurements)
    if json_file is not None:
        write_json(json_file, result)
    _print_result(subject, data, chosen, measurements, runs)
    return failed_metrics(subject.name, measurements)


def explain_gap(
    evaluation: Evaluation,
    *,
    checkpoint: Path | None = None,
    factory: str | None = None,
    weights: Path | None = None,
    dataset: str | None = None,
    threat: str | None = None,
    released: str | None = None,
    device: str = "auto",
    runs: Path = Path("runs"),
    folder: Path,
) -> tuple[gaps.Gap, list[Path]]:
    """Walk one checkpoint from the evaluator released with EB-JDAT to the standard protocol of its data set.

    Args:
        evaluation: its metrics are chosen by the walk.
        checkpoint, factory, weights, dataset, device, runs: as for :func:`evaluate_one`.
        threat: of the standard protocol; its own by default.
        released: id of the evaluator's protocol; by default the one of the checkpoint's method and host.
        folder: where the results are written.

    Returns:
        What each difference contributes, and the files written.

    Raises:
        InputError: not exactly one subject, anything named does not fit, or a measurement failed.
    """
    _one_subject(checkpoint, factory, weights, None, None)
    subject, name = _named(checkpoint, dataset, select_device(device), evaluation.which)
    source = Source(
        name, device=device, checkpoint=checkpoint, which=evaluation.which, factory=factory, weights=weights
    )
    standard = _protocol(name, threat, None, subject)
    begin = gaps.protocols(standard, released or gaps.released_evaluator(subject.metadata if subject else {}))
    evaluation.check(standard, name)
    data = source.data()
    subject = subject or source.subject(data)
    store = Store(runs / "measurements")

    def measured(change: gaps.Change) -> Measurement:
        only = replace(evaluation, metrics=[change.metric])
        return only.measure(subject, data, change.protocol, store, source)[change.metric]

    walks: list[gaps.Walk] = []
    n = len(data.test)
    for accuracy in gaps.WALKED:
        changes = list(gaps.walk(begin, standard, accuracy))
        print(f"{accuracy}: {len(changes)} stops", file=sys.stderr)
        walks.append(gaps.Walk(accuracy=accuracy, stops=gaps.stops(changes, measured)))
    gap = gaps.Gap(
        subject=subject.name,
        recipe=subject.metadata.get("recipe"),
        seed=subject.metadata.get("seed"),
        which=evaluation.which if checkpoint is not None else None,
        weights_digest=subject.digest,
        dataset=data.name,
        data_digest=data.test.digest,
        n=n if evaluation.limit is None else min(evaluation.limit, n),
        of=n,
        released=ProtocolInfo(id=begin.id, hash=begin.hash, role=begin.role),
        released_threat=begin.threat,
        standard=ProtocolInfo(id=standard.id, hash=standard.hash, role=standard.role),
        standard_threat=standard.threat,
        walks=walks,
        provenance=provenance(subject.device),
    )
    return gap, gaps.write(gap, folder)


def diagnose(
    *,
    checkpoint: Path | None,
    factory: str | None,
    weights: Path | None,
    robustbench: str | None = None,
    model_dir: Path | None = None,
    dataset: str | None,
    threat: str = DEFAULT_THREAT,
    which: Literal["best", "last"] = "best",
    device: str = "auto",
    eps: str | None = None,
    input_range: str | None = None,
) -> Diagnosis:
    """Examine one checkpoint, stranger's model or zoo model, however sick; see :func:`benchmark.models.doctor.examine`.

    Raises:
        InputError: not exactly one subject, or anything named does not fit.
    """
    _one_subject(checkpoint, factory, weights, robustbench, model_dir)
    place = select_device(device)
    subject, name = _named(checkpoint, dataset, place, which)
    source = Source(name, robustbench=robustbench, threat=threat, model_dir=model_dir or zoo.MODEL_DIR)
    source.check()
    data = source.data()
    if subject is not None:
        model = subject
    elif robustbench is not None:
        model = zoo.load(robustbench, zoo.zoo_dataset(data), ThreatModel.parse(threat), source.model_dir)
    else:
        model = make_model(str(factory), weights, data, place)
    return examine(model, data, input_range=input_range, eps=eps, device=place, name=factory or robustbench)


def generate(
    checkpoint: Path,
    output: Path,
    dataset: str,
    *,
    count: int,
    steps: int,
    start: Literal["class_gaussian", "uniform", "pca"],
    keep: float = 1.0,
    scorer: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Generate images by a checkpoint, for trainings on generated data, and write them; return what is known of them.

    Raises:
        InputError: anything named does not fit.
    """
    chains = images.Chains(count, steps, start, keep, seed)
    if output.suffix != ".npz":
        raise InputError(f"--output is a file that ends with .npz, not {output}.")
    place = select_device(device)
    subject, surest = (None if path is None else from_checkpoint(path, place) for path in (checkpoint, scorer))
    assert subject is not None
    data = load(dataset, root=DATA)
    for given in (subject, surest):
        if given is not None and (given.num_classes, given.image_shape) != (data.num_classes, data.image_shape):
            raise InputError(f"{given.name} was not trained on images and classes like those of {data.name}.")
    made = images.generate(subject, data, chains, surest)
    record = images.passport(subject, chains, surest, data, made, provenance(place))
    images.save(output, made, data, record)
    return record


def court_power(
    dataset: str, threat: str | None, leaderboards: Path, device: str = "auto", engine: Engine | None = None
) -> tuple[Study, Path]:
    """Measure the masking court on the checkpoints whose weights lie beside the entries of a table.

    Returns:
        What was found, and the folder that holds it, beside the entries.

    Raises:
        InputError: no such table, or none of its entries has its weights beside it.
    """
    place = select_device(device)
    data = load(dataset, root=DATA)
    chosen = threat or protocols.threat_of(protocols.default(data.name)) or DEFAULT_THREAT
    folder = leaderboards / slug(data.name) / ThreatModel.parse(chosen).slug
    honest, collapsed = {}, {}
    for entry in read_entries(folder).values():
        path = bundle.weights_path(folder, entry)
        if path.is_file():
            (collapsed if entry.training.get("collapse") else honest)[path] = entry
    if not honest:
        raise InputError(f"No entry of {data.name} at {chosen} below {leaderboards} has its weights beside it.")
    output = folder / COURT
    found = study(list(honest), data, output, collapsed=list(collapsed), threat=chosen, device=place, engine=engine)
    return found, output


def _one_subject(
    checkpoint: Path | None,
    factory: str | None,
    weights: Path | None,
    robustbench: str | None,
    model_dir: Path | None,
) -> None:
    """Refuse anything but exactly one subject, with its own options."""
    if sum(given is not None for given in (checkpoint, factory, robustbench)) != 1:
        raise InputError("Give one of --checkpoint PATH, --model FILE:FACTORY and --robustbench MODEL_ID.")
    if weights is not None and factory is None:
        raise InputError("--weights goes with --model FILE:FACTORY.")
    if model_dir is not None and robustbench is None:
        raise InputError("--model-dir goes with --robustbench MODEL_ID.")


def _named(
    checkpoint: Path | None, dataset: str | None, device: torch.device, which: Literal["best", "last"]
) -> tuple[Subject | None, str]:
    """Return the checkpoint, where there is one, and the name of the data set.

    Raises:
        InputError: no data set.
    """
    subject = None if checkpoint is None else from_checkpoint(checkpoint, device, which)
    name = dataset or (subject.metadata.get("dataset") if subject else None)
    if name is None:
        raise InputError("Name the data set with --dataset NAME; the model does not say it.")
    return subject, name


def _size(overrides: Sequence[str]) -> int | None:
    """Return ``data.size``, the one setting that an evaluation without a training takes."""
    changed = files.changes(None, overrides)
    for text in files.flat(changed):
        key = text.partition("=")[0]
        if key not in ("data", "data.size"):
            raise InputError(f'evaluate takes --set data.size=N and no other setting, not "{key}".')
    return overlay(DataConfig(), changed.get("data", {}), "data").size


def _protocol(dataset: str, threat: str | None, protocol: str | None, subject: Subject | None) -> Protocol:
    name = protocol or protocols.default(files.canonical(dataset), threat)
    trained_at = subject.metadata.get("threat") if subject else None
    return protocols.load(name, threat or (None if protocols.threat_of(name) else trained_at))


def failed_metrics(name: str, measurements: Mapping[str, Measurement]) -> list[str]:
    """Return a sentence for each metric of a subject that failed."""
    return [f"{name}, {metric}: {found.error}" for metric, found in measurements.items() if found.status == "failed"]


def _result(
    subject: Subject, data: Dataset, protocol: Protocol, measurements: dict[str, Measurement]
) -> dict[str, Any]:
    metrics = {
        name: {
            **found.values,
            **{key: getattr(found, key) for key in ("status", "error", "n", "flags", "seconds", "samples", "config")},
        }
        for name, found in measurements.items()
    }
    return {
        "subject": subject.name,
        "kind": subject.kind,
        "weights_digest": subject.digest,
        "subject_flags": subject.flags,
        "dataset": data.name,
        "data_digests": dict(data.digests),
        "threat": protocol.threat,
        "protocol": protocol.id,
        "protocol_hash": protocol.hash,
        "n": next(iter(measurements.values())).n,
        "of": len(data.test),
        "partial": next(iter(measurements.values())).n < len(data.test),
        "metrics": metrics,
        "provenance": provenance(subject.device),
    }


def _print_result(
    subject: Subject, data: Dataset, protocol: Protocol, measurements: dict[str, Measurement], runs: Path
) -> None:
    table = Table(
        "number", "value", "95 % interval", "meaning", title=f"{subject.name} on {data.name} at {protocol.threat}"
    )
    for name, found in measurements.items():
        if found.status == "failed":
            table.add_row(name, "failed", "", found.error)
            continue
        for column, place in registry.get(name).COLUMNS.items():
            interval = [found.values.get(f"{place.value}_{end}") for end in ("low", "high")]
            known = [f"{end:.{place.digits}f}" for end in interval if isinstance(end, int | float)]
            table.add_row(column, place.text(found.values), " to ".join(known), place.meaning)
    doubts = [(name, flag) for name, found in measurements.items() for flag in found.flags]
    for name, flag in [("subject", flag) for flag in subject.flags] + doubts:
        table.add_row(name, "doubt", "", flag)
    Console(markup=False).print(table)
    n = next(iter(measurements.values())).n
    if n < len(data.test):
        print(f"partial: the first {n} of {len(data.test)} test images")
    print(f"protocol: {protocol.id} ({protocol.hash})")
    print(f"outcomes per image: {runs / 'measurements'}")
