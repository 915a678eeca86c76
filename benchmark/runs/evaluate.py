"""The evaluation of one model: a checkpoint, your own model, or one of RobustBench's zoo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.evaluation.parts import Part
from benchmark.evaluation.runner import measure_part
from benchmark.models.spec import DataSpec, ModelSpec
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement
from benchmark.results.layout import STORE
from benchmark.runs.jobs import Evaluation, evaluation_job, failed_metrics
from benchmark.specs import protocol as protocols
from benchmark.specs import recipes, registry
from benchmark.specs.protocol import Protocol
from methods.data import Dataset
from methods.errors import InputError
from methods.files import write_json
from methods.training.config import DataConfig, overlay
from methods.training.devices import select_device
from methods.training.provenance import provenance


@dataclass(frozen=True)
class Question:
    """On which images and under which protocol a model is evaluated; None: what the model or the data set says."""

    dataset: str | None = None
    threat: str | None = None
    protocol: str | None = None
    size: int | None = None
    """Height and width in pixels to which a folder's images are resized."""

    def resolve(self, metadata: Mapping[str, Any]) -> tuple[DataSpec, Protocol]:
        """Return data set and protocol, given what a checkpoint says of itself.

        Raises:
            InputError: no data set is named, and the model does not say it; or there is no such protocol.
        """
        data = self.data(metadata)
        name = self.protocol or protocols.default(recipes.canonical(data.name), self.threat)
        return data, protocols.load(
            name, self.threat or (None if protocols.threat_of(name) else metadata.get("threat"))
        )

    def data(self, metadata: Mapping[str, Any]) -> DataSpec:
        """Return the data set, given what a checkpoint says of itself.

        Raises:
            InputError: none is named, and the model does not say it.
        """
        name = self.dataset or metadata.get("dataset")
        if name is None:
            raise InputError("Name the data set with --dataset NAME; the model does not say it.")
        return DataSpec(name, size=self.size)


def evaluate_one(
    model: ModelSpec,
    question: Question,
    evaluation: Evaluation,
    *,
    runs: Path = Path("runs"),
    json_file: Path | None = None,
    part: Part | None = None,
) -> list[str]:
    """Evaluate one model, print the result, and write it as JSON where asked.

    With a part, its shards are stored and there is no result: the same call without one assembles it.

    Returns:
        A sentence for each metric that failed.

    Raises:
        InputError: anything named does not fit.
    """
    kept: dict[Any, Any] = {}
    here = evaluation.engine.here
    device = select_device(evaluation.device if here else "cpu")
    data, protocol = question.resolve(model.metadata(device, kept))
    evaluation.selection.check(protocol, data.name)
    model.check(data.name)
    dataset = data.load(kept)
    title = model.load(dataset, device, kept).name
    job = evaluation_job(evaluation, model, data, protocol, runs, title)
    if part is not None:
        measure_part(job.shards(kept), part)
        print(f"shards of part {part.number} of {part.of}: {job.store}")
        return []
    measurements = job.result(kept).measurements
    subject = model.load(dataset, device, kept)
    if json_file is not None:
        write_json(json_file, _result(subject, dataset, protocol, measurements))
    _print_result(subject, dataset, protocol, measurements, runs)
    return failed_metrics(subject.name, measurements)


def image_size(overrides: Sequence[str]) -> int | None:
    """Return ``data.size``, the one setting that an evaluation without a training takes, in pixels."""
    changed = recipes.changes(None, overrides)
    for text in recipes.flat(changed):
        key = text.partition("=")[0]
        if key not in ("data", "data.size"):
            raise InputError(f'evaluate takes --set data.size=N and no other setting, not "{key}".')
    return overlay(DataConfig(), changed.get("data", {}), "data").size


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
    print(f"outcomes per image: {runs / STORE}")
