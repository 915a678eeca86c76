"""Why a number differs from a paper's: a walk from the evaluator of its authors to the standard protocol.

The walk changes one thing at a time, in a fixed order, and measures the same checkpoint on the same images at every
stop. What each change contributes is the difference of two neighbouring stops, so that contributions sum to the whole
gap. In another order they could be shared out otherwise; the sum could not.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmark.leaderboard.figures.rows import waterfall
from benchmark.leaderboard.render import Table
from benchmark.models.spec import ModelSpec
from benchmark.results.entry import Measurement, ProtocolInfo, unpack
from benchmark.results.layout import folder_name
from benchmark.results.significance import difference
from benchmark.runs.evaluate import Question
from benchmark.runs.jobs import Evaluation, evaluation_job
from benchmark.specs.protocol import Protocol
from benchmark.specs.protocol import load as load_protocol
from benchmark.specs.schema import Strict
from methods.errors import InputError
from methods.files import write_text
from methods.primitives.threat import ThreatModel
from methods.training.devices import select_device
from methods.training.provenance import provenance

NOISY, PLAIN = "ebjdat-release-v1", "ebjdat-release-sadajem-v1"
"""The released evaluators of EB-JDAT: of its variants on JEM and JEM++, and on SADA-JEM."""
Accuracy = Literal["clean", "pgd20", "autoattack"]
WALKED: tuple[Accuracy, ...] = ("clean", "pgd20", "autoattack")
_CUSTOM = "autoattack_custom"
_TITLES = {"clean": "clean", "pgd20": "PGD-20", "autoattack": "AutoAttack"}
_LEFT_OUT = (
    "Not walked: the choice of the checkpoint (the authors keep the best accuracy on clean test images) and seeds from "
    "the clock. Contributions depend on the order of the walk, their sum does not."
)


@dataclass(frozen=True)
class Change:
    """One difference between the evaluators."""

    name: str
    """One or two words, for tables."""
    said: str
    """What it is changed from and to."""
    protocol: Protocol
    """What is measured after it: one difference fewer to the standard protocol."""
    metric: str


class Stop(Strict):
    """What was measured after one more change."""

    change: str
    """``released`` for the first."""
    said: str
    accuracy: float
    """Percent."""
    contribution: float
    """Percentage points: this accuracy minus that of the stop before; 0 for the first."""
    low: float
    high: float
    """95 % interval of the contribution, paired by image."""
    lost: int
    """Images that were right at the stop before and are not any more."""
    won: int
    """Images that were wrong at the stop before and are not any more."""
    metric: str
    key: str
    """Key of the measurement in the store."""


class Walk(Strict):
    """From the released evaluator to the standard protocol, for one kind of accuracy."""

    accuracy: Accuracy
    stops: list[Stop]

    @property
    def total(self) -> float:
        """The last accuracy minus the first, in percentage points."""
        return self.stops[-1].accuracy - self.stops[0].accuracy


class Gap(Strict):
    """What the differences between two evaluators contribute, for one checkpoint."""

    schema_version: Literal[1] = 1
    subject: str
    recipe: str | None
    seed: int | None
    which: str | None
    weights_digest: str
    dataset: str
    data_digest: str
    n: int
    of: int
    released: ProtocolInfo
    released_threat: str
    standard: ProtocolInfo
    standard_threat: str
    walks: list[Walk]
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """A file name without its ending; another checkpoint, protocol or number of images has another."""
        seed = [] if self.seed is None else [f"s{self.seed}"]
        parts = [self.dataset, self.subject, *seed, self.weights_digest[:8], self.released.hash[:8]]
        return folder_name("-".join([*parts, *([f"n{self.n}"] if self.n < self.of else [])]))

    @property
    def title(self) -> str:
        """One line: which checkpoint on which images."""
        part = f"the first {self.n} of {self.of}" if self.n < self.of else f"all {self.n}"
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.subject}{seed} on {self.dataset}, {part} test images"


def protocols(standard: Protocol, released: str) -> Protocol:
    """Return the released evaluator at the eps that it makes of the standard protocol's: half of it.

    Args:
        standard: the protocol at the end of the walk.
        released: an id; its protocol must measure a custom AutoAttack.

    Raises:
        InputError: no such protocol, it measures no custom AutoAttack, or the threat model is not Linf.
    """
    threat = ThreatModel.parse(standard.threat)
    if threat.norm != "Linf":
        raise InputError(f"The released evaluator attacks within Linf, not {standard.threat}.")
    found = load_protocol(released, str(ThreatModel("Linf", threat.eps * Fraction(1, 2))))
    for protocol, metrics in ((found, ("clean", "pgd20", _CUSTOM)), (standard, WALKED)):
        for metric in metrics:
            if metric not in protocol.metrics:
                raise InputError(f'The protocol "{protocol.id}" has no metric "{metric}": there is nothing to walk.')
    return found


def walk(released: Protocol, standard: Protocol, accuracy: str) -> Iterator[Change]:
    """Yield the stops of a walk, from the released evaluator to the standard protocol.

    Args:
        released: of :func:`protocols`.
        standard: the protocol at the end.
        accuracy: clean, pgd20 or autoattack.
    """
    metric = _CUSTOM if accuracy == "autoattack" else accuracy
    yield Change("released", f"{released.id}, eps {_eps(released)} in pixels", released, metric)
    at = released
    if released.noise != standard.noise:
        at = at.model_copy(update={"noise": standard.noise})
        said = f"Gaussian noise of {released.noise:g} on the test images -> {standard.noise:g}"
        yield Change("noise", said, standard if accuracy == "clean" else at, metric)
    if accuracy == "clean":
        return
    at = at.model_copy(update={"threat": standard.threat})
    yield Change("unit of eps", f"eps {_eps(released)} ({_eps(standard)} on [-1,1]) -> {_eps(standard)}", at, metric)
    for name, said, config in _settings(at, standard, accuracy):
        at = at.model_copy(update={"metrics": at.metrics | {metric: config}})
        yield Change(name, said, at, metric)
    if accuracy == "autoattack":
        yield Change("box of FAB", "FAB-T in the box [0,1] of [-1,1] -> AutoAttack standard", standard, accuracy)


def _settings(at: Protocol, standard: Protocol, accuracy: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, words and settings of each further change of an attack."""
    if accuracy == "pgd20":
        old, new = at.config("pgd20"), standard.config("pgd20")
        if old != new:
            said = f"PGD steps of {old.step_size:g} eps -> {new.step_size:g} eps"
            yield "step size", said, new.model_dump(mode="json")
        return
    config = at.config(_CUSTOM).model_dump(mode="json")
    if config["iterations"] != 100:
        said = f"{config['iterations']} iterations of APGD and FAB -> 100"
        config = config | {"iterations": 100}
        yield "iterations", said, config
    targeted = ["apgd_t" if name == "apgd_dlr" else name for name in config["attacks"]]
    if targeted != config["attacks"]:
        yield "targets", "untargeted APGD-DLR -> APGD-T, nine targets at most", config | {"attacks": targeted}


