"""The gradient-masking court's power: how often it catches planted failures, and how often it accuses honest models.

A checkpoint is taken for honest unless its training ended in a collapse, by its own record: what that left behind may
well deserve suspicion, and its cases are counted apart. Each failure of :mod:`benchmark.studies.planted_failures` is
planted in some of the honest ones. What comes out is a table, and beside it every check of every case.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmark.attacks import masking_checks
from benchmark.engines import Engine, WorkFailed
from benchmark.evaluation.shards import Shards, percent
from benchmark.leaderboard.aggregate import ABSENT
from benchmark.leaderboard.render import Table
from benchmark.metrics import masking, pgd, sweep
from benchmark.models.subject import Subject, from_checkpoint
from benchmark.results.entry import Check
from benchmark.results.significance import wilson
from benchmark.results.store import Store
from benchmark.specs.protocol import Protocol, default, threat_of
from benchmark.studies import planted_failures
from benchmark.studies.planted_failures import FAILURES, Failure
from methods.data import Dataset
from methods.errors import InputError
from methods.primitives.modes import frozen
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import write_text
from methods.training.progress import progress as shown

FILES = ("court.md", "court.csv")
_GRID = {"eps": [0, 0.5, 1, 2, 4, 8], "steps": [1, 5, 20, 50]}
"""The sweep's, coarser than its default: its ends and its middle decide the checks."""
_Charge = tuple[Path, str | None]
"""A checkpoint, and the name of what is planted in it."""
_MODEL = ("subject", "weights", "kind", "failure", "clean", "pgd20")
_LIBRARIES = ("torch", "numpy", "pyautoattack")


