"""From recipes to entries: train each run, evaluate its checkpoint, write its entry, rebuild the tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmark import ablation as ablations
from benchmark import bundle, leaderboard, pictures
from benchmark import config as files
from benchmark import gap as gaps
from benchmark import generate as images
from benchmark import metrics as registry
from benchmark import protocol as protocols
from benchmark import robustbench_io as zoo
from benchmark.doctor import Diagnosis, examine
from benchmark.parts import MOST, Part, in_workers
from benchmark.power import Study, study
from benchmark.protocol import Protocol
from benchmark.results import (
    COURT,
    Cell,
    DataInfo,
    Entry,
    Measurement,
    ProtocolInfo,
    SubjectInfo,
    picture_path,
    read_entries,
    write_entry,
)
from benchmark.runner import measure, measure_part, pending, prepare
from benchmark.shards import Shards
from benchmark.store import Store
from benchmark.subject import Subject, from_checkpoint, from_factory, from_zoo, make_model
from benchmark.training_record import training_record
from methods.data import Dataset, load
from methods.data.catalogue import slug
from methods.errors import InputError
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import FILES, write_json
from methods.training.config import DataConfig, Experiment, experiment, overlay
from methods.training.distributed import RankFailed, check_devices
from methods.training.provenance import provenance
from methods.training.trainer import TrainingFailed, check, read_manifest, run_folder, select_device, train

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
    _loaded: dict[tuple[int | None, int | None, str | None], Dataset] = field(default_factory=dict)

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
        key = run.data.validation, run.data.size, run.data.generated.file
        if key not in self._loaded:
            self._loaded[key] = self.source(run).data()
        return self._loaded[key]

    def source(self, run: Experiment) -> Source:
        """Return where an experiment's data come from."""
        return Source(run.dataset, run.data.validation, run.data.size, self.device, generated=run.data.generated.path)

    def check(self) -> None:
        """Resolve everything now, so that bad input stops the command before any work."""
        check_devices(self.torch_device, self.devices)
        for run in self.experiments:
            check(run, self.data(run), self.devices)


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

    def data(self) -> Dataset:
        """Load the data set."""
        return load(self.dataset, root=DATA, validation=self.validation, size=self.size, generated=self.generated)

    def subject(self, dataset: Dataset) -> Subject:
        """Load the model."""
        device = select_device(self.device)
        if self.checkpoint is not None:
            return from_checkpoint(self.checkpoint, device, self.which)
        if self.robustbench is not None:
            return from_zoo(self.robustbench, ThreatModel.parse(self.threat), self.model_dir, dataset, device)
        assert self.factory is not None
        return from_factory(self.factory, self.weights, dataset, device)


