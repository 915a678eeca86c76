"""One training on several devices: the same result as on one, and no rank that is left behind.

Run as a script, this file is one rank of the first test.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmark.cli import main
from methods import get, names
from methods.backbones import Classifier
from methods.data import Dataset
from methods.errors import InputError
from methods.primitives import ranks
from methods.primitives.batch_norm import synchronise
from methods.primitives.threat import ThreatModel
from methods.training import distributed, setup
from methods.training.checkpoint import load_checkpoint
from methods.training.config import Experiment, TrainConfig
from methods.training.distributed import RankFailed, check_devices, on_devices
from methods.training.method import Batch, Inner, Losses, Method, observed
from methods.training.optim import Updater, optimizer
from methods.training.pictures import load_buffer
from methods.training.run_folder import read_manifest
from methods.training.setup import check

Make = Callable[..., Experiment]

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
RANKS = 2
"""15 images are shared as 7 and 8, and of a single one a rank has none."""
PATIENCE = 120.0

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in names() if get(name).several_devices},
    "pgd_at in train mode": ("pgd_at", {"attack_mode": "train"}),
    "agr from the start": ("agr", {"start": 0.0}),
    "agr around pgd_at": ("agr", {"start": 0.0, "base": "pgd_at"}),
    "awp around trades": ("awp", {"base": "trades"}),
    "ebjdat, absolute": ("ebjdat", {"h2": "absolute"}),
    "ebjdat on sadajem": ("ebjdat", {"host": "sadajem", "host_options": {"negatives": {"sampler": {"steps": 2}}}}),
    "mjem": ("mebm", {"w_clean": 1.0}),
}


@dataclass
class Stepped:
    """What a step left."""

    inner: Inner
    losses: Losses
    seen: dict[str, Tensor]
    weights: dict[str, Tensor]
    statistics: dict[str, Tensor]


def stepped(method: Method, model: Classifier, batch: Batch, inner: Inner | None = None) -> Stepped:
    """Make a step; with ``inner`` as the result of the inner problem."""
    modules = nn.ModuleList([model, method])
    weights = {name: value for name, value in modules.named_parameters() if value.requires_grad}
    update = Updater(optimizer(weights.values(), TrainConfig(lr=0.1, weight_decay=0.0)), None)
    own = method.inner(model, batch)
    used = own if inner is None else inner
    losses = method.descend(model, batch, update, lambda: method.loss(model, batch, used))
    losses = Losses(losses.total.detach(), {name: value.detach() for name, value in losses.terms.items()})
    seen = observed(batch, used) | {"gradient_norm": update.gradient_norm}
    statistics = {name: value for name, value in model.named_buffers() if "running" in name}
    detached = {name: value.detach() for name, value in weights.items()}
    return Stepped(own, losses, seen, detached, statistics)


def share_of(batch: Batch) -> Batch:
    assert batch.x_density is not None
    own, density = ranks.share(len(batch.x)), ranks.share(len(batch.x_density))
    return replace(batch, x=batch.x[own], y=batch.y[own], x_density=batch.x_density[density], of=len(batch.x))


def be_a_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    done: list[Stepped] = []
    with ranks.joined():
        for method, model, batch in torch.load(folder / "cases.pt", weights_only=False):
            synchronise(model)
            synchronise(method)
            done.append(stepped(method, model, share_of(batch)))
    torch.save([vars(step) | {"losses": vars(step.losses)} for step in done], folder / f"{rank}.pt")
    dist.barrier()


def test_a_step_is_that_of_one_device(
    network: Callable[..., Classifier], make_method: Callable[..., Method], batch: Batch, tmp_path: Path
) -> None:
    odd, single = (replace(batch, x=batch.x[:size], y=batch.y[:size]) for size in (15, 1))
    cases: dict[str, tuple[str, dict[str, Any], Batch]] = {
        **{name: (method, options, odd) for name, (method, options) in CASES.items()},
        **{f"{name} of one image": (name, {}, single) for name in ("standard", "trades", "jeat", "ebjdat")},
    }

    def made(case: str) -> tuple[Method, Classifier, Batch]:
        method, options, images = cases[case]
        return make_method(method, options), network(energy_head=method == "mebm"), images

    torch.save([made(case) for case in cases], tmp_path / "cases.pt")
    command = [sys.executable, str(Path(__file__).resolve())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * RANKS, "\n".join(errors)[-5000:]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]

    for case, *steps in zip(cases, *found, strict=True):
        method, model, images = made(case)
        together = {key: torch.cat([step["inner"][key] for step in steps]) for key in steps[0]["inner"]}
        expected = stepped(method, model, images, together)
        for step in steps:
            for kind in ("weights", "statistics"):
                assert all(torch.equal(value, steps[0][kind][key]) for key, value in step[kind].items()), case
            assert step["losses"]["terms"].keys() == expected.losses.terms.keys()
            close(step["weights"], expected.weights, case)
            close({"": step["losses"]["total"]}, {"": expected.losses.total}, case)
            close(step["losses"]["terms"], expected.losses.terms, case)
            close(step["seen"], expected.seen, case)
        if "x_q" not in together:
            close(steps[0]["statistics"], expected.statistics, case)
        if "x_adv" in together:
            # The random start is that of one device; where a gradient is nearly 0, rounding may turn its sign.
            off = (together["x_adv"] - expected.inner["x_adv"]).abs() > 1e-5
            assert off.float().mean() < 0.02, case


def close(found: dict[str, Tensor], expected: dict[str, Tensor], case: str) -> None:
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], atol=2e-5, rtol=2e-5, msg=lambda said: f"{case}: {said}")


TINY = {
    "backbone.widen": 1,
    "backbone.depth": 10,
    "train.warmup_steps": 0,
    "train.log_every": 1,
    "train.batch_size": 19,
    # Every step is a checkpoint to resume from.
    "train.checkpoint_seconds": 0,
    "data.validation": 20,
}


@pytest.fixture(scope="module")
def images(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "few.npz"
    x = torch.cat([digits.train.images, digits.test.images])
    y = torch.cat([digits.train.labels, digits.test.labels])
    # Train is cut to 97, of which 20 validate.
    np.savez(path, x_train=x[:97].numpy(), y_train=y[:97].numpy(), x_test=x[97:].numpy(), y_test=y[97:].numpy())
    return path


def arguments(recipe: str, images: Path, runs: Path, devices: int, settings: dict[str, Any]) -> list[str]:
    overrides = [part for key, value in (TINY | settings).items() for part in ("--set", f"{key}={value}")]
    chosen = ["--methods", recipe, "--dataset", f"npz:{images}", "--device", "cpu", "--devices", str(devices)]
    return ["train", *chosen, "--runs", str(runs), *overrides]


@pytest.fixture(scope="module")
def quick_start() -> Iterator[None]:
    """Fork ranks from a server that has imported torch once, which takes each seconds otherwise."""
    context = multiprocessing.get_context("forkserver")
    papers = ("ebjdat", "jempp", "standard", "trades")
    context.set_forkserver_preload(
        ["methods.training.trainer", *(f"methods.{paper}" for paper in papers), "torch._dynamo"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "_START", "forkserver")
        patch.setattr(distributed, "_cores", lambda: 2)
        yield
    # Other tests preload other modules into a server of their own; there can be one at a time.
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]


def command(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def folder_of(runs: Path) -> Path:
    (folder,) = runs.glob("*/*/*-s0")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("standard", {"backbone.norm": "none", "train.lr": 0.05, "train.ema": 0.9}),
        ("trades", {"train.lr": 0.001}),
    ],
)
def test_two_devices_train_what_one_does(
    recipe: str, settings: dict[str, Any], images: Path, tmp_path: Path, quick_start: None
) -> None:
    # A larger rate blows rounding up to 1e-2 within an epoch, whatever rounds otherwise (memory formats do).
    settings = settings | {"train.epochs": 2, "train.schedule": "constant", "data.augment.padding": 1}
    settings["train.batch_size"] = 37
    for devices in (1, 2):
        assert command(arguments(recipe, images, tmp_path / str(devices), devices, settings)) == 0
    one, two = folder_of(tmp_path / "1"), folder_of(tmp_path / "2")
    assert one.name == two.name
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    expected, found = lines(one), lines(two)
    # Batches of 37, 37 and 3, and a validation.
    assert len(expected) == len(found) == 2 * 4
    for line, other in zip(expected, found, strict=True):
        assert line.pop("validation", {}) == pytest.approx(other.pop("validation", {}), abs=5.1)
        # A sign that rounding turned in the attack shows in the gradient first.
        assert line.pop("gradient_norm", 0) == pytest.approx(other.pop("gradient_norm", 0), rel=2e-2)
        assert line == pytest.approx(other, abs=1e-4, rel=1e-4)
    for name in ("weights.safetensors", "best.safetensors"):
        weights, others = load_file(one / name), load_file(two / name)
        assert weights.keys() == others.keys()
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, atol=1e-4, rtol=1e-3)
    assert (read_manifest(one)["devices"], read_manifest(two)["devices"]) == (1, 2)
    assert load_checkpoint(two).metadata["digest"] == load_checkpoint(one).metadata["digest"]


CHAINS = {
    "options.host_options.negatives.buffer_size": 41,
    "options.host_options.negatives.sampler.steps": 2,
    "train.epochs": 3,
    "train.lr": 0.01,
    "train.drop_last": "false",
    "guard.accuracy_floor": "null",
    "guard.accuracy_drop": "null",
}
STEPS = 3 * 5
"""77 images make four steps of 19 an epoch and one of a single image, of which one of two ranks has none."""


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory, quick_start: None) -> Path:
    """Return the folder of EB-JDAT, trained on two devices without interruption."""
    runs = tmp_path_factory.mktemp("straight")
    assert command(arguments("ebjdat", images, runs, 2, CHAINS)) == 0
    return folder_of(runs)


def test_chains_on_two_devices(straight: Path, images: Path, tmp_path: Path) -> None:
    """Labelled images and their attacks are those of one device, and each rank has chains of its own."""
    assert command(arguments("ebjdat", images, tmp_path, 1, CHAINS)) == 0
    one = folder_of(tmp_path)
    expected, found = lines(one), lines(straight)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(expected, found, strict=True):
        assert line.keys() == other.keys()
        assert line["nonfinite"] == other["nonfinite"] == 0
        # The chains are others, drawn from the same buffer by the same sampler; each tolerance is twice what was seen.
        if "loss" in line:
            assert other["loss"] == pytest.approx(line["loss"], abs=0.04)
            assert other["buffer_mean"] == pytest.approx(line["buffer_mean"], abs=0.006)
            assert other["buffer_std"] == pytest.approx(line["buffer_std"], abs=0.006)
    first, second = (load_buffer(folder / "last-buffer.safetensors").float() / 255 for folder in (one, straight))
    assert first.shape == second.shape == (41, 1, 8, 8)
    # What the file holds is what both ranks together have logged of their slots.
    assert found[-2]["buffer_mean"] == pytest.approx(second.mean().item(), abs=1e-3)
    assert found[-2]["buffer_std"] == pytest.approx(second.std().item(), abs=1e-3)
    # Chains of either rank have moved: slots that were not drawn on one of the two sides are equal where they began.
    moved = (first - second).abs().flatten(1).amax(1) > 0
    assert all(moved[part].any() for part in (slice(20), slice(20, 41)))


def steps_of(runs: Path) -> int:
    logs = list(runs.glob("*/*/*/log.jsonl"))
    return logs[0].read_text().count('"lr"') if logs else 0


def children(pid: int) -> list[int]:
    """Return the ranks of a command, by number."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return sorted(child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def stopped(arguments: list[str], runs: Path, step: int, stop: Callable[[int, list[int]], None]) -> tuple[int, str]:
    """Start a command of two ranks in processes of its own and, after ``step``, stop it; return its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmark", *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell without job control starts what it puts in the background, these tests perhaps, deaf to interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        limit = time.monotonic() + PATIENCE
        while steps_of(runs) < step:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.002)
        spawned = children(process.pid)
        assert len(spawned) == 2
        stop(process.pid, spawned)
        _, error = process.communicate(timeout=PATIENCE)
        while any(map(alive, spawned)):
            assert time.monotonic() < limit, "a rank was left behind"
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, error


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_an_ended_rank_ends_all_and_the_same_command_continues(straight: Path, images: Path, tmp_path: Path) -> None:
    again = arguments("ebjdat", images, tmp_path, 2, CHAINS)

    # A terminal sends an interrupt to every process.
    status, error = stopped(again, tmp_path, 2, lambda command, ranks: os.killpg(command, signal.SIGINT))
    assert status == 130, error
    assert "Traceback" not in error
    before = steps_of(tmp_path)

    status, error = stopped(again, tmp_path, before + 2, lambda command, ranks: os.kill(ranks[1], signal.SIGKILL))
    assert status == 1
    (sentence,) = (line for line in error.splitlines() if line.startswith("failed"))
    assert sentence == (
        f"failed: ebjdat on npz:{images}, seed 0: rank 1 of 2 was killed by signal 9 (SIGKILL). The other ranks were "
        "ended; the same command continues from the last checkpoint."
    )
    assert "Traceback" not in error
    folder = folder_of(tmp_path)
    assert not (folder / "manifest.json").exists()
    before = torch.load(folder / "state.pt")["done"]
    assert 0 < before < STEPS
    shutil.copytree(tmp_path, alone := tmp_path.with_name("alone"))

    assert command(again) == 0
    for name in ("log.jsonl", "weights.safetensors", "best.safetensors", "last-buffer.safetensors"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name

    # What two devices saved, one takes up.
    assert command(arguments("ebjdat", images, alone, 1, CHAINS)) == 0
    one = folder_of(alone)
    assert read_manifest(one)["devices"] == 1
    assert lines(one)[:before] == lines(straight)[:before]
    assert [line["step"] for line in lines(one)] == [line["step"] for line in lines(straight)]
    last, expected = lines(one)[-2], lines(straight)[-2]
    assert last["loss"] == pytest.approx(expected["loss"], abs=0.04)


def test_a_collapse_is_recorded_once(
    images: Path, tmp_path: Path, quick_start: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guard of rank 0 rolls every rank back, and then stops all."""
    guard = {"guard.action": "rollback", "guard.loss_size": 1e-3, "guard.max_restarts": 1, "guard.lr_factor": 0.5}
    chosen = arguments("standard", images, tmp_path, 2, guard)
    assert command(chosen) == 1
    error = capsys.readouterr().err
    assert error.startswith("failed: ")
    assert error.endswith("after 1 rollbacks.\n")
    folder = folder_of(tmp_path)
    manifest = read_manifest(folder)
    assert (manifest["status"], manifest["restarts"], manifest["devices"]) == ("failed", 1, 2)
    assert [line.get("event") for line in lines(folder)] == [None, "rollback", None, "stop"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--devices": "0"}, "--devices must be at least 1, not 0."),
        ({"--methods": "tdat"}, "tdat is not trained on several devices"),
        ({"--methods": "awp", "--set": 'options.base="tdat"'}, "tdat, the method inside awp, is not trained"),
        ({"--set": "train.batch_size=1"}, "A batch of 1 images cannot be shared among 2 devices."),
        ({"--devices": "1000000"}, "1000000 devices were asked for, but this machine has 2 CPU cores."),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_is_written(
    changes: dict[str, str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    quick_start: None,
) -> None:
    options = {"--methods": "standard", "--devices": "2", "--device": "cpu", "--runs": str(tmp_path)} | changes
    assert command(["train", *(part for option in options.items() for part in option)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {sentence}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_method_speaks_for_itself(make_experiment: Make, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a subclass of a method computes may well not be shared."""

    class Stranger(get("standard")):
        pass

    monkeypatch.setattr(setup, "get", lambda name: Stranger)
    check(make_experiment("standard"), digits)
    with pytest.raises(InputError, match="is not trained on several devices"):
        check(make_experiment("standard"), digits, devices=2)


def test_devices_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(torch.device("cuda"), 2)
    check_devices(torch.device("cuda:1"), 1)
    with pytest.raises(InputError, match="8 devices were asked for, but this machine has 2 GPUs"):
        check_devices(torch.device("cuda"), 8)
    with pytest.raises(InputError, match="give --device cuda, not cuda:1"):
        check_devices(torch.device("cuda:1"), 2)


def test_an_unexpected_error_is_told_with_its_trace(quick_start: None) -> None:
    # What is called with a device alone and can be pickled without this file.
    with pytest.raises(RankFailed, match="some work: rank 0 of 2 failed: TypeError: object") as caught:
        on_devices(cast(Any, len), CPU, 2, "some work", (InputError,))
    assert "Traceback" in str(caught.value.__cause__)
    with pytest.raises(InputError, match="Unknown norm"):
        on_devices(partial(cast(Any, ThreatModel), "L7"), CPU, 2, "some work", (InputError,))


if __name__ == "__main__":
    be_a_rank(int(sys.argv[1]), Path(sys.argv[2]))