def _eps(protocol: Protocol) -> str:
    return protocol.threat.partition(":")[2]


def stops(changes: Sequence[Change], measured: Callable[[Change], Measurement]) -> list[Stop]:
    """Measure every stop of a walk.

    Raises:
        InputError: a measurement failed; the sentence has its error.
    """
    found: list[Stop] = []
    before: np.ndarray | None = None
    for change in changes:
        measurement = measured(change)
        if measurement.status == "failed":
            raise InputError(f"{change.metric} failed after the change of {change.name}: {measurement.error}")
        correct = unpack(measurement.verdicts["accuracy"], measurement.n)
        step = None if before is None else difference(correct[None], before[None])
        found.append(
            Stop(
                change=change.name,
                said=change.said,
                accuracy=100 * float(correct.mean()),
                contribution=0.0 if step is None else step.points,
                low=0.0 if step is None else step.low,
                high=0.0 if step is None else step.high,
                lost=0 if before is None else int((before & ~correct).sum()),
                won=0 if before is None else int((correct & ~before).sum()),
                metric=change.metric,
                key=measurement.key,
            )
        )
        before = correct
    return found


def lines(gap: Gap) -> Iterator[str]:
    """Yield the walk in words, a line a stop."""
    yield gap.title
    yield f"from {gap.released.id} ({gap.released_threat}) to {gap.standard.id} ({gap.standard_threat})"
    for each in gap.walks:
        yield f"{_TITLES[each.accuracy]}: {each.stops[0].accuracy:.2f} % as released"
        for stop in each.stops[1:]:
            yield f"  {stop.contribution:+7.2f} [{stop.low:+.2f}, {stop.high:+.2f}]  {stop.change}: {stop.said}"
        yield f"  {each.total:+7.2f} in all: {each.stops[-1].accuracy:.2f} % under the standard protocol"
    yield _LEFT_OUT


COLUMNS = ("accuracy", "change", "percent", "contribution", "interval", "lost", "won", "what")