@dataclass(frozen=True)
class Case:
    """A model before the court."""

    subject: str
    """The recipe and seed of its checkpoint."""
    weights: str
    """SHA-256 of its weights, before anything was planted."""
    failure: str | None
    """What was planted; None: nothing."""
    clean: float
    """Accuracy, in percent."""
    pgd20: float
    """Accuracy under PGD-20, in percent."""
    checks: tuple[Check, ...]
    verdict: str | None
    collapsed: bool = False
    """Whether its training ended in a collapse, by its own record."""

    @property
    def kind(self) -> str:
        """What is known of it."""
        return "planted" if self.failure else "collapsed" if self.collapsed else "honest"

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that it failed."""
        return tuple(check.name for check in self.checks if check.passed is False)


@dataclass(frozen=True)
class Study:
    """What the court made of models whose guilt is known."""

    dataset: str
    protocol: Protocol
    images: int
    cases: tuple[Case, ...]

    @property
    def honest(self) -> list[Case]:
        """The models as they were trained, where that went well."""
        return [case for case in self.cases if case.kind == "honest"]

    @property
    def collapsed(self) -> list[Case]:
        """The models as they were trained, where that ended in a collapse: nobody knows what they are."""
        return [case for case in self.cases if case.kind == "collapsed"]

    @property
    def guilty(self) -> list[Case]:
        """The models with a planted failure."""
        return [case for case in self.cases if case.kind == "planted"]

    def caught(self, case: Case) -> list[str]:
        """Return the checks that a planted failure failed, save those that its model fails without it."""
        same = (other for other in self.cases if other.failure is None and other.weights == case.weights)
        before = {name for other in same for name in other.failed}
        return [name for name in case.failed if name not in before]

    @property
    def detected(self) -> int:
        """How many planted failures are caught."""
        return sum(bool(self.caught(case)) for case in self.guilty)

    @property
    def false_alarms(self) -> int:
        """How many honest models are suspected."""
        return sum(bool(case.failed) for case in self.honest)

    @property
    def missed(self) -> list[str]:
        """The failures that escaped at least once."""
        return list(dict.fromkeys(case.failure or "" for case in self.guilty if not self.caught(case)))

    def summary(self) -> str:
        """Return the rates, with their 95 % intervals, in two sentences or three."""
        sentences = [
            f"Detected {_rate(self.detected, len(self.guilty))} planted failures.",
            f"Suspected {_rate(self.false_alarms, len(self.honest))} honest models.",
        ]
        if self.collapsed:
            suspected = sum(bool(case.failed) for case in self.collapsed)
            sentences.append(f"Suspected {suspected} of {len(self.collapsed)} models whose training collapsed.")
        return " ".join(sentences)

    def markdown(self) -> str:
        """Return the tables."""
        versions = ", ".join(f"{library} {version(library)}" for library in _LIBRARIES)
        settings = "; ".join(f"{name} {self.protocol.config(name).model_dump_json()}" for name in self.protocol.metrics)
        suspects = [
            [case.subject, case.kind, case.weights[:16], ", ".join(case.failed)]
            for case in (*self.honest, *self.collapsed)
            if case.failed
        ]
        failures = ("failure", "what is wrong", "planted", "detected", "checks that failed")
        checks = ("check", "honest: applies to", "honest: failed by", "planted: failed by", "failures it caught")
        parts = [
            "# Power of the gradient-masking court",
            self.summary(),
            f"{self.dataset}, {self.protocol.threat}, the first {self.images} test images, seed {self.protocol.seed}; "
            f"{versions}. Settings: {settings}. Every check of every model is in [{FILES[1]}]({FILES[1]}).",
            "## Planted failures",
            Table(failures, self._by_failure()).markdown(),
            "## Checks",
            Table(checks, self._by_check()).markdown(),
            "## Models that are suspected as they are",
            Table(("model", "training", "weights", "checks that failed"), suspects).markdown() if suspects else "None.",
        ]
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """Return every check of every case."""
        columns = ("subject", "weights", "kind", "failure", "clean", "pgd20", "check", "measured", "bound", "passed")
        rows = []
        for case in self.cases:
            for check in case.checks:
                numbers = [ABSENT if value is None else f"{value:.6g}" for value in (check.measured, check.bound)]
                passed = ABSENT if check.passed is None else str(check.passed).lower()
                which = (case.subject, case.weights[:16], case.kind, case.failure or "")
                accuracies = (f"{case.clean:.2f}", f"{case.pgd20:.2f}")
                rows.append((*which, *accuracies, check.name, *numbers, passed))
        return Table(columns, rows).csv()

    def _by_failure(self) -> list[list[str]]:
        rows = []
        for failure in FAILURES:
            cases = [case for case in self.guilty if case.failure == failure.name]
            caught = Counter(name for case in cases for name in self.caught(case))
            named = ", ".join(f"{name} ({count})" for name, count in caught.most_common())
            found = sum(bool(self.caught(case)) for case in cases)
            rows.append([failure.name, failure.meaning, str(len(cases)), str(found), named or ABSENT])
        return rows

    def _by_check(self) -> list[list[str]]:
        rows = []
        for name in dict.fromkeys(check.name for case in self.cases for check in case.checks):
            honest = [check.passed for case in self.honest for check in case.checks if check.name == name]
            guilty = [case.failure or "" for case in self.guilty if name in self.caught(case)]
            applies = sum(passed is not None for passed in honest)
            caught = ", ".join(dict.fromkeys(guilty)) or ABSENT
            rows.append([name, str(applies), str(honest.count(False)), str(len(guilty)), caught])
        return rows


def study(
    checkpoints: Sequence[Path],
    dataset: Dataset,
    output: Path | None = None,
    *,
    collapsed: Sequence[Path] = (),
    bases: Sequence[Path] | None = None,
    threat: str | None = None,
    config: masking.Config | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    progress: bool = True,
    engine: Engine | None = None,
) -> Study:
    """Bring every checkpoint before the court, as it is and with failures planted.

    The same arguments give the same files, on the same machine.

    Args:
        checkpoints: honest ones, weights files or run folders.
        collapsed: those whose training ended in a collapse.
        dataset: on whose first test images.
        output: the folder to write :data:`FILES` into; None: write nothing.
        bases: checkpoints to plant every failure in; None: the :func:`extremes`.
        threat: such as ``Linf:8/255``; None: that of the data set's standard protocol.
        config: the court's settings; None: the default ones, with half of Square's queries.
        seed: root of every random stream.
        device: by default the CPU.
        progress: show it on stderr, with an ETA.
        engine: whose workers share the cases; None: this process.

    Raises:
        InputError: no checkpoint, or one that is none or that is no classifier of this data set.
        WorkFailed: workers died of a case.
    """
    if not checkpoints:
        raise InputError("The court's power is measured on checkpoints, and there are none.")
    device = device or torch.device("cpu")
    settings = protocol(dataset, threat, config, seed)
    every = (*checkpoints, *collapsed)
    total = len(every) + len(FAILURES) * (2 if bases is None else len(bases))
    engine = engine or Engine()
    cases: list[Case] = []

    def heard(charges: Sequence[_Charge]) -> Iterable[Case | None]:
        return _heard(
            [Hearing(name, *charge, dataset, settings, device) for name, charge in enumerate(charges)], engine
        )

    # Several workers have a view of their own.
    with shown("masking court", total) if progress and engine.alone else nullcontext(lambda *_: None) as advance:
        for place, case in enumerate(heard([(path, None) for path in every])):
            assert case is not None
            cases.append(replace(case, collapsed=place >= len(checkpoints)))
            advance(len(cases), f"{case.subject}: {case.verdict}")
        guilty = extremes(checkpoints, cases[: len(checkpoints)]) if bases is None else bases
        charges = [(path, failure.name) for path in guilty for failure in FAILURES]
        for done, case in enumerate(heard(charges), len(every) + 1):
            if case is not None:
                cases.append(case)
                advance(done, f"{case.subject}, {case.failure}: {case.verdict}")
    found = Study(dataset.name, settings, min(settings.config(masking.NAME).images, len(dataset.test)), tuple(cases))
    if output is not None:
        write_text(output / FILES[0], found.markdown())
        write_text(output / FILES[1], found.csv())
    return found


@dataclass(frozen=True)
class Hearing:
    """A job: bring one checkpoint before the court, with a failure planted in it, or as it is."""

    name: int
    path: Path
    failure: str | None
    dataset: Dataset
    protocol: Protocol
    device: torch.device
    kind: str = "hearing"
    after: frozenset[Any] = frozenset()

    @property
    def title(self) -> str:
        """See :class:`benchmark.engines.jobs.Job`."""
        return f"{self.path.stem}, {self.failure or 'as it is'}"

    @property
    def gpus(self) -> int:
        """See :class:`benchmark.engines.jobs.Job`."""
        return int(self.device.type == "cuda")

    def __call__(self, kept: dict[Any, Any]) -> Case | None:
        """Return what the court finds; None where the failure cannot be planted."""
        planted_failure = next((failure for failure in FAILURES if failure.name == self.failure), None)
        with suppress(planted_failures.Unplantable):
            return hear(from_checkpoint(self.path, self.device), self.dataset, self.protocol, planted_failure)
        return None


def _heard(hearings: Sequence[Hearing], engine: Engine) -> Iterable[Case | None]:
    """Return what the court finds in each, in their order."""
    if engine.alone:
        return (hearing({}) for hearing in hearings)
    ended = {one.job.name: one for one in engine.run(hearings, {}, Path())}
    if errors := [one.error for one in ended.values() if one.error is not None]:
        raise WorkFailed(errors[0])
    return [ended[hearing.name].value for hearing in hearings]


def hear(subject: Subject, dataset: Dataset, protocol: Protocol, failure: Failure | None = None) -> Case:
    """Bring one model before the court, with a failure planted in it, or as it is.

    Args:
        subject: the model; a copy of it is changed.
        dataset: its first test images are used.
        protocol: from :func:`protocol`.
        failure: what to plant.

    Raises:
        Unplantable: the failure cannot be planted in this model.
    """
    stated = ThreatModel.parse(protocol.threat)
    tried, attacks = subject, protocol
    if failure is not None:
        tried = planted_failures.plant(failure, subject)
        radius = ThreatModel(stated.norm, stated.eps * failure.radius)
        attacks = protocol.model_copy(update={"threat": str(radius)})
    images, n = dataset.test.to(subject.device), min(protocol.config(masking.NAME).images, len(dataset.test))
    with tempfile.TemporaryDirectory() as folder, frozen(tried.model):
        store = Store(Path(folder))
        data = Shards(masking.NAME, tried, images, dataset.test.digest, attacks, n, store, dataset=dataset)
        arrays, checks = masking.hear(tried, data, attacks, stated)
    seed = subject.metadata.get("seed")
    return Case(
        subject=subject.name if seed is None else f"{subject.name} s{seed}",
        weights=subject.digest,
        failure=None if failure is None else failure.name,
        clean=percent(arrays["clean"]),
        pgd20=percent(arrays["pgd"]),
        checks=tuple(checks),
        verdict=masking_checks.verdict(checks),
    )


def protocol(
    dataset: Dataset, threat: str | None = None, config: masking.Config | None = None, seed: int = 0
) -> Protocol:
    """Return how :func:`study` measures, given some of its arguments.

    Raises:
        InputError: no threat model is given, and none is standard for the data set.
    """
    config = config or masking.Config(queries=500)
    threat = threat or threat_of(default(dataset.name))
    if threat is None:
        raise InputError(f"No standard protocol says how {dataset.name} is attacked: name a threat model.")
    metrics = {pgd.NAME: {}, sweep.NAME: _GRID, masking.NAME: config.model_dump(mode="json")}
    return Protocol(id="court-power-v1", threat=str(ThreatModel.parse(threat)), seed=seed, metrics=metrics)


def extremes(checkpoints: Sequence[Path], cases: Sequence[Case]) -> list[Path]:
    """Return the checkpoint that is least robust, and the most robust one, among the clear ones that are no less
    accurate than their median: in a poor classifier there is little for a failure to hide.
    """
    clear = [place for place, case in enumerate(cases) if case.verdict == "clear"]
    if not clear:
        return []
    median = statistics.median(cases[place].clean for place in clear)
    robustness = [(cases[place].pgd20, place) for place in clear if cases[place].clean >= median]
    return [checkpoints[place] for _, place in dict.fromkeys((min(robustness), max(robustness)))]


def _rate(count: int, of: int) -> str:
    if not of:
        return "0 of 0"
    low, high = wilson(count, of)
    return f"{count} of {of} ({100 * count / of:.1f} %, 95 % interval {low:.1f} to {high:.1f} %)"
