"""Jobs small enough to watch, each of which leaves a file or ends otherwise, and a small grid of runs."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.cli import main
from benchmark.results.entry import read_entry

MODULE = '''
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmark.engines.jobs import Job
from methods.errors import InputError
from methods.training.progress import progress

@dataclass(frozen=True)
class Writes(Job):
    """Leaves the number of its process and a count of its tries in files, or ends otherwise."""

    file: Path
    ending: str = ""

    def __call__(self, kept):
        with open(self.file.parent / "tries", "a+") as tries:
            tries.write(self.name)
            tries.seek(0)
            first = tries.read().count(self.name) == 1
        if self.ending == "raises":
            raise RuntimeError("it broke")
        if self.ending == "refuses":
            raise InputError("The disk is full.")
        if self.ending == "dies" or (self.ending == "dies once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        kept["jobs"] = kept.get("jobs", 0) + 1
        with progress(self.title, 2) as advance:
            advance(2, "nearly there")
        print("hello", file=sys.stderr)
        self.file.write_text(str(os.getpid()))
        return kept["jobs"]
'''
"""A process imports its job, and tests are no package."""


@pytest.fixture(scope="module")
def writes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The class of jobs, made of a file and an ending."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "jobs_of_engines.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("jobs_of_engines").Writes


@pytest.fixture
def jobs(writes: Any, tmp_path: Path) -> Callable[..., list[Any]]:
    """Make a job for each way of ending, named after its place; some come after another one."""
    (tmp_path / "done").mkdir()

    def make(*endings: str, after: dict[int, int] | None = None) -> list[Any]:
        before = {str(place): frozenset({str(first)}) for place, first in (after or {}).items()}
        return [
            writes(
                tmp_path / "done" / name,
                ending,
                name=name,
                title=f"job {name}",
                kind="writes",
                after=before.get(name, frozenset()),
            )
            for name, ending in ((str(place), ending) for place, ending in enumerate(endings))
        ]

    return make


@pytest.fixture
def left(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Return what the jobs left, by name."""
    return lambda: {path.name: path.read_text() for path in (tmp_path / "done").iterdir()}


SETTINGS = {
    "backbone.widen": 1,
    "train.epochs": 1,
    "train.batch_size": 128,
    "train.warmup_steps": 0,
    "train.checkpoint_seconds": 0,
}


class Grid:
    """Two recipes on the digits, for one epoch; two shards are measured."""

    def run(self, root: Path, *arguments: str) -> None:
        """Train and evaluate below ``root``."""
        settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
        places = ["--runs", str(root / "runs"), "--leaderboards", str(root / "leaderboards")]
        few = ["--device", "cpu", "--limit", "150", "--metrics", "clean,pgd20"]
        # Another number of threads adds in another order, and workers share those of this process.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with pytest.raises(SystemExit) as stop:
                main(["run", "--methods", "standard,trades", *few, *settings, *places, *arguments])
        finally:
            torch.set_num_threads(threads)
        assert not stop.value.code

    def numbers(self, root: Path) -> dict[str, Any]:
        """Return the entries below ``root`` by recipe, without what clocks say; evidence holds such seconds, too."""

        def timeless(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: timeless(item) for name, item in value.items() if "seconds" not in name}
            return [timeless(item) for item in value] if isinstance(value, list) else value

        found = [read_entry(path) for path in root.glob("leaderboards/digits/linf-0.15/entries/*.json")]
        assert {entry.recipe for entry in found} == {"standard", "trades"}
        return {str(entry.recipe): timeless(entry.model_dump(mode="json", exclude={"evidence"})) for entry in found}

    @contextmanager
    def killing(self, root: Path, workers: Callable[[], Sequence[int | None]]) -> Iterator[list[int]]:
        """Kill all workers with -9 as soon as a training below ``root`` has left a checkpoint; yield their numbers."""
        killed: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not any(root.rglob("state.pt")):
                if over.wait(0.002):
                    return
            for number in workers():
                assert number is not None
                os.kill(number, signal.SIGKILL)
                killed.append(number)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield killed
        finally:
            over.set()
            thread.join()


@pytest.fixture(scope="session")
def grid() -> Grid:
    """The grid."""
    return Grid()


@pytest.fixture(scope="session")
def alone(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the grid, made by one process that nobody disturbed; read only."""
    root = tmp_path_factory.mktemp("alone")
    grid.run(root)
    return root