def _rows(gap: Gap) -> list[list[str]]:
    rows: list[list[str]] = []
    for each in gap.walks:
        title = _TITLES[each.accuracy]
        for number, stop in enumerate(each.stops):
            moved = [f"{stop.contribution:+.2f}", f"[{stop.low:+.2f}, {stop.high:+.2f}]", str(stop.lost), str(stop.won)]
            rows.append(
                [title, stop.change, f"{stop.accuracy:.2f}", *(moved if number else ["-"] * len(moved)), stop.said]
            )
        rows.append([title, "total", f"{each.stops[-1].accuracy:.2f}", f"{each.total:+.2f}", "-", "-", "-", "-"])
    return rows


def write(gap: Gap, folder: Path) -> list[Path]:
    """Write a gap as JSON, Markdown, CSV and PNG, and return the files.

    Raises:
        InputError: a file cannot be written.
    """
    contents = Table(COLUMNS, _rows(gap))
    record, document, table, picture = files = [folder / f"{gap.name}.{end}" for end in ("json", "md", "csv", "png")]
    write_text(record, json.dumps(gap.model_dump(mode="json"), indent=2) + "\n")
    write_text(table, contents.csv())
    text = [
        f"# The gap: {gap.title}\n",
        f"From `{gap.released.id}` (hash `{gap.released.hash}`, {gap.released_threat} in pixels) to "
        f"`{gap.standard.id}` (hash `{gap.standard.hash}`, {gap.standard_threat}), one difference at a time. Intervals "
        f"are 95 %, paired by image. {_LEFT_OUT}\n",
        f"![contributions]({gap.name}.png)\n",
        contents.markdown(),
    ]
    write_text(document, "\n".join(text) + "\n")
    walked = [each for each in gap.walks if len(each.stops) > 1]
    falls = [(_TITLES[each.accuracy], [(stop.change, stop.accuracy) for stop in each.stops]) for each in walked]
    waterfall(picture, gap.title, falls)
    return files


def released_evaluator(metadata: dict[str, Any]) -> str:
    """Return the id of the evaluator that EB-JDAT's authors would use for a checkpoint, by its method and host."""
    settings = metadata.get("options") or {}
    on_sadajem = metadata.get("method") == "sadajem" or settings.get("host") == "sadajem"
    return PLAIN if on_sadajem else NOISY


def explain(
    model: ModelSpec,
    question: Question,
    evaluation: Evaluation,
    *,
    runs: Path = Path("runs"),
    folder: Path,
) -> tuple[Gap, list[Path]]:
    """Walk one model from the evaluator released with EB-JDAT to the standard protocol of its data set.

    ``question`` names the threat model of the standard protocol, and as its ``protocol`` the released evaluator; by
    default the one of the checkpoint's method and host. The walk chooses the metrics. What each difference contributes
    is returned with the files that were written into ``folder``.

    Raises:
        InputError: anything named does not fit, or a measurement failed.
    """
    kept: dict[Any, Any] = {}
    device = select_device(evaluation.device)
    metadata = model.metadata(device, kept)
    data, standard = replace(question, protocol=None).resolve(metadata)
    begin = protocols(standard, question.protocol or released_evaluator(metadata))
    evaluation.selection.check(standard, data.name)
    model.check(data.name)
    dataset = data.load(kept)
    subject = model.load(dataset, device, kept)

    def measured(change: Change) -> Measurement:
        only = replace(evaluation, selection=replace(evaluation.selection, metrics=[change.metric]))
        job = evaluation_job(only, model, data, change.protocol, runs, subject.name)
        return job.result(kept).measurements[change.metric]

    walks: list[Walk] = []
    for accuracy in WALKED:
        changes = list(walk(begin, standard, accuracy))
        print(f"{accuracy}: {len(changes)} stops", file=sys.stderr)
        walks.append(Walk(accuracy=accuracy, stops=stops(changes, measured)))
    gap = Gap(
        subject=subject.name,
        recipe=metadata.get("recipe"),
        seed=metadata.get("seed"),
        which=evaluation.which if model.checkpoint is not None else None,
        weights_digest=subject.digest,
        dataset=dataset.name,
        data_digest=dataset.test.digest,
        n=evaluation.selection.images(len(dataset.test)),
        of=len(dataset.test),
        released=ProtocolInfo(id=begin.id, hash=begin.hash, role=begin.role),
        released_threat=begin.threat,
        standard=ProtocolInfo(id=standard.id, hash=standard.hash, role=standard.role),
        standard_threat=standard.threat,
        walks=walks,
        provenance=provenance(subject.device),
    )
    return gap, write(gap, folder)