@dataclass(frozen=True)
class Evaluation:
    """What to measure of each checkpoint, and by how many processes."""

    metrics: Sequence[str] | None = None
    limit: int | None = None
    batch_size: int | None = None
    which: Literal["best", "last"] = "best"
    surrogate: Path | None = None
    """A checkpoint on which transfer attacks are made; None: the reference network of the data set."""
    workers: int = 1

    def check(self, protocol: Protocol, dataset: str) -> None:
        """Refuse a protocol for another data set, metrics that it does not define, and impossible numbers."""
        if protocol.dataset not in (None, files.canonical(dataset)):
            raise InputError(f'The protocol "{protocol.id}" is for {protocol.dataset}, not for {dataset}.')
        for metric in self.metrics or ():
            registry.get(metric)
            protocol.config(metric)
        for name, value in (("--limit", self.limit), ("--batch-size", self.batch_size), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")
        if self.workers > MOST:
            raise InputError(f"--workers must be at most {MOST}, not {self.workers}.")

    def measure(
        self, subject: Subject, dataset: Dataset, protocol: Protocol, store: Store, source: Source
    ) -> dict[str, Measurement]:
        """Measure one subject, which workers load again from its source."""
        todo = self.prepare(subject, dataset, protocol, store)
        if self.workers > 1 and (shards := pending(todo)) > 1:
            threads = max(1, torch.get_num_threads() // self.workers)
            work = partial(_work, self, source, protocol, store, threads)
            for sentence in in_workers(work, self.workers, subject.name, shards):
                print(sentence, file=sys.stderr)
        return measure(todo)

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


def _work(
    evaluation: Evaluation,
    source: Source,
    protocol: Protocol,
    store: Store,
    threads: int,
    part: Part,
    advance: Callable[[], object],
) -> None:
    """Measure a part, in a worker."""
    torch.set_num_threads(threads)
    dataset = source.data()
    measure_part(evaluation.prepare(source.subject(dataset), dataset, protocol, store), part, advance)


def train_all(plan: Plan) -> list[str]:
    """Train every run of the plan; return a sentence for each that failed."""
    plan.check()
    failures: list[str] = []
    for _ in finished(plan, failures):
        pass
    return failures


def finished(plan: Plan, failures: list[str]) -> Iterator[tuple[Experiment, Path]]:
    """Train each run, and yield it with its folder; a stopped one too, where it left weights from before.

    Args:
        plan: checked.
        failures: is given a sentence for each training that failed.
    """
    for run in plan.experiments:
        dataset = plan.data(run)
        try:
            folder = train(run, dataset, plan.runs, plan.torch_device, plan.devices)
        except RankFailed as error:
            failures.append(str(error))
            continue
        except TrainingFailed as error:
            failures.append(str(error))
            folder = run_folder(plan.runs, run, dataset)
            if (folder / FILES["best"]).is_file():
                yield run, folder
            continue
        print(f"{run.recipe} seed {run.seed}: {folder}", file=sys.stderr)
        yield run, folder


def run(plan: Plan, evaluation: Evaluation, leaderboards: Path) -> list[str]:
    """Train and evaluate every run of the plan, write the entries and rebuild all tables.

    Returns:
        A sentence for each training or metric that failed; all others are kept.
    """
    evaluation.check(plan.evaluation_protocol, plan.dataset)
    plan.check()
    failures: list[str] = []
    entries = list(_evaluated(plan, evaluation, leaderboards, failures))
    leaderboard.rebuild(leaderboards)
    _show(entries, plan.runs, "leaderboard", leaderboard.SHOWN)
    return failures


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
    rows = {row.name: replace(plan, settings=row.set) for row in ablation.rows}
    for row in rows.values():
        evaluation.check(row.evaluation_protocol, row.dataset)
        row.check()
    failures: list[str] = []
    entries: list[Path] = []
    for row, its_plan in rows.items():
        print(f"{name}: {row}", file=sys.stderr)
        own: list[str] = []
        entries += _evaluated(its_plan, evaluation, leaderboards, own, Cell(name=name, row=row))
        failures += [f"{row}: {failure}" for failure in own]
    leaderboard.rebuild(leaderboards)
    _show(entries, plan.runs, "table", ablations.SHOWN)
    return failures


def _evaluated(
    plan: Plan, evaluation: Evaluation, leaderboards: Path, failures: list[str], cell: Cell | None = None
) -> Iterator[Path]:
    """Train and evaluate every run of the plan; yield the file of each entry written."""
    for trained, folder in finished(plan, failures):
        path = record(plan, trained, folder, evaluation, plan.evaluation_protocol, leaderboards, failures, cell)
        if path is not None:
            yield path


def record(
    plan: Plan,
    trained: Experiment,
    folder: Path,
    evaluation: Evaluation,
    protocol: Protocol,
    leaderboards: Path,
    failures: list[str],
    cell: Cell | None = None,
    evidence: bool = True,
) -> Path | None:
    """Evaluate a run of the plan and write its entry.

    Args:
        plan: with that run.
        trained: the run.
        folder: what its training left.
        evaluation: what to measure.
        protocol: under which.
        leaderboards: where the entry is kept.
        failures: is given a sentence for each metric that failed.
        cell: of the ablation that the run stands for.
        evidence: whether to keep the bundle, and a copy of the weights, with which the entry can be verified.

    Returns:
        The entry's file; None where the training left no such checkpoint.
    """
    if not (folder / FILES[evaluation.which]).is_file():
        return None
    dataset, store = plan.data(trained), Store(plan.runs / "measurements")
    source = replace(plan.source(trained), checkpoint=folder, which=evaluation.which)
    subject = source.subject(dataset)
    measurements = evaluation.measure(subject, dataset, protocol, store, source)
    failures += _failures(f"{trained.recipe} seed {trained.seed}", measurements)
    entry = _entry(plan, trained, folder, subject, evaluation.which, protocol, measurements, cell)
    # A bundle holds what was added to the test images, and `verify` does not know their noise.
    kept = evidence and not protocol.noise
    digest = bundle.write(leaderboards, entry, store, folder / FILES[evaluation.which]) if kept else None
    path = write_entry(leaderboards, entry.model_copy(update={"evidence": digest}))
    generated = measurements.get("generation")
    if generated is not None and (panels := pictures.panels_of(generated, store)):
        title = f"{subject.name} on {dataset.name}, seed {trained.seed}"
        pictures.write_panels(picture_path(path), title, panels, dataset.classes)
    return path


def _failures(name: str, measurements: dict[str, Measurement]) -> list[str]:
    return [f"{name}, {metric}: {found.error}" for metric, found in measurements.items() if found.status == "failed"]


def _entry(
    plan: Plan,
    run: Experiment,
    folder: Path,
    subject: Subject,
    which: str,
    protocol: Protocol,
    measurements: dict[str, Measurement],
    cell: Cell | None,
) -> Entry:
    dataset, manifest = plan.data(run), read_manifest(folder)
    n = next(iter(measurements.values())).n
    training = training_record(folder, manifest)
    return Entry(
        recipe=run.recipe,
        method=run.method,
        dataset=dataset.name,
        threat=protocol.threat,
        seed=run.seed,
        config_digest=manifest["digest"],
        ablation=cell,
        subject=_subject_info(subject, which, training.get("collapse")),
        data=DataInfo(digests=dict(dataset.digests), n=n, of=len(dataset.test)),
        partial=n < len(dataset.test),
        protocol=ProtocolInfo(id=protocol.id, hash=protocol.hash, role=protocol.role),
        measurements=measurements,
        training=training | {"threat": run.threat, "budget": run.budget, "settings": run.resolved()},
        provenance=provenance(plan.torch_device),
        overrides=files.flat(plan.changes),
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
    subject, name = _named(checkpoint, dataset, select_device(device), evaluation.which)
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
    subject = subject or source.subject(data)
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
    return _failures(subject.name, measurements)


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
    """Examine one checkpoint, stranger's model or zoo model, however sick; see :func:`benchmark.doctor.examine`.

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
    dataset: str, threat: str | None, leaderboards: Path, device: str = "auto", workers: int = 1
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
    found = study(list(honest), data, output, collapsed=list(collapsed), threat=chosen, device=place, workers=workers)
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


def _show(entries: Sequence[Path], runs: Path, stem: str, columns: Sequence[str]) -> None:
    """Print the tables that hold these entries, in the columns that fit a terminal, and where everything lies."""
    if not entries:
        return
    folder = entries[0].parents[1]
    for title, rows in leaderboard.read_tables(folder, stem):
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    places = {"entries": folder / "entries", "tables": folder, "runs": runs}
    if drawn := [path for path in map(picture_path, entries) if path.is_file()]:
        places["samples"] = drawn[0].parent
    for title, path in places.items():
        print(f"{title}: {path}")
