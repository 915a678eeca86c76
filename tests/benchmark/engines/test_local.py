"""Jobs in this process and in several: all are done, and what fails or dies stops no other."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.engines import Engine
from methods.errors import InputError

Jobs = Callable[..., list[Any]]
Left = Callable[[], dict[str, str]]


def test_failure_and_death_stop_no_other_job(
    jobs: Jobs, left: Left, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = jobs("", "raises", "", "dies", "dies once", "", after={0: 4, 2: 1, 5: 3})
    # A job stands behind what it comes after.
    order = [chosen[place] for place in (4, 0, 1, 2, 3, 5)]
    finished = {one.job.name: one for one in Engine(workers=2).run(order, {}, tmp_path)}
    found = left()
    assert set(found) == {"0", "4", "tries"}
    assert {name: found["tries"].count(name) for name in "012345"} == dict(
        zip("012345", (1, 1, 0, 3, 2, 0), strict=True)
    )
    assert set(finished) == {"0", "1", "3", "4"}
    assert (finished["0"].error, finished["4"].error) == (None, None)
    assert finished["1"].error == "job 1: RuntimeError: it broke"
    assert finished["3"].error == "job 3: 3 workers died of it: was killed by signal 9 (SIGKILL)"
    assert str(os.getpid()) not in found.values()
    heard = capfd.readouterr().err
    assert "job 4: its worker was killed by signal 9 (SIGKILL); it is done again" in heard
    assert "job 1: RuntimeError: it broke" in heard
    assert "job 0: hello" in heard


def test_worker_keeps_what_it_has_from_job_to_job(jobs: Jobs, left: Left, tmp_path: Path) -> None:
    values = [one.value for one in Engine(workers=2).run(jobs("", "", ""), {}, tmp_path)]
    found = left()
    processes = [found[name] for name in "012"]
    assert sorted(values) == ([1, 2, 3] if len(set(processes)) == 1 else [1, 1, 2])


def test_one_worker_is_this_process(jobs: Jobs, left: Left, tmp_path: Path) -> None:
    kept: dict[str, int] = {}
    chosen = jobs("", "raises", "", after={2: 1})
    finished = list(Engine().run(chosen, kept, tmp_path))
    assert [one.error for one in finished] == [None, "job 1: RuntimeError: it broke"]
    assert left()["0"] == str(os.getpid())
    assert kept == {"jobs": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_refused_input_stops_everything(jobs: Jobs, left: Left, tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match=r"^The disk is full\.$"):
        list(Engine(workers=workers).run(jobs("refuses", "", after={1: 0}), {}, tmp_path))
    assert "1" not in left()
    assert multiprocessing.active_children() == []


def test_idle_worker_that_was_killed_is_replaced(jobs: Jobs, left: Left, tmp_path: Path) -> None:
    finished = []
    for one in Engine(workers=2).run(jobs("", "", after={1: 0}), {}, tmp_path):
        finished.append(one)
        if one.job.name == "0":
            for process in multiprocessing.active_children():
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join()
    assert [one.error for one in finished] == [None, None]
    assert {"0", "1"} <= set(left())


def test_nothing_outlives_a_caller_that_stops(jobs: Jobs, tmp_path: Path) -> None:
    engine = Engine(workers=2).run(jobs("", "", ""), {}, tmp_path)
    next(engine)
    assert len(multiprocessing.active_children()) == 2
    engine.close()
    assert multiprocessing.active_children() == []


@pytest.mark.xdist_group("kills")
def test_killed_worker_loses_nothing(grid: Any, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """kill -9 while networks are trained: the entries are those of one process that nobody disturbed."""
    with grid.killing(tmp_path, lambda: [child.pid for child in multiprocessing.active_children()]) as killed:
        grid.run(tmp_path, "--workers", "2")
    assert killed
    assert "its worker was killed by signal 9 (SIGKILL); it is done again" in capfd.readouterr().err
    assert grid.numbers(tmp_path) == grid.numbers(alone)


@pytest.mark.xdist_group("kills")
def test_finished_grid_needs_no_worker(grid: Any, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("benchmark.engines.local.Processes", lambda *_: pytest.fail("a worker was started"))
    grid.run(tmp_path, "--workers", "2")
    assert grid.numbers(tmp_path) == grid.numbers(alone)
