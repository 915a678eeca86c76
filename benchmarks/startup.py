"""How long commands take before, and what the shortest useful one takes in all: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.timing import Row, Settings, timed
from methods.errors import InputError

NAME = "start-up"
HELP_TARGET = 0.3
RUN_TARGET = 180.0
"""Seconds, on two cores."""
_ROOT = Path(__file__).resolve().parents[1]
_FIRST_STEP = "from benchmarks.startup import first_step; first_step()"
_RUN = ("run", "--methods", "ebjdat,trades", "--workers", "2", "--device")


def run(settings: Settings) -> Iterator[Row]:
    # A misspelt recipe is refused as soon as all that `run` needs is imported.
    commands: tuple[tuple[str, Sequence[str], int, float | None], ...] = (
        ("python -m benchmark --help", ("-m", "benchmark", "--help"), 0, HELP_TARGET),
        ("python -m benchmark list", ("-m", "benchmark", "list"), 0, None),
        ("python -m benchmark run, refusing a recipe", ("-m", "benchmark", "run", "--methods", "tradse"), 2, None),
        ("process to first step, TRADES on digits", ("-c", _FIRST_STEP), 0, None),
    )
    for case, arguments, status, target in commands:
        seconds = timed(lambda given=arguments, end=status: _python(given, end), settings.repeats)
        yield Row.of(NAME, case, "seconds", seconds, target)
    if settings.quick:
        return
    with TemporaryDirectory() as folder:
        places = ("--runs", f"{folder}/runs", "--leaderboards", f"{folder}/leaderboards")
        # What `make run` does after installation, from nothing to the table; long enough to be measured once.
        everything = ("-m", "benchmark", *_RUN, settings.device.type, *places)
        seconds = timed(lambda: _python(everything), repeats=1, warm_up=0)
        yield Row.of(NAME, "make run: EB-JDAT and TRADES on digits", "seconds", seconds, RUN_TARGET)


def _python(arguments: Sequence[str], status: int = 0) -> None:
    """Run to the expected exit status."""
    finished = subprocess.run([sys.executable, *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    if finished.returncode != status:
        lines = finished.stderr.strip().splitlines() or ["it says nothing"]
        raise InputError(f"`python {' '.join(arguments)}` ended with status {finished.returncode}: {lines[-1]}")


def first_step() -> None:
    """Train TRADES on digits for one step."""
    from benchmark.runs.plan import Plan
    from benchmarks.stepping import Enough, train

    def behind() -> None:
        raise Enough

    plan = Plan(["trades"], "digits", device="cpu")
    experiment = plan.experiments[0]
    train(experiment, plan.data(experiment), plan.torch_device, behind)
