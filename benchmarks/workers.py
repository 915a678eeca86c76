"""How well several workers share a grid of runs: the time of one, over that of two taken twice.

Each run is trained and measured, and its entry is written. One worker and two have one thread each. What the workers
need to start is in their time; what the command needs before it knows the grid is not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmark.engines import Engine
from benchmark.evaluation.selection import Selection
from benchmark.runs.jobs import Evaluation
from benchmark.runs.pipeline import carry_out
from benchmark.runs.plan import Plan
from benchmark.runs.run import Run
from benchmarks.timing import Row, Settings

NAME = "workers"
TARGET = 0.85
WORKERS = 2
RUNS = 8
EPOCHS = 20
"""Length of a training of TRADES on digits: a dozen seconds on one thread, beside which a worker starts quickly."""


def run(settings: Settings) -> Iterator[Row]:
    """Measure both engines, once: a grid is long, and its runs are their own repeats. On a CPU only."""
    if settings.device.type != "cpu":
        print(f"{NAME}: on the CPU only, where every worker has cores of its own", file=sys.stderr)
        return
    runs, epochs = (WORKERS, 1) if settings.quick else (RUNS, EPOCHS)
    for name in ("local", "ray"):
        if name == "ray" and find_spec("ray") is None:
            print(f"{NAME}: Ray is not installed", file=sys.stderr)
            continue
        one, several = (seconds(Engine(name, workers), runs, epochs) for workers in (1, WORKERS))
        facts = {"runs": runs, "epochs": epochs, "one_worker_seconds": one, "two_workers_seconds": several}
        yield Row.of(
            NAME,
            f"{name}: {runs} runs of TRADES on digits, {WORKERS} workers of one thread",
            "efficiency",
            [one / (WORKERS * several)],
            None if settings.quick else TARGET,
            **facts,
        )


def seconds(engine: Engine, runs: int, epochs: int) -> float:
    """Return what a grid of so many runs takes from nothing to its entries."""
    before = torch.get_num_threads()
    # Workers share the threads of the process that starts them.
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            settings = [f"train.epochs={epochs}", "train.warmup_steps=0"]
            plan = Plan(["trades"], "digits", range(runs), overrides=settings, device="cpu", runs=Path(folder) / "runs")
            evaluation = Evaluation(Selection(["clean", "pgd20"]), device="cpu", engine=engine)
            entries = Path(folder) / "leaderboards"
            grid = [Run(plan, one, evaluation, plan.evaluation_protocol, entries) for one in plan.experiments]
            for one in grid:
                one.check(engine.here)
            started = time.perf_counter()
            outcomes = carry_out(grid, engine)
            taken = time.perf_counter() - started
        assert all(outcome.entry is not None and not outcome.failures for outcome in outcomes)
        return taken
    finally:
        torch.set_num_threads(before)
        engine.close()
