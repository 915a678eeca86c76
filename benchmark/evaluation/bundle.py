"""Evidence bundles: the outcomes behind an entry's accuracies, and :func:`verify`, which recomputes them from it.

A bundle is one npz file beside the entries. It holds the outcome per image of the clean metric and of every attack that
keeps evidence (:mod:`benchmark.evaluation.evidence`), the images that the attack broke, and a header that says which
weights, images and numbers it belongs to. The weights lie beside it where they are small.

What that shows and what it does not, says :data:`MEANING`. Digests protect against damage and confusion alone, since
whoever changes an entry can change its bundle as well. What nobody can make up is an image that the model gets wrong;
and an accuracy that is claimed too high is refuted by a stronger attack only.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.evaluation import evidence
from benchmark.evaluation.runner import exact
from benchmark.evaluation.shards import percent
from benchmark.models.subject import Subject, from_checkpoint
from benchmark.results.entry import Entry, Measurement, read_entry, unpack
from benchmark.results.layout import bundle_path, entry_path, weights_path
from benchmark.results.store import Arrays, Store
from benchmark.specs import registry
from benchmark.specs.schema import Strict, checked
from methods.data import Dataset, load
from methods.errors import InputError
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import FILES
from methods.training.checkpoint import write as write_file

FORMAT = 1
MAX_WEIGHTS = 1_000_000
"""Bytes. Larger weights are too much for a repository that keeps every entry's; they stay with their run."""
ROUNDING = 1e-4
"""Margin (:func:`evidence.logit_margin`) below which another machine may decide otherwise: a tenth of the one that
perturbations in bytes have, and fifty times what kernels and float64 were seen to change on digits (2e-6)."""
CLAIMED = ("clean", "pgd20", "autoattack")
"""Metrics whose accuracy has to have its outcomes in the bundle."""
_ATTACKED_ALONE = ("pgd20",)
"""Metrics that judge the attacked image alone, which may be right where the clean one is wrong."""
MEANING = (
    "Proven, by these weights on these images: every clean verdict, and that each image counted as broken is broken by "
    "an image in [0, 1] within eps. Not proven: that the other images are robust, only that these attacks failed on "
    "them, so that an accuracy under attack is an upper bound of the robust accuracy; nor which attack of a cascade "
    "came first."
)
_NO_IDENTITY = ("measurements", "training", "provenance", "overrides", "evidence")
"""Records of an entry that say nothing about what was measured, and may be completed later."""
_BATCH = 100


class Header(Strict):
    """What a bundle says of itself."""

    format: list[int]
    """:data:`FORMAT` and :data:`evidence.FORMAT`."""
    weights: str
    """SHA-256 of the weights."""
    weights_file: str
    """SHA-256 of the file of the weights, which also says what function they are the weights of."""
    identity: dict[str, Any]
    """What the entry says of subject, data, threat model and protocol."""
    measurements: dict[str, str]
    """Metric -> SHA-256 of its measurement in the entry."""


@dataclass(frozen=True)
class Line:
    """One check of an entry; ``passed`` is None where there is nothing to check it with."""

    check: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """What the checks of an entry found."""

    entry: Path
    lines: list[Line]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(line.passed is not False for line in self.lines)


def weights_file(entry_file: Path, entry: Entry, checkpoint: Path | None) -> Path:
    """Return the file of an entry's weights: the copy beside the entries, or a checkpoint's, which may be a run folder.

    Raises:
        InputError: there is none.
    """
    file = checkpoint or weights_path(entry_file.parents[1], entry)
    if file.is_dir():
        file = file / FILES["last" if entry.subject.which == "last" else "best"]
    if not file.is_file():
        hint = "" if checkpoint else "; name the file or run folder with --checkpoint"
        raise InputError(f"The weights of {entry_file} are not at {file}{hint}.")
    return file


