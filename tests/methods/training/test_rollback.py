"""Back from an interruption to the bits of an uninterrupted run, and only to a state of the same run."""

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from methods.data import Dataset
from methods.errors import InputError
from methods.standard import Standard
from methods.training import setup, trainer
from methods.training.checkpoint import load_checkpoint, load_state
from methods.training.config import Experiment
from methods.training.guard import Guard, read_log
from methods.training.method import Batch, Inner, Losses
from methods.training.run_folder import read_manifest, run_folder
from methods.training.trainer import train

Make = Callable[..., Experiment]
Crash = Callable[[int], AbstractContextManager[None]]

CPU = torch.device("cpu")


RESULTS = ("weights.safetensors", "best.safetensors", "log.jsonl", "config.yaml")
STEPS = 18


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def kill_at(step: int, wait: float, experiment: Experiment, data: Dataset, runs: Path) -> str:
    """Train in a process of its own and kill it ``wait`` seconds after it has logged ``step``; say where.

    The processes are forked from a server that has imported torch once.
    """
    context = multiprocessing.get_context("forkserver")
    # An optimiser imports torch._dynamo when it is made, which takes seconds.
    papers = ("ebjdat", "jempp", "standard", "trades")
    context.set_forkserver_preload(
        ["methods.training.trainer", *(f"methods.{paper}" for paper in papers), "torch._dynamo"]
    )
    process = context.Process(target=train, args=(experiment, replace(data), runs, CPU))
    process.start()
    log = run_folder(runs, experiment, data) / "log.jsonl"
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count('"lr"') >= step:
            time.sleep(wait)
            break
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the process ended before it could be killed"
    return f"asked for step {step}, {log.read_text().count('lr')} steps in the log"


COLLAPSING = {"lr": 30.0, "schedule": "one-cycle", "warmup_steps": 16}
"""A rate that grows until the loss of standard training explodes, around step 12."""
ROLLBACK = Guard(action="rollback", loss_size=20.0, lr_factor=0.01)


@pytest.mark.parametrize(
    ("method", "settings", "guard"),
    [("trades", {}, Guard()), ("ebjdat", {}, Guard()), ("standard", COLLAPSING, ROLLBACK)],
)
def test_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    method: str,
    settings: dict[str, Any],
    guard: Guard,
    make_experiment: Make,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The number of threads can change the last bit of a sum.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    experiment = replace(make_experiment(method, checkpoint_seconds=0.0, **settings), guard=guard)
    straight = train(experiment, digits, tmp_path / "straight", CPU)
    expected = results(straight)
    assert (read_manifest(straight)["restarts"] > 0) == (guard == ROLLBACK)

    chance = random.Random(method)
    steps = sorted(chance.sample(range(1, STEPS - 4), 3))
    # A step takes some 10 ms: the moment falls anywhere in it, the writing of files included.
    where = [kill_at(step, chance.random() * 0.03, experiment, digits, tmp_path / "killed") for step in steps]
    print("killed:", where)
    folder = run_folder(tmp_path / "killed", experiment, digits)
    assert not (folder / "manifest.json").exists()
    assert train(experiment, digits, tmp_path / "killed", CPU) == folder
    found = results(folder)
    assert [name for name in RESULTS if found[name] != expected[name]] == [], where
    found, wanted = read_manifest(folder), read_manifest(straight)
    assert found["steps"] == STEPS
    assert found["interventions"] == wanted["interventions"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("standard", {"ema": 0.9, "momentum": 0.9, "schedule": "cosine", "warmup_steps": 4}),
        ("standard", {"optimizer": "adam", "lr": 0.01, "validate_every": 2, "gradient_clip": 0.5}),
        ("pgd_at", {"schedule": "one-cycle", "warmup_steps": 6, "drop_last": True}),
        ("lbgat", {"gradient_clip": 0.5}),
        ("las_at", {}),
        (
            "standard",
            {
                "ema": 0.9,
                "ema_warmup": 0.2,
                "schedule": "one-cycle",
                "warmup_steps": 6,
                "epoch_schedule": True,
                "momentum_cycle": [0.85, 0.95],
                "decay_norm": False,
                "first_statistics": True,
                "select_attack": {"steps": 2, "objective": "margin"},
            },
        ),
        ("dhat", {}),
    ],
)
def test_resume_restores_every_part_of_the_state(
    method: str,
    settings: dict[str, Any],
    make_experiment: Make,
    data: Dataset,
    tmp_path: Path,
    crash_before: Crash,
) -> None:
    options = {"las_at": {"every": 2, "optimizer": {"momentum": 0.9}, "choices": {"steps": [1, 2]}}}.get(method)
    experiment = make_experiment(method, options, checkpoint_seconds=0.0, **settings)
    expected = results(train(experiment, data, tmp_path / "straight", CPU))
    for step in (5, 11):
        with crash_before(step):
            train(experiment, data, tmp_path / "resumed", CPU)
    folder = train(experiment, data, tmp_path / "resumed", CPU)
    assert results(folder) == expected


