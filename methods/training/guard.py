"""Collapse as an event: limits on what a training logs, and a detector that reads nothing but the log.

The authors of the JEM family watch for a loss above 1e8 or 1e5, which NaN passes, and restart by hand from the last
checkpoint with another seed and a lower rate (wgrathwohl/JEM at 3d01161, issues 4 and 8).
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from methods.errors import InputError

Line = Mapping[str, Any]
"""One line of log.jsonl: of a step, of a validation, or of an intervention."""

_SENTENCES = {
    "nonfinite": "The {found} of {recipe} became non-finite at step {step}.",
    "energy_gap": "The energies of data and samples of {recipe} ran apart at step {step}: {found}.",
    "energy_size": "The energies of {recipe} drifted away at step {step}: {found}.",
    "loss_size": "The loss of {recipe} exploded at step {step}: {found}.",
    "buffer_std": "The replay buffer of {recipe} died at step {step}: {found}.",
    "saturated": "The replay buffer of {recipe} saturated at step {step}: {found}.",
    "accuracy_drop": "The validation accuracy of {recipe} fell at step {step}: {found}.",
    "accuracy_floor": "The validation accuracy of {recipe} never rose, as seen at step {step}: {found}.",
}


@dataclass(frozen=True)
class Guard:
    """When a training counts as collapsed, and what happens then; a limit that is null is not watched.

    Values that are NaN or infinite always count, and at once. A field out of range is an InputError.
    """

    action: Literal["stop", "rollback"] = "stop"
    """Stop with a record, or go back to the last good state with new random streams and a lower learning rate."""
    max_restarts: int = 3
    """Rollbacks before the training is stopped after all."""
    lr_factor: float = 0.5
    """What each rollback multiplies the learning rate with, in (0, 1]."""
    energy_gap: float | None = None
    """Largest distance between the mean energies of data and samples."""
    energy_size: float | None = None
    """Largest absolute value of any mean energy."""
    loss_size: float | None = None
    """Largest absolute value of the loss; authors' code: 1e8 (JEM, JEM++), 1e5 (SADAJEM, M-EBM). It alarms at once:
    a single such step freezes Adam for thousands, because its second moments forget slowly."""
    buffer_std: float | None = None
    """Smallest standard deviation of the replay buffer's pixels, in units of [0, 1]."""
    saturated: float | None = None
    """Largest share of the replay buffer's pixels at 0 or 1."""
    accuracy_drop: float | None = None
    """Points by which clean validation accuracy may fall below its best so far."""
    accuracy_floor: float | None = None
    """Smallest clean validation accuracy in the second half of a training, in percent. Below it nothing was ever
    learnt, and there is no good state to go back to: this limit stops the training whatever the action."""
    patience: int = 20
    """Logged steps in a row for which energies or buffer must break a limit before it counts."""

    def __post_init__(self) -> None:
        for name in ("max_restarts", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"guard.{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.lr_factor <= 1:
            raise InputError(f"guard.lr_factor must be in (0, 1], not {self.lr_factor}.")
        for name in ("energy_gap", "energy_size", "loss_size", "buffer_std"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise InputError(f"guard.{name} must be positive and finite, or null, not {limit}.")
        for name, most in (("saturated", 1), ("accuracy_drop", 100), ("accuracy_floor", 100)):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < most:
                raise InputError(f"guard.{name} must be in (0, {most}), or null, not {limit}.")


@dataclass(frozen=True)
class Alarm:
    """A collapse: where it was seen, by which limit of the guard (or "nonfinite"), and what was found."""

    step: int
    epoch: float
    cause: str
    found: str

    @property
    def hopeless(self) -> bool:
        """Whether there is no good state to go back to."""
        return self.cause == "accuracy_floor"

    def sentence(self, recipe: str) -> str:
        """Return the alarm in one sentence."""
        return _SENTENCES[self.cause].format(found=self.found, recipe=recipe, step=self.step)


class Detector:
    """Tells from the lines of a log, in order, when a training collapses.

    Its state is a function of the lines alone, so a resumed training restores it by reading its log again.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self._broken: dict[str, int] = {}
        self._accuracies: list[tuple[int, float]] = []

    @property
    def quiet(self) -> bool:
        """Whether the last step broke no limit."""
        return not any(self._broken.values())

    def observe(self, line: Line) -> Alarm | None:
        """Read the next line; return an alarm where it shows a collapse.

        Raises:
            InputError: the guard watches a value that the steps of this training do not log.
        """
        if "event" in line:
            self._broken.clear()
            if line["event"] == "rollback":
                self._accuracies = [seen for seen in self._accuracies if seen[0] <= line["to"]]
            return None
        found = self._nonfinite(line) or (self._validation(line) if "validation" in line else self._step(line))
        if found is None:
            return None
        self._broken.clear()
        return Alarm(line["step"], line["epoch"], *found)

    def _nonfinite(self, line: Line) -> tuple[str, str] | None:
        if not line["nonfinite"]:
            return None
        if "validation" in line:
            return "nonfinite", "weights"
        names = [name for name, value in line.items() if value is None]
        if line.get("inner_nonfinite"):
            names.append("inner problem")
        return "nonfinite", " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))

    def _validation(self, line: Line) -> tuple[str, str] | None:
        clean = line["validation"].get("clean")
        if clean is None:
            return None
        drop, floor = self.guard.accuracy_drop, self.guard.accuracy_floor
        best = max((accuracy for _, accuracy in self._accuracies), default=clean)
        if drop is not None and best - clean > drop:
            return "accuracy_drop", f"{clean:.1f} %, {best - clean:.1f} points below its best, limit {drop:g}"
        if floor is not None and line["progress"] >= 0.5 and clean < floor:
            return "accuracy_floor", f"{clean:.1f} %, limit {floor:g} %"
        self._accuracies.append((line["step"], clean))
        return None

    def _step(self, line: Line) -> tuple[str, str] | None:
        limit = self.guard.loss_size
        if limit is not None and abs(line["loss"]) > limit:
            return "loss_size", f"loss_size {abs(line['loss']):.4g}, limit {limit:g}"
        for name, (value, broken) in self._watched(line).items():
            self._broken[name] = self._broken.get(name, 0) + 1 if broken else 0
            if self._broken[name] >= self.guard.patience:
                limit = getattr(self.guard, name)
                return name, f"{name} {value:.4g}, limit {limit:g}, for {self.guard.patience} logged steps"
        return None

    def _watched(self, line: Line) -> dict[str, tuple[float, bool]]:
        """Return the value behind each limit that has patience, and whether it is beyond it."""
        guard = self.guard
        values: dict[str, tuple[float, bool]] = {}
        if guard.energy_gap is not None:
            gap = abs(_value(line, "energy_data", "energy_gap") - _value(line, "energy_samples", "energy_gap"))
            values["energy_gap"] = gap, gap > guard.energy_gap
        if guard.energy_size is not None:
            _value(line, "energy_data", "energy_size")
            size = max(abs(value) for name, value in line.items() if name.startswith("energy_"))
            values["energy_size"] = size, size > guard.energy_size
        if guard.buffer_std is not None:
            spread = _value(line, "buffer_std", "buffer_std")
            values["buffer_std"] = spread, spread < guard.buffer_std
        if guard.saturated is not None:
            share = _value(line, "buffer_saturated", "saturated")
            values["saturated"] = share, share > guard.saturated
        return values


def _value(line: Line, name: str, limit: str) -> float:
    if name not in line:
        raise InputError(f'guard.{limit} watches "{name}", which this method does not log; set it to null.')
    return line[name]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a run's log.jsonl.

    Raises:
        InputError: the file is missing, truncated or foreign.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing, truncated or no log of a training: {error}.") from error


def replay(log: Path | Iterable[Line], guard: Guard) -> list[Alarm]:
    """Return every alarm that a guard raises on a log; with the guard of the run, those that the run acted on."""
    detector = Detector(guard)
    alarms = (detector.observe(line) for line in (read_log(log) if isinstance(log, Path) else log))
    return [alarm for alarm in alarms if alarm is not None]