def write(leaderboards: Path, entry: Entry, store: Store, checkpoint: Path) -> str | None:
    """Write the bundle of an entry, and a copy of its weights where they take at most :data:`MAX_WEIGHTS`.

    The same outcomes give the same bytes.

    Args:
        leaderboards: where entries are kept.
        entry: as it is to be written; its ``evidence`` does not matter.
        store: holds the outcomes per image of its measurements.
        checkpoint: the weights file that was measured.

    Returns:
        The bundle's SHA-256, for the entry's ``evidence``; None, and nothing is written, for an entry of an ablation
        and for one without outcomes.

    Raises:
        InputError: a file cannot be read or written.
    """
    outcomes = {} if entry.ablation else {name: store.samples(found) for name, found in entry.measurements.items()}
    arrays = {
        f"{metric}.{name}": array
        for metric, samples in sorted(outcomes.items())
        if samples is not None and (metric == "clean" or "encoding" in samples)
        for name, array in _compact(samples).items()
    }
    if not arrays:
        return None
    place = leaderboards / entry_path(Path(), entry)
    kept = weights_path(place.parents[1], entry)
    if _holds(kept, entry):
        # Another recipe may have made the same weights, and its file is what its own entry names.
        checkpoint = kept
    # As a reader of the entry will see it: JSON knows no tuples, and a validated record no integers among floats.
    header = _header(Entry.model_validate_json(entry.model_dump_json()), _file_digest(checkpoint))
    content = io.BytesIO()
    text = np.frombuffer(header.model_dump_json().encode(), np.uint8)
    np.savez_compressed(content, allow_pickle=False, header=text, **arrays)
    write_file(bundle_path(place), lambda temporary: temporary.write_bytes(content.getvalue()))
    if checkpoint != kept and checkpoint.stat().st_size <= MAX_WEIGHTS:
        write_file(kept, lambda temporary: shutil.copyfile(checkpoint, temporary))
    return hashlib.sha256(content.getvalue()).hexdigest()


def _holds(file: Path, entry: Entry) -> bool:
    """Tell whether a file holds the weights of an entry."""
    if not file.is_file():
        return False
    try:
        return from_checkpoint(file, torch.device("cpu")).digest == entry.subject.weights_digest
    except InputError:
        return False


def _compact(samples: Arrays) -> Arrays:
    """Return the outcomes that are verdicts or classes, and the evidence of the broken images alone."""
    kept = {
        name: array if array.dtype == bool else array.astype(np.int16)
        for name, array in samples.items()
        if array.dtype.kind in "bi" and name not in ("index", "encoding", "delta")
    }
    for name, encoding in (("delta", evidence.BYTES), ("exact", evidence.EXACT)) if "encoding" in samples else ():
        index = np.flatnonzero(samples["encoding"] == encoding).astype(np.int32)
        kept |= {f"{name}_index": index, name: samples[name][index]}
    return kept


def _header(entry: Entry, weights_file: str) -> Header:
    # Without defaults, so that a field added to the schema changes nothing.
    content = entry.model_dump(mode="json", exclude_defaults=True)
    digests = {
        name: hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        for name, found in content["measurements"].items()
    }
    identity = {name: value for name, value in content.items() if name not in _NO_IDENTITY}
    return Header(
        format=[FORMAT, evidence.FORMAT],
        weights=entry.subject.weights_digest,
        weights_file=weights_file,
        identity=identity,
        measurements=digests,
    )


def _file_digest(path: Path) -> str:
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def find(path: Path) -> list[Path]:
    """Return the entries at or below a path that name a bundle, sorted.

    Raises:
        InputError: there is none, or an entry is malformed.
    """
    if path.is_file():
        return [path]
    found = [file for file in sorted(path.glob("**/entries/*.json")) if read_entry(file).evidence is not None]
    if not found:
        raise InputError(f"There is no entry with an evidence bundle at {path}.")
    return found


def verify_all(
    path: Path, *, checkpoint: Path | None = None, device: torch.device | None = None, data: Path = Path("data")
) -> Iterator[Verification]:
    """Verify an entry, or every one below a folder; arguments as :func:`verify`.

    One of several that cannot be checked is a verification that failed, so that the others are checked.

    Raises:
        InputError: there is no entry, the only one cannot be checked, or a checkpoint is given for several.
    """
    files = find(path)
    if checkpoint is not None and len(files) > 1:
        raise InputError(f"A checkpoint belongs to one entry, and there are {len(files)} at {path}.")
    loaded: dict[tuple[str, int | None], Dataset] = {}
    for file in files:
        try:
            yield verify(file, checkpoint=checkpoint, device=device, data=data, loaded=loaded)
        except InputError as error:
            if len(files) == 1:
                raise
            yield Verification(file, [Line("evidence", False, str(error))])