def test_resume_goes_back_to_the_last_checkpoint(
    make_experiment: Make, data: Dataset, tmp_path: Path, crash_before: Crash
) -> None:
    """Steps after the last checkpoint are done again, and leave one line each in the log."""
    straight = make_experiment("standard", checkpoint_seconds=1e9)
    expected = results(train(straight, data, tmp_path / "straight", CPU))
    with crash_before(4):
        train(make_experiment("standard", checkpoint_seconds=0.0), data, tmp_path / "r", CPU)
    with crash_before(11):
        train(straight, data, tmp_path / "r", CPU)
    folder = run_folder(tmp_path / "r", straight, data)
    assert load_state(folder / "state.pt")["done"] == 4
    assert results(train(straight, data, tmp_path / "r", CPU)) == expected
    assert [line["step"] for line in read_log(folder / "log.jsonl") if "lr" in line] == list(range(1, STEPS + 1))


class Noisy(Standard):
    """Draws from torch's global generator, as dropout does."""

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        noise = 0.1 * torch.randn(batch.x.shape)
        return super().loss(model, replace(batch, x=batch.x + noise), inner)


def test_resume_restores_the_global_generator(
    make_experiment: Make, data: Dataset, tmp_path: Path, crash_before: Crash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "get", lambda name: Noisy)
    experiment = make_experiment("standard", epochs=2, checkpoint_seconds=0.0)
    expected = results(train(experiment, data, tmp_path / "straight", CPU))
    with crash_before(4):
        train(experiment, data, tmp_path / "resumed", CPU)
    torch.manual_seed(1)
    assert results(train(experiment, data, tmp_path / "resumed", CPU)) == expected


@dataclass
class Script:
    """Validation results to come, in order."""

    scores: list[tuple[float, float]]

    def __call__(self, *arguments: Any) -> dict[str, float]:
        clean, robust = self.scores.pop(0)
        return {"clean": clean, "robust": robust}


def test_resume_remembers_the_best_epoch(
    make_experiment: Make, data: Dataset, tmp_path: Path, crash_before: Crash, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("standard", epochs=3, checkpoint_seconds=0.0)
    monkeypatch.setattr(trainer, "validate", Script([(90.0, 50.0), (90.0, 40.0), (90.0, 30.0)]))
    with crash_before(4):
        train(experiment, data, tmp_path, CPU)
    folder = train(experiment, data, tmp_path, CPU)
    assert load_checkpoint(folder).metadata["epoch"] == 1
    assert read_manifest(folder)["best"] == {
        "score": 50.0,
        "epoch": 1,
        "validation": {"clean": 90.0, "robust": 50.0},
    }


@pytest.mark.parametrize("damage", ["truncated", "foreign", "another run's"])
def test_state_that_cannot_be_resumed_is_refused(
    damage: str, make_experiment: Make, data: Dataset, tmp_path: Path
) -> None:
    experiment = make_experiment("standard")
    path = run_folder(tmp_path, experiment, data) / "state.pt"
    path.parent.mkdir(parents=True)
    if damage == "truncated":
        path.write_bytes(b"PK\x03\x04")
    else:
        torch.save({"done": 3} if damage == "foreign" else {"model": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match="delete it to train from the start") as caught:
        train(experiment, data, tmp_path, CPU)
    assert "\n" not in str(caught.value)
    assert [item.name for item in path.parent.iterdir()] == ["state.pt"]
