"""Verification: recomputing an entry's accuracies from its bundle, its weights and the test images.

What that shows and what it does not, says :data:`MEANING`. Digests protect against damage and confusion alone, since
whoever changes an entry can change its bundle as well. What nobody can make up is an image that the model gets wrong;
and an accuracy that is claimed too high is refuted by a stronger attack only.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.evaluation import evidence
from benchmark.evaluation.bundle import Bundle, Header, differences, file_digest, parse, weights_file
from benchmark.evaluation.runner import exact
from benchmark.evaluation.shards import percent
from benchmark.models.subject import Subject, from_checkpoint
from benchmark.results.entry import Entry, Measurement, read_entry, unpack
from benchmark.results.layout import bundle_path
from benchmark.results.store import Arrays
from benchmark.specs import registry
from methods.data import Dataset, load
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

ROUNDING = 1e-4
"""Margin (:func:`evidence.logit_margin`) below which another machine may decide otherwise: a tenth of the one that
perturbations in bytes have, and fifty times what kernels and float64 were seen to change on digits (2e-6)."""
CLAIMED = ("clean", "pgd20", "autoattack")
"""Metrics whose accuracy has to have its outcomes in the bundle."""
_ATTACKED_ALONE = ("pgd20",)
"""Metrics that classify the attacked image alone, which may be right where the clean one is wrong."""
MEANING = (
    "Proven, by these weights on these images: every clean verdict, and that each image counted as broken is broken by "
    "an image in [0, 1] within eps. Not proven: that the other images are robust, only that these attacks failed on "
    "them, so that an accuracy under attack is an upper bound of the robust accuracy; nor which attack of a cascade "
    "came first."
)
_BATCH = 100


@dataclass(frozen=True)
class CheckResult:
    """The result of one check of an entry."""

    check: str
    passed: bool | None
    """None where there is nothing to check it with."""
    detail: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAILED", None: "not checked"}[self.passed]
        return f"{mark}: {self.check}: {self.detail}"


@dataclass(frozen=True)
class Verification:
    """What the checks of an entry found."""

    entry: Path
    lines: list[CheckResult]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(line.passed is not False for line in self.lines)


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
            yield Verification(file, [CheckResult("evidence", False, str(error))])


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
    wrong = differences(bundle.header, entry)
    text = f"is not what the bundle was written for: {', '.join(wrong)}" if wrong else "is the one of the bundle"
    lines.append(CheckResult("entry", not wrong, text))
    if not all(name in entry.measurements for name in wrong):
        return Verification(entry_file, lines)
    subject, line = _subject(entry_file, entry, bundle.header, checkpoint, device or torch.device("cpu"))
    lines.append(line)
    if subject is None:
        return Verification(entry_file, lines)
    dataset = measured_on(entry, data, {} if loaded is None else loaded)
    if (subject.num_classes, subject.image_shape) != (dataset.num_classes, tuple(dataset.image_shape)):
        raise InputError(f"The weights of {entry_file} are for other images or classes than {dataset.name} has.")
    lines.append(CheckResult("data", True, f"{dataset.name}, {entry.data.n} of {len(dataset.test)} test images"))
    try:
        with torch.no_grad(), exact(subject.model):
            lines += _claims(entry, bundle, subject, dataset)
    except FloatingPointError as error:
        raise InputError(f"The model of {entry_file} cannot be checked: {error}.") from error
    return Verification(entry_file, lines)


def _opened(entry_file: Path, entry: Entry) -> tuple[Bundle | None, list[CheckResult]]:
    path = bundle_path(entry_file)
    if entry.evidence is None:
        raise InputError(f"The entry {entry_file} names no evidence bundle.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The bundle {path} cannot be read: {error}.") from error
    same = hashlib.sha256(content).hexdigest() == entry.evidence
    try:
        bundle = parse(path, content)
    except InputError:
        # A truncated archive has no end; one that has it and does not fit the digest was changed inside.
        if same or not zipfile.is_zipfile(io.BytesIO(content)):
            raise
        bundle = None
    if bundle is not None and bundle.header.weights != entry.subject.weights_digest:
        its, own = bundle.header.weights[:16], entry.subject.weights_digest[:16]
        raise InputError(f"The bundle {path} is of another model, of weights {its}, and the entry is of {own}.")
    found = f"{len(content):,} bytes" if same else "SHA-256 is not the one in the entry: one of them was changed"
    return bundle, [CheckResult("bundle", same, found)]


def _subject(
    entry_file: Path, entry: Entry, header: Header, checkpoint: Path | None, device: torch.device
) -> tuple[Subject | None, CheckResult]:
    file = weights_file(entry_file, entry, checkpoint)
    if file_digest(file) != header.weights_file:
        return None, CheckResult("weights", False, f"{file} is not the file that was measured, or was changed")
    subject = from_checkpoint(file, device)
    same = subject.digest == entry.subject.weights_digest
    text = f"{entry.subject.weights_digest[:16]}, {subject.parameters:,} parameters"
    return (subject if same else None), CheckResult("weights", same, text if same else f"{file} holds other weights")


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


def _claims(entry: Entry, bundle: Bundle, subject: Subject, dataset: Dataset) -> Iterator[CheckResult]:
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
            yield CheckResult(metric, False, "the entry has its accuracy, but the bundle has no outcomes of it")
    if others := [metric for metric in done if metric not in (*CLAIMED, *bundle.outcomes)]:
        yield CheckResult("other metrics", None, f"not recomputed: {', '.join(others)}")


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


def _predictions(metric: str, outcomes: Arrays, test: _Test) -> CheckResult:
    claimed = torch.from_numpy(outcomes["predicted"]).to(test.y)
    margin = evidence.logit_margin(test.logits, claimed)
    text = f"images are predicted as here{_rounded(margin)}, and count as such"
    counted = torch.from_numpy(outcomes["correct"]).to(test.y.device) == (claimed == test.y)
    return _counted(f"{metric}: predictions", (margin >= -ROUNDING) & counted, text)


def _broken(metric: str, outcomes: Arrays, test: _Test) -> Iterator[CheckResult]:
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


def _rest(metric: str, outcomes: Arrays, verdicts: dict[str, np.ndarray], test: _Test) -> CheckResult:
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
        return CheckResult(f"{metric}: the rest", False, text)
    text = f"{(~broken).sum()} others: {(~broken & right).sum()} right when clean, {(~broken & wrong).sum()} wrong"
    if near := int((~broken & ~right & ~wrong).sum()):
        text += f", {near} decided by rounding here"
    if spared := int((claimed & wrong).sum()):
        text += f"; {spared} of these count as right, since {metric} classifies the attacked image alone"
    return CheckResult(f"{metric}: the rest", True, text)


def _accuracies(metric: str, measurement: Measurement, verdicts: dict[str, np.ndarray]) -> CheckResult:
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
    return CheckResult(f"{metric}: accuracy", not wrong, text)


def _kept(outcomes: Arrays) -> np.ndarray:
    return np.concatenate([outcomes["delta_index"], outcomes["exact_index"]])


def _worst(verdicts: dict[str, np.ndarray]) -> np.ndarray:
    return np.logical_and.reduce(list(verdicts.values()))


def _counted(check: str, passed: Tensor, text: str) -> CheckResult:
    return CheckResult(check, bool(passed.all()), f"{int(passed.sum())} of {len(passed)} {text}")


def _rounded(margin: Tensor) -> str:
    near = int((margin.abs() <= ROUNDING).sum())
    return f", {near} decided by rounding here" if near else ""