def verify(
    entry_file: Path,
    *,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
    data: Path = Path("data"),
    loaded: dict[tuple[str, int | None], Dataset] | None = None,
) -> Verification:
    """Recompute the accuracies of an entry from its bundle, its weights and the test images; see :data:`MEANING`.

    One forward pass of the clean images, and one of each attack's broken ones.

    Args:
        entry_file: the entry.
        checkpoint: its weights file or run folder; None: the copy beside the entries.
        device: where the model runs; None: the CPU.
        data: folder of downloaded data sets.
        loaded: data sets by name and size, which is added to.

    Returns:
        What each check found; after one without which the next ones mean nothing, there are none.

    Raises:
        InputError: what is needed is missing, truncated or foreign, or the bundle is another model's.
    """
    entry = read_entry(entry_file)
    bundle, lines = _opened(entry_file, entry)
    if bundle is None or not lines[-1].passed:
        return Verification(entry_file, lines)
    wrong = _differences(bundle.header, entry)
    text = f"is not what the bundle was written for: {', '.join(wrong)}" if wrong else "is the one of the bundle"
    lines.append(Line("entry", not wrong, text))
    if not all(name in entry.measurements for name in wrong):
        return Verification(entry_file, lines)
    subject, line = _subject(entry_file, entry, bundle.header, checkpoint, device or torch.device("cpu"))
    lines.append(line)
    if subject is None:
        return Verification(entry_file, lines)
    dataset = measured_on(entry, data, {} if loaded is None else loaded)
    if (subject.num_classes, subject.image_shape) != (dataset.num_classes, tuple(dataset.image_shape)):
        raise InputError(f"The weights of {entry_file} are for other images or classes than {dataset.name} has.")
    lines.append(Line("data", True, f"{dataset.name}, {entry.data.n} of {len(dataset.test)} test images"))
    try:
        with torch.no_grad(), exact(subject.model):
            lines += _claims(entry, bundle, subject, dataset)
    except FloatingPointError as error:
        raise InputError(f"The model of {entry_file} cannot be checked: {error}.") from error
    return Verification(entry_file, lines)


@dataclass(frozen=True)
class _Bundle:
    path: Path
    header: Header
    outcomes: dict[str, Arrays]
    """By metric."""


def _opened(entry_file: Path, entry: Entry) -> tuple[_Bundle | None, list[Line]]:
    path = bundle_path(entry_file)
    if entry.evidence is None:
        raise InputError(f"The entry {entry_file} names no evidence bundle.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The bundle {path} cannot be read: {error}.") from error
    same = hashlib.sha256(content).hexdigest() == entry.evidence
    try:
        bundle = _parsed(path, content)
    except InputError:
        # A truncated archive has no end; one that has it and does not fit the digest was changed inside.
        if same or not zipfile.is_zipfile(io.BytesIO(content)):
            raise
        bundle = None
    if bundle is not None and bundle.header.weights != entry.subject.weights_digest:
        its, own = bundle.header.weights[:16], entry.subject.weights_digest[:16]
        raise InputError(f"The bundle {path} is of another model, of weights {its}, and the entry is of {own}.")
    found = f"{len(content):,} bytes" if same else "SHA-256 is not the one in the entry: one of them was changed"
    return bundle, [Line("bundle", same, found)]


def _parsed(path: Path, content: bytes) -> _Bundle:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes())
    except Exception as error:  # whatever zipfile, zlib and numpy raise on bytes that nobody wrote
        raise InputError(f"The bundle {path} is truncated or damaged: {type(error).__name__}: {error}.") from error
    header = checked(Header, header, f"The bundle {path}")
    if header.format != (known := [FORMAT, evidence.FORMAT]):
        raise InputError(f"The bundle {path} has the format {header.format}, and this version reads {known}.")
    outcomes: dict[str, Arrays] = {}
    for name, array in arrays.items():
        metric, _, outcome = name.partition(".")
        outcomes.setdefault(metric, {})[outcome] = array
    return _Bundle(path, header, outcomes)


def _differences(header: Header, entry: Entry) -> list[str]:
    """Return the fields, and the metrics, in which an entry is not the one that the bundle was written for."""
    expected = _header(entry, header.weights_file)
    pairs = [(header.identity, expected.identity), (header.measurements, expected.measurements)]
    return [name for here, there in pairs for name in sorted(here | there) if here.get(name) != there.get(name)]


