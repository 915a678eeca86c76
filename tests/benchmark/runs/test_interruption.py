"""kill -9 at writes of training and evaluation, then the same command: nothing but the clock differs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.cli import main
from benchmark.results.entry import read_entry

pytestmark = pytest.mark.xdist_group("interruption")
"""What the tests share is made in one worker."""

ROOT = Path(__file__).resolve().parents[3]

# At this radius the first attacks of AutoAttack break nearly all images, and the slow ones have nothing to do. The
# energies are what tells two runs apart: they are continuous, and depend on the random start of the attack.
PROTOCOL = """
id: interrupted-v1
dataset: digits
threat: Linf:0.3
shard: 5
metrics:
  clean: {}
  pgd20: {}
  autoattack: {}
  energy: {}
"""
SETTINGS = {
    "backbone.widen": 1,
    "train.epochs": 3,
    "train.batch_size": 256,
    "train.warmup_steps": 0,
    # Every step is a checkpoint to resume from, and a line of the log.
    "train.checkpoint_seconds": 0,
    "train.log_every": 1,
}


def arguments(root: Path) -> list[str]:
    (root / "protocol.yaml").write_text(PROTOCOL)
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    places = ["--runs", str(root / "runs"), "--leaderboards", str(root / "leaderboards")]
    chosen = ["--methods", "standard", "--device", "cpu", "--limit", "20", "--protocol", str(root / "protocol.yaml")]
    return ["run", *chosen, *settings, *places]


def to_the_end(root: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(root))
    assert not stop.value.code


# Where a process is killed is counted and not timed: it has written a whole file, which is not in its place yet. It is
# a fork of one that has imported everything, which takes longer than the command: a misspelt recipe is refused last.
KILLED = """
import contextlib, fnmatch, json, os, signal, sys
from benchmark.cli import main

with contextlib.suppress(SystemExit):
    main(["run", "--methods", "misspelt"])
arguments, kills = json.loads(sys.argv[1])
replace = os.replace

def killing(pattern, left):
    def replaced(source, target):
        nonlocal left
        left -= fnmatch.fnmatch(os.path.basename(target), pattern)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    return replaced

for pattern, number in kills:
    child = os.fork()
    if child == 0:
        os.replace = killing(pattern, number)
        main(arguments)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (pattern, number, status)
"""


def killed_at(root: Path, *kills: tuple[str, int]) -> None:
    """Run the command in a process of its own for each kill, which is at so many writes of files with such a name."""
    call = [sys.executable, "-c", KILLED, json.dumps([arguments(root), kills])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(call, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def numbers(root: Path) -> dict[str, Any]:
    """Return everything measured below ``root`` that no clock enters, down to the single image."""
    (path,) = root.glob("leaderboards/digits/*/entries/*.json")
    entry = read_entry(path)
    found: dict[str, Any] = {"name": path.name, "weights": entry.subject.weights_digest, "digest": entry.config_digest}
    for name, measured in entry.measurements.items():
        assert measured.status == "done", measured.error
        assert measured.samples is not None
        found[name] = measured.model_dump(exclude={"seconds"})
        found[name]["values"] = {key: value for key, value in measured.values.items() if "seconds" not in key}
        with np.load(root / "runs" / "measurements" / measured.samples) as samples:
            found[name]["per image"] = {key: samples[key].tolist() for key in samples.files}
    return found


def manifest(root: Path) -> dict[str, Any]:
    (path,) = root.glob("runs/standard/digits/*/manifest.json")
    return json.loads(path.read_text())


def training(root: Path) -> dict[str, bytes]:
    (folder,) = (root / "runs" / "standard" / "digits").iterdir()
    assert manifest(root)["status"] == "finished"
    kept = ("weights.safetensors", "best.safetensors", "log.jsonl", "config.yaml")
    return {name: (folder / name).read_bytes() for name in kept}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the command ran uninterrupted; read only."""
    root = tmp_path_factory.mktemp("whole")
    to_the_end(root)
    return root


def test_killed_run_ends_with_the_numbers_of_an_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    # In the second of three epochs of six steps; and at the first shard of AutoAttack, after four each of clean, PGD.
    killed_at(tmp_path, ("state.pt", 8), ("shard-*.npz", 9))
    assert [manifest(tmp_path)["status"], *tmp_path.glob("leaderboards/**/*.json")] == ["finished"]
    assert len(list(tmp_path.glob("runs/measurements/*/shard-*.npz"))) == 8
    to_the_end(tmp_path)
    assert numbers(tmp_path) == numbers(whole)
    assert training(tmp_path) == training(whole)
    assert not list(tmp_path.rglob("state.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_run_killed_again_and_again_ends_with_the_numbers_of_an_uninterrupted_one(
    whole: Path, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    # More than twenty writes are left after the last kill, whatever was drawn: each gets at most 7 further.
    killed_at(tmp_path, *(("*", draw.randrange(1, 8)) for _ in range(5)))
    to_the_end(tmp_path)
    assert numbers(tmp_path) == numbers(whole)
    assert training(tmp_path) == training(whole)
    assert not list(tmp_path.rglob("state.pt"))
