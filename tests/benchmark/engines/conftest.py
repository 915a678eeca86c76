"""Jobs small enough to watch: each leaves a file, or ends otherwise."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODULE = '''
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from methods.errors import InputError
from methods.training.progress import progress

@dataclass(frozen=True)
class Writes:
    """Leaves the number of its process and a count of its tries in files, or ends otherwise."""

    file: Path
    ending: str = ""
    after: frozenset = frozenset()
    kind: str = "writes"
    gpus: int = 0

    @property
    def name(self):
        return self.file.name

    @property
    def title(self):
        return f"job {self.name}"

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
    """The class of jobs; its fields are a file, an ending, and the names of those it comes after."""
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
        before = {place: frozenset({str(first)}) for place, first in (after or {}).items()}
        return [
            writes(tmp_path / "done" / str(place), ending, before.get(place, frozenset()))
            for place, ending in enumerate(endings)
        ]

    return make


@pytest.fixture
def left(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Return what the jobs left, by name."""
    return lambda: {path.name: path.read_text() for path in (tmp_path / "done").iterdir()}
