"""One training on several devices: the same result as on one, and no rank that is left behind.

Run by the name __rank__, this file is one rank of the first test.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection, forkserver
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
# Every test here needs the same server of processes, and two cores.
pytestmark = pytest.mark.xdist_group("ranks")

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


def shortened(method: str) -> dict[str, Any]:
    """Return options under which a method's attack and chains take two steps."""
    attack = {"attack": {"steps": 2}} if hasattr(get(method).Config(), "attack") else {}
    chains = {"negatives": {"sampler": {"steps": 2}}}
    return attack | {"jem": chains, "jeat": chains, "ebjdat": {"host_options": chains}}.get(method, {})


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return base | over | both


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
    network: Callable[..., Classifier],
    make_method: Callable[..., Method],
    batch: Batch,
    tmp_path: Path,
    quick_start: None,
) -> None:
    assert batch.x_density is not None
    double = replace(batch, x=batch.x.double(), x_density=batch.x_density.double())
    cases: dict[str, tuple[str, dict[str, Any], int]] = {
        **{name: (method, options, 15) for name, (method, options) in CASES.items()},
        **{f"{name} of one image": (name, {}, 1) for name in ("standard", "trades", "jeat", "ebjdat")},
    }

    def made(case: str) -> tuple[Method, Classifier, Batch]:
        method, options, size = cases[case]
        options = merged(shortened(method), options)
        if method in SINGLE:
            images = replace(batch, x=batch.x[:size], y=batch.y[:size])
            return make_method(method, options), network(energy_head=True), images
        images = replace(double, x=double.x[:size], y=batch.y[:size])
        return make_method(method, options).double(), network().double(), images

    torch.save([made(case) for case in cases], tmp_path / "cases.pt")
    processes = [
        multiprocessing.get_context("forkserver").Process(
            target=runpy.run_path, args=(__file__, {"RANK": (rank, tmp_path)}, "__rank__")
        )
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * RANKS
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
            close({"": together["x_adv"]}, {"": expected.inner["x_adv"]}, case)


SINGLE = {"mebm"}
"""Whose energy head computes in float32 alone; no gradient of it passes a sign, and the longest sums have 576 terms."""
ROUNDING = 1e-5
"""Tolerance of a step, relative and absolute. Networks compute in float64, so that no sign of an attack turns. Logits
are cast to float32: a loss and its gradient are sums of up to 32 images and 10 classes, each rounded by 2^-24, in all
2.5e-6, and a gradient that is weighed by 6 (TRADES) may be four times as large as what it is a part of."""


def close(found: dict[str, Tensor], expected: dict[str, Tensor], case: str) -> None:
    bound = SUM if CASES.get(case, ("",))[0] in SINGLE else ROUNDING
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(
            value, expected[key], atol=bound, rtol=bound, msg=lambda said, key=key: f"{case}, {key}: {said}"
        )


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
    papers = [f"methods.{name}" for name in names() if get(name).several_devices]
    context.set_forkserver_preload(["methods.training.trainer", *papers, "torch._dynamo", "pytest", "benchmark.cli"])
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
        ("standard", {"backbone.norm": "none", "train.lr": 0.01, "train.ema": 0.9}),
        ("trades", {"train.lr": 0.001, "threat": "L2:0.5", "options.attack.start": "uniform"}),
    ],
)
def test_two_devices_train_what_one_does(
    recipe: str, settings: dict[str, Any], images: Path, tmp_path: Path, quick_start: None
) -> None:
    # A larger rate blows rounding up to 1e-2 within an epoch, whatever rounds otherwise (memory formats do).
    settings = settings | {"train.epochs": 2, "train.schedule": "constant", "data.augment.padding": 1}
    # Nothing in these trainings jumps, so that rounding is passed on and not blown up: no sign of a gradient (L2), no
    # kink of an activation, no direction of a gradient that is nearly 0 (TRADES beside the clean image).
    settings |= {"train.batch_size": 37, "backbone.architecture": "swish-wrn"}
    for devices in (1, 2):
        assert command(arguments(recipe, images, tmp_path / str(devices), devices, settings)) == 0
    one, two = folder_of(tmp_path / "1"), folder_of(tmp_path / "2")
    assert one.name == two.name
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    expected, found = lines(one), lines(two)
    # Batches of 37, 37 and 3, and a validation.
    assert len(expected) == len(found) == 2 * 4
    for number, (line, other) in enumerate(zip(expected, found, strict=True)):
        # One of 20 images may lie on the edge of two classes.
        assert line.pop("validation", {}) == pytest.approx(other.pop("validation", {}), abs=5.1)
        # Every step adds the rounding of one, and to its gradient that of the ten steps of its attack.
        assert line.keys() == other.keys()
        for key, value in line.items():
            bound = (1 + number) * SUM * (11 if key in ("gradient_norm", "delta_max") else 1)
            assert other[key] == pytest.approx(value, abs=bound, rel=bound), (number, key)
    for name in ("weights.safetensors", "best.safetensors"):
        weights, others = load_file(one / name), load_file(two / name)
        assert weights.keys() == others.keys()
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, atol=6 * SUM, rtol=6 * SUM)
    assert (read_manifest(one)["devices"], read_manifest(two)["devices"]) == (1, 2)
    assert load_checkpoint(two).metadata["digest"] == load_checkpoint(one).metadata["digest"]