def _subject(
    entry_file: Path, entry: Entry, header: Header, checkpoint: Path | None, device: torch.device
) -> tuple[Subject | None, Line]:
    file = weights_file(entry_file, entry, checkpoint)
    if _file_digest(file) != header.weights_file:
        return None, Line("weights", False, f"{file} is not the file that was measured, or was changed")
    subject = from_checkpoint(file, device)
    same = subject.digest == entry.subject.weights_digest
    text = f"{entry.subject.weights_digest[:16]}, {subject.parameters:,} parameters"
    return (subject if same else None), Line("weights", same, text if same else f"{file} holds other weights")


def measured_on(entry: Entry, root: Path, loaded: dict[tuple[str, int | None], Dataset]) -> Dataset:
    """Return the data set of an entry.

    Args:
        entry: the entry.
        root: folder of downloaded data sets.
        loaded: data sets by name and size, which is added to.

    Raises:
        InputError: it cannot be had, or its test images are not those that were measured.
    """
    size = ((entry.training.get("settings") or {}).get("data") or {}).get("size")
    key = entry.dataset, size
    if key not in loaded:
        loaded[key] = load(entry.dataset, root=root, size=size)
    dataset = loaded[key]
    if dataset.test.digest != entry.data.digests.get("test"):
        raise InputError(f"The test images of {entry.dataset} here are not those that were measured.")
    return dataset


@dataclass(frozen=True)
class _Test:
    """The first n test images, and what the model says of them."""

    x: Tensor
    y: Tensor
    logits: Tensor
    subject: Subject
    threat: ThreatModel


def _claims(entry: Entry, bundle: _Bundle, subject: Subject, dataset: Dataset) -> Iterator[Line]:
    """Yield the checks of each metric."""
    images = dataset.test.select(slice(0, entry.data.n)).to(subject.device)
    x = images.unit()
    test = _Test(x, images.labels, subject.logits(x, _BATCH), subject, ThreatModel.parse(entry.threat))
    done = {name: found for name, found in entry.measurements.items() if found.status == "done"}
    for metric, measurement in done.items():
        if metric in bundle.outcomes:
            outcomes = bundle.outcomes[metric]
            try:
                _check_form(outcomes, test)
                verdicts = {name: np.asarray(right) for name, right in registry.get(metric).verdicts(outcomes).items()}
            except (AttributeError, KeyError, ValueError) as error:
                raise InputError(f"The bundle {bundle.path} is malformed: {metric}: {error}.") from error
            if "delta" in outcomes:
                yield from _broken(metric, outcomes, test)
                yield _rest(metric, outcomes, verdicts, test)
            else:
                yield _predictions(metric, outcomes, test)
            yield _accuracies(metric, measurement, verdicts)
        elif metric in CLAIMED:
            yield Line(metric, False, "the entry has its accuracy, but the bundle has no outcomes of it")
    if others := [metric for metric in done if metric not in (*CLAIMED, *bundle.outcomes)]:
        yield Line("other metrics", None, f"not recomputed: {', '.join(others)}")


def _check_form(outcomes: Arrays, test: _Test) -> None:
    """Refuse arrays that :func:`write` does not make: KeyError or ValueError."""
    n, classes = test.logits.shape
    forms = {"delta": np.int8, "exact": np.float32} if "delta" in outcomes else {}
    for name, dtype in forms.items():
        index, kept = outcomes[f"{name}_index"], outcomes[name]
        if kept.dtype != dtype or kept.shape != (index.size, *test.x.shape[1:]) or index.dtype != np.int32:
            raise ValueError(f"{name} has the type {kept.dtype} and the shape {list(kept.shape)}")
        if index.ndim != 1 or not bool(((index >= 0) & (index < n)).all()):
            raise ValueError(f"{name} is not of the {n} images measured")
    for name in outcomes.keys() - {part for form in forms for part in (form, f"{form}_index")}:
        if outcomes[name].dtype not in (bool, np.int16) or len(outcomes[name]) != n:
            raise ValueError(f"{name} is not of {n} images")
    if not forms and not bool(((outcomes["predicted"] >= 0) & (outcomes["predicted"] < classes)).all()):
        raise ValueError("there is no such class as one predicted")


