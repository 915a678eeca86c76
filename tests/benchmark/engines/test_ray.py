"""Jobs on a Ray cluster of this machine, and on clusters that are not there."""

from __future__ import annotations

import builtins
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.cli import main
from benchmark.engines import Engine
from benchmark.engines import ray as cluster
from methods.errors import InputError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'trilemma[cluster]'")
pytestmark = pytest.mark.xdist_group("ray")

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = ROOT / "leaderboards" / "digits" / "weights" / "c2474ab6b91aac6e.safetensors"
PATIENCE = 120.0
Jobs = Callable[..., list[Any]]
Left = Callable[[], dict[str, str]]


@pytest.fixture(scope="module")
def two(writes: Any) -> Iterator[Engine]:
    """An engine with two workers on a cluster of this machine, which knows the jobs of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray puts one of its own in its place.
        patch.setattr(builtins, "print", builtins.print)
        # Ray counts the cores of the machine; its processes are few.
        patch.setenv("OMP_NUM_THREADS", "1")
        # Its processes find what lies below the present folder, or is installed.
        patch.setenv("PYTHONPATH", os.path.dirname(sys.modules[writes.__module__].__file__ or ""))
        cluster.connect(None, 2)
        yield Engine("ray", 2)
        cluster.disconnect()


def test_failure_and_death_stop_no_other_job(
    two: Engine, jobs: Jobs, left: Left, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = jobs("", "raises", "", "dies", "dies once", "", after={0: 4, 2: 1, 5: 3})
    order = [chosen[place] for place in (4, 0, 1, 2, 3, 5)]
    finished = {one.job.name: one for one in two.run(order, {}, tmp_path / "runs")}
    found = left()
    assert set(found) == {"0", "4", "tries"}
    assert [found["tries"].count(name) for name in "012345"] == [1, 1, 0, 3, 2, 0]
    assert finished["1"].error == "job 1: RuntimeError: it broke"
    assert finished["3"].error == "job 3: 3 workers died of it: ended: WorkerCrashedError"
    assert str(os.getpid()) not in found.values()
    heard = capfd.readouterr().err
    assert "job 4: its worker ended: WorkerCrashedError; it is done again" in heard
    assert "job 0: hello" in heard
    assert [line for line in heard.splitlines() if "Traceback" not in line and "ray" in line.lower().split()] == []
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("cpus", "size", "threads"),
    [([8], 1, 8), ([8], 3, 2), ([8, 8], 2, 8), ([8, 8], 3, 4), ([0, 4, 16], 5, 4), ([2], 2, 1), ([1], 4, 1)],
)
def test_jobs_take_as_many_threads_as_fit(
    cpus: list[int], size: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cluster.threads(cpus, size) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cluster.threads(cpus, size) == 1


def test_refused_input_stops_everything(two: Engine, jobs: Jobs, left: Left, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^The disk is full\.$"):
        list(two.run(jobs("refuses", "", after={1: 0}), {}, tmp_path))
    assert "1" not in left()


def test_node_that_does_not_see_the_runs_is_named(
    two: Engine, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda _: None)
    with pytest.raises(InputError, match=rf"^The node {socket.gethostname()} .* does not see {tmp_path};"):
        list(two.run(jobs(""), {}, tmp_path))


def test_more_workers_than_the_cluster_has_are_refused(two: Engine, jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--workers 200 needs as many CPUs, and the Ray cluster has \d+\.$"):
        list(Engine("ray", 200).run(jobs(""), {}, tmp_path))


def test_more_devices_than_the_cluster_has_are_refused(two: Engine, writes: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs 99 CUDA devices at a time, and the Ray cluster has 0"):
        list(two.run([writes(tmp_path / "0", name="0", title="job 0", kind="writes", gpus=99)], {}, tmp_path))


def ray_workers() -> list[int]:
    """Return the processes of this machine that do a job for a Ray cluster."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = file.read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::_task"):
            found.append(int(file.parent.name))
    return found


def test_cluster_measures_what_one_process_does(two: Engine, tmp_path: Path) -> None:
    """Two parts and their assembly, on two workers; how a dead worker's job is done again is shown above."""
    found = []
    for name, engine in (("alone", ()), ("ray", ("--engine", "ray", "--workers", "2"))):
        out = tmp_path / f"{name}.json"
        few = ["--dataset", "digits", "--metrics", "clean,pgd20", "--limit", "150", "--device", "cpu"]
        places = ["--runs", str(tmp_path / name), "--json", str(out)]
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", "--checkpoint", str(WEIGHTS), *few, *places, *engine])
        assert not stop.value.code
        metrics = json.loads(out.read_text())["metrics"]
        found.append({metric: values["accuracy"] for metric, values in metrics.items()})
        arrays = {path.parent.name: np.load(path) for path in (tmp_path / name).glob("measurements/*/samples-150.npz")}
        found.append({key: held["correct"].tolist() for key, held in arrays.items()})
    assert len(found[1]) == 2
    assert found[:2] == found[2:]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="finds the workers in /proc")
def test_killed_worker_loses_nothing(
    two: Engine, grid: Any, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """kill -9 while networks are trained: the entries are those of one process that nobody disturbed."""
    with grid.killing(tmp_path, ray_workers) as killed:
        grid.run(tmp_path, "--engine", "ray", "--workers", "2")
    assert killed
    assert "its worker ended: WorkerCrashedError; it is done again" in capfd.readouterr().err
    assert grid.numbers(tmp_path) == grid.numbers(alone)


def refused(*arguments: str) -> str:
    """Return what a command says that refuses its input."""
    command = [sys.executable, "-m", "benchmark", "run", "--methods", "standard", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 2, ended.stderr
    return ended.stderr


def test_no_cluster_is_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert refused("--engine", "ray", "--address", address) == (
        f"Error: No Ray cluster answers at {address}; start one with: ray start --head.\n"
    )


def test_something_else_at_the_address_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.disconnect()
    monkeypatch.setattr(cluster, "_PATIENCE", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^No Ray cluster answers at {address};"):
            cluster.connect(address, 1)


@pytest.mark.parametrize("address", ["", "nowhere", "host:port", "ray://", "127.0.0.1:99999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    cluster.disconnect()
    with pytest.raises(InputError, match=r"--address takes|No Ray cluster answers"):
        cluster.connect(address, 1)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"^--engine ray needs Ray: pip install 'trilemma\[cluster\]'\.$"):
        Engine("ray").device("auto")