SUM = 576 * 2**-24
"""Rounding of a step in float32: the longest sums of the network have 576 terms."""
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
    # The first step has the same weights, labelled images and attacks; of its loss, the chains' energies alone differ.
    labelled = {
        key for key in expected[0] if key.startswith(("energy_data", "energy_clean", "energy_adv", "clean", "adv"))
    }
    assert len(labelled) == 5
    for key in labelled:
        assert found[0][key] == pytest.approx(expected[0][key], rel=11 * SUM), key
    without = [line["loss"] + line["energy_samples"] for line in (expected[0], found[0])]
    assert without[0] == pytest.approx(without[1], abs=11 * SUM)
    first, second = (load_buffer(folder / "last-buffer.safetensors").float() / 255 for folder in (one, straight))
    energies = spread_of_a_mean_energy(one, first)
    mean, mean_square = (paired(first**power, second**power) for power in (1, 2))
    std = float((mean_square + 2 * first.mean() * mean) / (2 * first.std()))
    for line, other in zip(expected, found, strict=True):
        assert line.keys() == other.keys()
        assert line["nonfinite"] == other["nonfinite"] == 0
        # The chains are others, drawn from the same buffer by the same sampler.
        if "loss" in line:
            assert other["loss"] == pytest.approx(line["loss"], abs=SURE * energies)
            assert other["energy_samples"] == pytest.approx(line["energy_samples"], abs=SURE * energies)
            assert other["buffer_mean"] == pytest.approx(line["buffer_mean"], abs=SURE * mean)
            assert other["buffer_std"] == pytest.approx(line["buffer_std"], abs=SURE * std)
    assert first.shape == second.shape == (41, 1, 8, 8)
    # What the file holds is what both ranks together have logged of their slots.
    assert found[-2]["buffer_mean"] == pytest.approx(second.mean().item(), abs=1e-3)
    assert found[-2]["buffer_std"] == pytest.approx(second.std().item(), abs=1e-3)
    # Chains of either rank have moved: slots that were not drawn on one of the two sides are equal where they began.
    moved = (first - second).abs().flatten(1).amax(1) > 0
    assert all(moved[part].any() for part in (slice(20), slice(20, 41)))


SURE = 4.5
"""Standard errors by which two draws from one distribution differ once in 100,000 times."""


def paired(one: Tensor, other: Tensor) -> float:
    """Return the standard error of the difference of two means over images, pair by pair."""
    return float((one - other).flatten(1).mean(1).std() / len(one) ** 0.5)


def spread_of_a_mean_energy(folder: Path, images: Tensor) -> float:
    """Return the standard error of the difference of two mean energies, each of 19 chains."""
    with torch.no_grad():
        energies = -load_checkpoint(folder, "last").model.train()(images).logsumexp(1)
    return float(energies.std() * (2 / 19) ** 0.5)


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


def test_a_killed_rank_ends_all_and_the_same_command_continues(
    straight: Path, images: Path, tmp_path: Path, quick_start: None, capsys: pytest.CaptureFixture[str]
) -> None:
    again = arguments("ebjdat", images, tmp_path, 2, CHAINS)
    ranks_of_both: list[int] = []

    def status_if(step: int, stop: Callable[[list[int]], None]) -> int:
        """Run the command; stop it while it waits for its ranks, after a step."""

        def waited(sentinels: list[Any], timeout: float | None) -> list[Any]:
            if steps_of(tmp_path) < step:
                limit = time.monotonic() + PATIENCE
                while steps_of(tmp_path) < step:
                    assert time.monotonic() < limit
                    time.sleep(0.002)
                spawned = sorted(multiprocessing.active_children(), key=lambda rank: int(rank.name.rpartition("-")[2]))
                ranks_of_both.extend(rank.pid or 0 for rank in spawned)
                stop(ranks_of_both[-2:])
            return connection.wait(sentinels, timeout)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "wait", waited)
            return command(again)

    def interrupt(ranks: list[int]) -> None:
        raise KeyboardInterrupt

    assert status_if(2, interrupt) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert status_if(steps_of(tmp_path) + 2, lambda ranks: os.kill(ranks[1], signal.SIGKILL)) == 1
    assert_told(capsys.readouterr().err, images)
    assert len(ranks_of_both) == 4
    assert not any(map(alive, ranks_of_both)), "a rank was left behind"
    assert_continued(again, straight, images, tmp_path)


@pytest.mark.slow
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
    assert_told(error, images)
    assert_continued(again, straight, images, tmp_path)


def assert_told(error: str, images: Path) -> None:
    (sentence,) = (line for line in error.splitlines() if line.startswith("failed"))
    assert sentence == (
        f"failed: ebjdat on npz:{images}, seed 0: rank 1 of 2 was killed by signal 9 (SIGKILL). The other ranks were "
        "ended; the same command continues from the last checkpoint."
    )
    assert "Traceback" not in error


def assert_continued(again: list[str], straight: Path, images: Path, runs: Path) -> None:
    """Continue a training whose rank was killed, on two devices and on one, to the end of the straight one."""
    folder = folder_of(runs)
    assert not (folder / "manifest.json").exists()
    before = torch.load(folder / "state.pt")["done"]
    assert 0 < before < STEPS
    shutil.copytree(runs, alone := runs.with_name("alone"))

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
    spread = spread_of_a_mean_energy(one, load_buffer(one / "last-buffer.safetensors").float() / 255)
    assert last["loss"] == pytest.approx(expected["loss"], abs=SURE * spread)


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


if __name__ == "__rank__":
    be_a_rank(*globals()["RANK"])
