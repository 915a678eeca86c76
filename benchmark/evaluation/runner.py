"""Evaluation: every metric of a protocol on one subject, each shard computed once and kept."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import nn

from benchmark.evaluation.parts import Part, PartDone
from benchmark.evaluation.selection import WHOLE, Selection
from benchmark.evaluation.shards import Result, Shards
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement, pack
from benchmark.results.significance import wilson
from benchmark.results.store import SaveError, Store, key
from benchmark.specs import registry
from benchmark.specs.protocol import Protocol
from methods.data import Dataset
from methods.errors import InputError
from methods.primitives.modes import frozen
from methods.training.heap import keep_freed_memory
from methods.training.progress import progress as shown


def evaluate(
    subject: Subject,
    dataset: Dataset,
    protocol: Protocol,
    *,
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    store: Store,
    surrogate: Subject | None = None,
    progress: bool = True,
) -> dict[str, Measurement]:
    """Measure a subject on the test split.

    The model is frozen, in eval mode and float32 meanwhile, and ends as it began. What the store holds is not
    computed again; where work was interrupted it goes on, with identical numbers.

    Args:
        subject: the model.
        dataset: its test split is measured, in order; starts of generation are fitted to its training split.
        protocol: says how.
        metrics: some of the protocol's metrics; None: all.
        limit: measure only the first so many images.
        batch_size: images a forward pass; None: a whole shard. It may move single verdicts by rounding.
        store: keeps shards and measurements.
        surrogate: where transfer attacks are made; None: the reference network of the data set.
        progress: report on stderr: a bar with an ETA on a terminal, a line per finished metric anywhere.

    Returns:
        Metric -> measurement, in the order of the runs. A metric that raises gives a failed measurement with
        its error, and the rest is measured all the same.

    Raises:
        InputError: the subject, data set, protocol or an argument do not fit each other.
        SaveError: a result cannot be written.
    """
    selection = Selection(metrics, limit, batch_size)
    return measure(prepare(subject, dataset, protocol, selection, store=store, surrogate=surrogate), progress)


def prepare(
    subject: Subject,
    dataset: Dataset,
    protocol: Protocol,
    selection: Selection = WHOLE,
    *,
    store: Store,
    surrogate: Subject | None = None,
) -> list[Shards]:
    """Return what each metric is to be given, in the order of the runs; errors as for :func:`evaluate`."""
    selection.check(protocol, dataset.name)
    _refuse_misfit(subject, dataset)
    keep_freed_memory(subject.device)
    wanted, n = selection.names(protocol), selection.images(len(dataset.test))
    for name in wanted:
        if (check := getattr(registry.get(name), "check", None)) is not None:
            check(subject)
    images, digest, split = dataset.test.to(subject.device), dataset.test.digest, selection.batch_size
    whole = Shards("", subject, images, digest, protocol, n, store, split, dataset=dataset, surrogate=surrogate)
    # Some metrics are content with the first images.
    most = {name: getattr(protocol.config(name), "images", n) for name in wanted}
    return [replace(whole, metric=name, n=min(n, most[name])) for name in wanted]


def pending(todo: Sequence[Shards]) -> int:
    """Return the number of shards, over all metrics, of the measurements that are not in the store yet."""
    return sum(len(data) for data in todo if data.store.load_measurement(data.identity, data.n) is None)


def measure(todo: Sequence[Shards], progress: bool = True) -> dict[str, Measurement]:
    """Return the measurement of each metric that :func:`prepare` prepared; see :func:`evaluate`."""
    results: dict[str, Measurement] = {}
    for data in todo:
        measurement = data.store.load_measurement(data.identity, data.n)
        if measurement is None:
            measurement = _measure(data, progress)
        results[data.metric] = _with_verdicts(measurement, data.store)
        if progress:
            sys.stderr.write(_line(measurement))
    return _cross_checked(results, todo[0].store) if todo else {}


def measure_part(todo: Sequence[Shards], part: Part, advance: Callable[[], object] = lambda: None) -> None:
    """Measure and store the shards of a part, for a :func:`measure` that comes later.

    Args:
        todo: from :func:`prepare`.
        part: which shards.
        advance: called after each shard of each metric.

    Raises:
        SaveError: an outcome cannot be written.
    """
    for data in todo:
        if data.store.load_measurement(data.identity, data.n) is not None:
            continue
        own = replace(data, part=part, advance=lambda _: advance())
        with exact(data.subject.model):
            try:
                registry.get(data.metric).measure(own)
            except PartDone:
                continue
            except SaveError:
                raise
            except Exception as error:
                # The later measure() meets it again, and records it as a failure.
                print(f"{data.metric}: {type(error).__name__}: {error}", file=sys.stderr)


def _refuse_misfit(subject: Subject, dataset: Dataset) -> None:
    """Refuse a model for other images or classes, and a data set without test images."""
    if subject.num_classes != dataset.num_classes or subject.image_shape != tuple(dataset.image_shape):
        raise InputError(
            f"{subject.name} takes images {list(subject.image_shape)} of {subject.num_classes} classes, but "
            f"{dataset.name} has images {list(dataset.image_shape)} of {dataset.num_classes}."
        )
    if not len(dataset.test):
        raise InputError(f"The test split of {dataset.name} is empty: there is nothing to measure.")


def _measure(data: Shards, progress: bool) -> Measurement:
    module, n = registry.get(data.metric), data.n
    start = time.perf_counter()
    try:
        with ExitStack() as stack:
            stack.enter_context(exact(data.subject.model))
            if progress and sys.stderr.isatty():
                data = replace(data, advance=stack.enter_context(shown(data.metric, len(data))))
            measurement = module.measure(data)
    except SaveError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        return Measurement(
            metric=data.metric,
            version=module.VERSION,
            status="failed",
            error=text if isinstance(error, InputError) else f"{type(error).__name__}: {text}",
            n=n,
            seconds=time.perf_counter() - start,
            config=data.protocol.config(data.metric).model_dump(mode="json"),
            key=key(data.identity | {"n": n}),
        )
    data.store.save_measurement(data.identity, measurement)
    return measurement


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Freeze the model in eval mode, full float32 and deterministic kernels; undo all of it afterwards."""
    attributes = [vars(module) for module in model.modules()]
    lowered = [(own, own["autocast"]) for own in attributes if isinstance(own.get("autocast"), torch.dtype)]
    matmul = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    try:
        torch.set_float32_matmul_precision("highest")
        for own, _ in lowered:
            own["autocast"] = None
        with (
            frozen(model),
            cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        for own, dtype in lowered:
            own["autocast"] = dtype


def _with_verdicts(measurement: Measurement, store: Store) -> Measurement:
    """Add the outcome per image behind each accuracy, and the accuracy's confidence interval."""
    module = registry.get(measurement.metric)
    samples = store.samples(measurement)
    if measurement.status == "failed" or samples is None or not hasattr(module, "verdicts"):
        return measurement
    values, packed = dict(measurement.values), {}
    for name, correct in module.verdicts(samples).items():
        packed[name] = pack(correct)
        values[f"{name}_low"], values[f"{name}_high"] = wilson(int(correct.sum()), len(correct))
    return measurement.model_copy(update={"values": values, "verdicts": packed})


def _cross_checked(results: dict[str, Measurement], store: Store) -> dict[str, Measurement]:
    """Let each metric that has a hook for it add what the results of others say about its own."""
    found = {
        name: Result(measurement, store.samples(measurement))
        for name, measurement in results.items()
        if measurement.status == "done"
    }
    for name in found:
        if (cross_check := getattr(registry.get(name), "cross_check", None)) is not None:
            results = results | {name: cross_check(found)}
    return results


def _line(measurement: Measurement) -> str:
    if measurement.status == "failed":
        return f"{measurement.metric}: failed: {measurement.error}\n"
    column = next(iter(registry.get(measurement.metric).COLUMNS.values()))
    return f"{measurement.metric}: {column.text(measurement.values)} (n={measurement.n}, {measurement.seconds:.1f} s)\n"
