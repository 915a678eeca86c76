"""kill -9 at random moments of training and evaluation, then the same command: nothing but the clock differs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.cli import main
from benchmark.results.entry import read_entry

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 120.0

# At this radius the first attacks of AutoAttack break nearly all images, and the slow ones have nothing to do. The
# energies are what tells two runs apart: they are continuous, and depend on the random start of the attack.
PROTOCOL = """
id: interrupted-v1
dataset: digits
threat: Linf:0.15
shard: 10
metrics:
  clean: {}
  pgd20: {}
  autoattack: {}
  energy: {}
"""
SETTINGS = {
    "backbone.widen": 1,
    "train.epochs": 3,
    "train.batch_size": 64,
    "train.warmup_steps": 0,
    # Every step is a checkpoint to resume from, and a line of the log.
    "train.checkpoint_seconds": 0,
    "train.log_every": 1,
}


def arguments(root: Path) -> list[str]:
    (root / "protocol.yaml").write_text(PROTOCOL)
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    places = ["--runs", str(root / "runs"), "--leaderboards", str(root / "leaderboards")]
    chosen = ["--methods", "standard", "--device", "cpu", "--limit", "40", "--protocol", str(root / "protocol.yaml")]
    return ["run", *chosen, *settings, *places]


def to_the_end(root: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(root))
    assert not stop.value.code


def kill_after(root: Path, begun: Callable[[], bool], delay: float) -> None:
    """Start the command in a process of its own, and kill it ``delay`` seconds after ``begun``."""
    command = [sys.executable, "-m", "benchmark", *arguments(root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        limit = time.monotonic() + PATIENCE
        while not begun():
            assert process.poll() is None, "the command ended before it could be interrupted"
            assert time.monotonic() < limit
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


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


def test_killed_run_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
    to_the_end(whole)

    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    # Early enough that work is left when the signal comes; four shards each of clean, PGD and AutoAttack come first.
    delay, wanted = draw.uniform(0, manifest(whole)["seconds"] / 2), draw.randrange(1, 10)
    print(f"seed {seed}: killed {delay:.3f} s after the first step, and after {wanted} shards")

    kill_after(killed, lambda: any(killed.glob("runs/standard/digits/*/state.pt")), delay)
    assert not any(killed.glob("runs/standard/digits/*/manifest.json")), "no training was interrupted"
    kill_after(killed, lambda: len(list(killed.glob("runs/measurements/*/shard-*.npz"))) >= wanted, 0)
    assert not any(killed.glob("leaderboards/**/*.json")), "no evaluation was interrupted"
    to_the_end(killed)

    assert numbers(killed) == numbers(whole)
    assert training(killed) == training(whole)
    assert not list(tmp_path.rglob("state.pt"))