def _predictions(metric: str, outcomes: Arrays, test: _Test) -> Line:
    claimed = torch.from_numpy(outcomes["predicted"]).to(test.y)
    margin = evidence.logit_margin(test.logits, claimed)
    text = f"images are predicted as here{_rounded(margin)}, and judged so"
    judged = torch.from_numpy(outcomes["correct"]).to(test.y.device) == (claimed == test.y)
    return _counted(f"{metric}: predictions", (margin >= -ROUNDING) & judged, text)


def _broken(metric: str, outcomes: Arrays, test: _Test) -> Iterator[Line]:
    """Yield the checks of the images that a metric keeps: their range, their distance and their class."""
    index = torch.from_numpy(_kept(outcomes)).to(test.y)
    x, y, bytes_ = test.x[index], test.y[index], len(outcomes["delta"])
    delta, exact = (torch.from_numpy(outcomes[name]).to(x.device) for name in ("delta", "exact"))
    x_adv = torch.cat([evidence.shifted(x[:bytes_], delta, test.threat), exact])
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)  # so that NaN is outside
    yield _counted(f"{metric}: range", inside, "broken images lie in [0, 1]")
    radius, distance = test.threat.radius, test.threat.distance(x_adv.double(), x.double())
    text = f"lie within {radius:.6g}, the farthest at {max(distance.tolist(), default=0):.6g}"
    yield _counted(f"{metric}: norm", distance <= radius + evidence.SLACK, text)
    if len(x) and bool(inside.all()):
        margin = evidence.margin(test.subject, x_adv, y, _BATCH)
        yield _counted(f"{metric}: broken", margin <= ROUNDING, f"are misclassified{_rounded(margin)}")


def _rest(metric: str, outcomes: Arrays, verdicts: dict[str, np.ndarray], test: _Test) -> Line:
    """Check that exactly the images which are kept, or wrong when clean, count as broken."""
    claimed = _worst(verdicts)
    broken = np.zeros(len(claimed), bool)
    broken[_kept(outcomes)] = True
    margin = evidence.logit_margin(test.logits, test.y).cpu().numpy()
    right, wrong = margin > ROUNDING, margin < -ROUNDING
    alone = metric in _ATTACKED_ALONE
    unproven, contrary = ~claimed & ~broken & right, claimed & (broken if alone else broken | wrong)
    if "clean_accuracy" in verdicts:
        contrary |= np.where(verdicts["clean_accuracy"], wrong, right)
    if unproven.any() or contrary.any():
        text = f"{unproven.sum()} images count as broken without evidence, and {contrary.sum()} against the evidence"
        return Line(f"{metric}: the rest", False, text)
    text = f"{(~broken).sum()} others: {(~broken & right).sum()} right when clean, {(~broken & wrong).sum()} wrong"
    if near := int((~broken & ~right & ~wrong).sum()):
        text += f", {near} decided by rounding here"
    if spared := int((claimed & wrong).sum()):
        text += f"; {spared} of these count as right, since {metric} judges the attacked image alone"
    return Line(f"{metric}: the rest", True, text)


def _accuracies(metric: str, measurement: Measurement, verdicts: dict[str, np.ndarray]) -> Line:
    """Hold the accuracies and the verdicts in the entry against those of the bundle."""
    wrong: list[str] = []
    for name, right in verdicts.items():
        if measurement.values.get(name) != percent(right):
            wrong.append(f"{name} is {percent(right):.4f} %, and not {measurement.values.get(name)}")
        packed = measurement.verdicts.get(name)
        if packed is None or not np.array_equal(unpack(packed, len(right)), right):
            wrong.append(f"{name} has other verdicts")
    worst = _worst(verdicts)
    text = "; ".join(wrong) or f"{percent(worst):.2f} %: {worst.sum()} of {len(worst)}"
    return Line(f"{metric}: accuracy", not wrong, text)


def _kept(outcomes: Arrays) -> np.ndarray:
    return np.concatenate([outcomes["delta_index"], outcomes["exact_index"]])


def _worst(verdicts: dict[str, np.ndarray]) -> np.ndarray:
    return np.logical_and.reduce(list(verdicts.values()))


def _counted(check: str, passed: Tensor, text: str) -> Line:
    return Line(check, bool(passed.all()), f"{int(passed.sum())} of {len(passed)} {text}")


def _rounded(margin: Tensor) -> str:
    near = int((margin.abs() <= ROUNDING).sum())
    return f", {near} decided by rounding here" if near else ""
