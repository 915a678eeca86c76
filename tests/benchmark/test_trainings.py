"""Jobs in processes: that all are done, and that one which fails or dies stops no other."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.trainings import in_processes

MODULE = '''
import os
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Writes:
    """Leaves the number of its process in a file, or ends otherwise."""

    file: Path
    ending: str = ""
    after: frozenset = frozenset()

    @property
    def run(self):
        return self.file

    @property
    def title(self):
        return self.file.name

    def __call__(self):
        if self.ending == "raises":
            raise RuntimeError("it broke")
        if self.ending == "dies":
            os._exit(3)
        self.file.write_text(str(os.getpid()))
'''
"""A process imports its job, and tests are no package."""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Make a job for each way of ending, which writes a file named after its place; some come after another one."""
    (tmp_path / "done").mkdir()
    (tmp_path / "jobs_in_processes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    made = importlib.import_module("jobs_in_processes").Writes

    def make(*endings: str, after: dict[int, int]) -> list[Any]:
        files = [tmp_path / "done" / str(place) for place in range(len(endings))]
        before = [frozenset({files[after[place]]} if place in after else ()) for place in range(len(endings))]
        return [made(*job) for job in zip(files, endings, before, strict=True)]

    return make


def test_failure_and_death_stop_no_other_job(
    jobs: Callable[..., list[Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_processes(jobs("", "raises", "", "dies", "", "", "", after={0: 4, 2: 1, 5: 3}), 2)
    done = {path.name: path.read_text() for path in (tmp_path / "done").iterdir()}
    assert set(done) == {"0", "4", "6"}
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "done").iterdir()}
    assert written["4"] <= written["0"]
    assert str(os.getpid()) not in done.values()
    heard = capfd.readouterr().err
    assert "1: RuntimeError: it broke" in heard
    assert "3: its process ended; it is done again" in heard
    assert "4 of 7 runs" in heard
