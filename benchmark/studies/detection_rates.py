"""How often the masking checks catch a planted failure and suspect a sound model: the cases, rates and tables."""

from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version

from benchmark.leaderboard.aggregate import ABSENT
from benchmark.leaderboard.render import Table
from benchmark.results.entry import Check
from benchmark.results.significance import wilson
from benchmark.specs.protocol import Protocol
from benchmark.studies.planted_failures import FAILURES

FILES = ("masking-power.md", "masking-power.csv")
_LIBRARIES = ("torch", "numpy", "pyautoattack")


@dataclass(frozen=True)
class Case:
    """A model and what the masking checks found in it."""

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
    """What the masking checks found in models of which it is known whether they are sound."""

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
    def planted(self) -> list[Case]:
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
        return sum(bool(self.caught(case)) for case in self.planted)

    @property
    def false_alarms(self) -> int:
        """How many honest models are suspected."""
        return sum(bool(case.failed) for case in self.honest)

    @property
    def missed(self) -> list[str]:
        """The failures that escaped at least once."""
        return list(dict.fromkeys(case.failure or "" for case in self.planted if not self.caught(case)))

    def summary(self) -> str:
        """Return the rates, with their 95 % intervals, in two sentences or three."""
        text = f"Detected {_rate(self.detected, len(self.planted))} planted failures. "
        text += f"Suspected {_rate(self.false_alarms, len(self.honest))} honest models."
        if self.collapsed:
            suspected = sum(bool(case.failed) for case in self.collapsed)
            text += f" Suspected {suspected} of {len(self.collapsed)} models whose training collapsed."
        return text

    def markdown(self) -> str:
        """Return the tables."""
        versions = ", ".join(f"{library} {version(library)}" for library in _LIBRARIES)
        settings = "; ".join(f"{name} {self.protocol.config(name).model_dump_json()}" for name in self.protocol.metrics)
        found = [case for case in (*self.honest, *self.collapsed) if case.failed]
        suspects = [[case.subject, case.kind, case.weights[:16], ", ".join(case.failed)] for case in found]
        failures = ("failure", "what is wrong", "planted", "detected", "checks that failed")
        checks = ("check", "honest: applies to", "honest: failed by", "planted: failed by", "failures it caught")
        parts = [
            "# Detection power of the gradient-masking checks",
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
        rows: list[tuple[str, ...]] = []
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
            cases = [case for case in self.planted if case.failure == failure.name]
            caught = Counter(name for case in cases for name in self.caught(case))
            named = ", ".join(f"{name} ({count})" for name, count in caught.most_common())
            found = sum(bool(self.caught(case)) for case in cases)
            rows.append([failure.name, failure.meaning, str(len(cases)), str(found), named or ABSENT])
        return rows

    def _by_check(self) -> list[list[str]]:
        rows = []
        for name in dict.fromkeys(check.name for case in self.cases for check in case.checks):
            honest = [check.passed for case in self.honest for check in case.checks if check.name == name]
            planted = [case.failure or "" for case in self.planted if name in self.caught(case)]
            applies = sum(passed is not None for passed in honest)
            caught = ", ".join(dict.fromkeys(planted)) or ABSENT
            rows.append([name, str(applies), str(honest.count(False)), str(len(planted)), caught])
        return rows


def _rate(count: int, of: int) -> str:
    if not of:
        return "0 of 0"
    low, high = wilson(count, of)
    return f"{count} of {of} ({100 * count / of:.1f} %, 95 % interval {low:.1f} to {high:.1f} %)"
