"""Measuring time, and what a benchmark is told and tells. Torch and the standard library."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

AT_LEAST = ("speed-up", "efficiency", "images/s", "share")
"""Measures of which more is better: their targets are lower bounds, those of all others upper bounds."""


@dataclass(frozen=True)
class Row:
    """One measured number of a benchmark."""

    benchmark: str
    """The NAME of the module that measured it, such as "training"."""
    case: str
    """What was measured, such as "TRADES, WRN-16-4, batch 64, bf16"."""
    measure: str
    """What the number is: "speed-up", "efficiency", "overhead in %", "seconds", "MiB", "ms an image"."""
    value: float
    """Median over the repeats."""
    low: float
    """Smallest over the repeats."""
    high: float
    """Largest over the repeats."""
    target: float | None = None
    """What is asked for: at least that for :data:`AT_LEAST`, at most that for all others."""
    facts: dict[str, float | int | str] = field(default_factory=dict)
    """What belongs to the number: seconds of either side, the largest difference of losses, verdicts that differ."""

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.measure in AT_LEAST else self.value <= self.target

    @classmethod
    def of(
        cls,
        benchmark: str,
        case: str,
        measure: str,
        values: Sequence[float],
        target: float | None = None,
        **facts: float | int | str,
    ) -> Row:
        """Return the row of one value a repeat."""
        return cls(benchmark, case, measure, statistics.median(values), min(values), max(values), target, facts)


@dataclass(frozen=True)
class Race:
    """Seconds of two ways to do the same, one pair a repeat."""

    baseline_seconds: list[float]
    ours_seconds: list[float]

    @property
    def ratios(self) -> list[float]:
        """Baseline / ours of each repeat: how many times faster ours is."""
        return [theirs / ours for theirs, ours in zip(self.baseline_seconds, self.ours_seconds, strict=True)]

    def speed_up(self, benchmark: str, case: str, target: float | None = None, **facts: float | int | str) -> Row:
        """Return the row of :attr:`ratios`, with the median seconds of both sides among its facts."""
        return Row.of(benchmark, case, "speed-up", self.ratios, target, **(self._seconds() | facts))

    def overhead(self, benchmark: str, case: str, target: float | None = None, **facts: float | int | str) -> Row:
        """Return the row of what ours takes beyond the baseline, in percent of the baseline."""
        percent = [100 * (1 / ratio - 1) for ratio in self.ratios]
        return Row.of(benchmark, case, "overhead in %", percent, target, **(self._seconds() | facts))

    def _seconds(self) -> dict[str, float | int | str]:
        return {
            "baseline_seconds": statistics.median(self.baseline_seconds),
            "ours_seconds": statistics.median(self.ours_seconds),
        }


@dataclass(frozen=True)
class Settings:
    """What a benchmark is told."""

    device: torch.device
    quick: bool = False
    """Tiny sizes and one repeat: shows that it runs, and measures nothing."""
    repeats: int = 5
    data: Path | None = None
    """Folder of the data sets, for the benchmarks that read one."""


def race(baseline: Callable[[], object], ours: Callable[[], object], repeats: int, warm_up: int = 1) -> Race:
    """Time two calls in turn: baseline, ours, baseline, ours, ... after ``warm_up`` untimed calls of each.

    In turn, so that what else the machine does meanwhile slows both alike.
    """
    for _ in range(warm_up):
        baseline()
        ours()
    pairs = [(_seconds(baseline), _seconds(ours)) for _ in range(repeats)]
    return Race([theirs for theirs, _ in pairs], [seconds for _, seconds in pairs])


def timed(call: Callable[[], object], repeats: int, warm_up: int = 1) -> list[float]:
    """Return the seconds of each of ``repeats`` calls after ``warm_up`` untimed ones."""
    for _ in range(warm_up):
        call()
    return [_seconds(call) for _ in range(repeats)]


def _seconds(call: Callable[[], object]) -> float:
    synchronise()
    started = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    """Wait for what CUDA still has to do."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
