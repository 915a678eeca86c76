"""A training that collapses goes back to a good state and finishes, or stops and says so; it never just goes on."""

import itertools
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from methods import files
from methods.data import Dataset, ImageSet
from methods.errors import InputError
from methods.jem import JEM
from methods.primitives.random import derive
from methods.standard import Standard
from methods.training import setup, trainer
from methods.training.checkpoint import load_checkpoint
from methods.training.config import Experiment
from methods.training.guard import Alarm, Guard, read_log, replay
from methods.training.method import Batch, Inner, Losses, Update
from methods.training.run_folder import read_manifest, run_folder
from methods.training.trainer import TrainingFailed, train

Make = Callable[..., Experiment]
Row = dict[str, Any]

CPU = torch.device("cpu")
PER_EPOCH, STEPS = 3, 18
LIMITS = Guard(
    action="rollback",
    energy_gap=1e3,
    energy_size=1e4,
    loss_size=1e5,
    buffer_std=0.05,
    saturated=0.9,
    accuracy_drop=20,
    patience=2,
)
LIMITS_OF_ANY = Guard(action="rollback")
FAULTS = {
    "loss": "nonfinite",
    "gradient": "nonfinite",
    "chains": "nonfinite",
    "weights": "nonfinite",
    "explosion": "loss_size",
    "energies apart": "energy_gap",
    "energies large": "energy_size",
    "dead buffer": "buffer_std",
    "saturation": "saturated",
    "forgetting": "accuracy_drop",
}
"""Faults that :class:`Faulty` has, and the alarm that each must raise."""


def thoroughly(*fast: str) -> list[Any]:
    """Return every fault as a parameter, those beside the named ones for the slow tests."""
    assert set(fast) <= FAULTS.keys()
    return [pytest.param(fault, marks=() if fault in fast else pytest.mark.slow) for fault in FAULTS]


class Faulty(Standard):
    """Standard training beside a buffer of images, with a fault from optimiser step ``at`` on, counted from 0."""

    images: Tensor
    fault = "none"
    at = 10
    attempts = 1
    """Attempts of the training that have the fault."""

    def prepare(self, train: ImageSet) -> None:
        self.register_buffer("images", train.unit()[:40].clone())

    def broken(self, batch: Batch) -> bool:
        # The first attempt's seed is the run's own; each rollback draws another.
        attempts = [self.task.seed, *(derive(self.task.seed, "restart", k) for k in range(1, self.attempts))]
        return batch.step >= self.at and batch.seed in attempts

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        images = 0.9 * self.images + 0.1 * torch.rand(self.images.shape, generator=batch.generator("noise"))
        if self.broken(batch):
            if self.fault == "dead buffer":
                images = torch.full_like(images, 0.5)
            elif self.fault == "saturation":
                images = (images > 0.5).float()
        self.images.copy_(images)
        chains = images[:8].clone()
        if self.broken(batch) and self.fault == "chains":
            chains[0, 0, 0, :3] = torch.nan
        return {"chains": chains}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        losses = super().loss(model, batch, inner)
        total, zero = losses.total, torch.zeros(())
        energies = {"energy_data": zero - 3, "energy_samples": zero - 4}
        if self.broken(batch):
            if self.fault == "loss":
                total = total * torch.nan
            elif self.fault == "gradient":
                total = total + (0 * total).sqrt()
            elif self.fault == "explosion":
                total = total * 1e6
            elif self.fault == "energies apart":
                energies["energy_samples"] = zero - 2e3
            elif self.fault == "energies large":
                energies = {"energy_data": zero - 2e4, "energy_samples": zero - 2e4}
        return Losses(total, losses.terms | energies)

    def step(self, model: nn.Module, batch: Batch, update: Update) -> Losses:
        losses = super().step(model, batch, update)
        # The last step of an epoch, so that nothing but a validation sees it.
        if self.broken(batch) and (batch.step + 1) % PER_EPOCH == 0:
            with torch.no_grad():
                last = list(model.parameters())[-2]
                if self.fault == "weights":
                    last.fill_(torch.nan)
                elif self.fault == "forgetting":
                    last.zero_()
        return losses

    def report(self) -> dict[str, Tensor]:
        return {
            "buffer_std": self.images.std(),
            "buffer_saturated": ((self.images <= 0) | (self.images >= 1)).float().mean(),
        }

    @property
    def samples(self) -> Tensor:
        return self.images


def planted(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> type[Faulty]:
    """Make the trainer train a method with a fault."""
    method = type("Planted", (Faulty,), attributes)
    monkeypatch.setattr(setup, "get", lambda name: method)
    return method


@pytest.fixture
def make_experiment(make_experiment: Make) -> Make:
    """Make experiments whose validation, half of such a training's time, attacks with two steps."""
    return partial(make_experiment, select_attack={"steps": 2})


def steps(log: list[Row]) -> list[Row]:
    return [line for line in log if "lr" in line]


def interventions(log: list[Row]) -> list[Alarm]:
    return [Alarm(*(line[key] for key in ("step", "epoch", "cause", "found"))) for line in log if "event" in line]


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a run but its manifest, which holds times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def guarded(make_experiment: Make, guard: Guard) -> Experiment:
    """Make a training whose validation accuracy is some 45 % after 6 steps and 60 % after 12, and not 10 %."""
    experiment = make_experiment("standard", optimizer="adam", lr=0.01)
    return replace(experiment, backbone=replace(experiment.backbone, norm_momentum=0.5), guard=guard)


def strict(text: str) -> list[Row]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


# Of each kind one: seen by a step, by a validation alone, after some patience, and in the accuracy.
@pytest.mark.parametrize("fault", thoroughly("explosion", "weights", "dead buffer", "forgetting"))
def test_every_fault_ends_in_a_rollback_and_a_finished_run(
    fault: str, make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, fault=fault)
    folder = train(guarded(make_experiment, LIMITS), digits, tmp_path, CPU)
    manifest, log = read_manifest(folder), strict((folder / "log.jsonl").read_text())

    assert (manifest["status"], manifest["error"], manifest["collapse"]) == ("finished", None, None)
    assert manifest["restarts"] == 1
    (intervention,) = manifest["interventions"]
    assert intervention["cause"] == FAULTS[fault]
    # The older of two snapshots: the fault begins at step 11, after the validations at steps 3, 6 and 9.
    assert intervention["to"] == 6
    seen = intervention["step"]
    assert 11 <= seen <= 15

    (event,) = [line for line in log if "event" in line]
    assert event == intervention | {"event": "rollback", "lr_factor": 0.5}
    first, second = [[line for line in steps(log) if line["attempt"] == attempt] for attempt in (0, 1)]
    assert [line["step"] for line in first] == list(range(1, seen + 1))
    assert [line["step"] for line in second] == list(range(7, STEPS + 1))
    assert {line["lr"] for line in first} == {0.01}
    assert {line["lr"] for line in second} == {0.005}
    # The second attempt draws other batches than the first drew at the same steps, with the same weights.
    assert first[6]["step"] == second[0]["step"] == 7
    assert first[6]["loss"] != second[0]["loss"]

    assert replay(folder / "log.jsonl", LIMITS) == interventions(log)
    assert all(value.isfinite().all() for value in load_file(folder / "weights.safetensors").values())
    assert not list(folder.glob("*.pt"))


@pytest.mark.parametrize("fault", thoroughly("loss", "saturation"))
def test_every_fault_ends_in_a_clear_stop(
    fault: str, make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, fault=fault)
    guard = replace(LIMITS, action="stop")
    experiment = guarded(make_experiment, guard)
    with pytest.raises(TrainingFailed) as caught:
        train(experiment, digits, tmp_path, CPU)
    folder = run_folder(tmp_path, experiment, digits)
    manifest, log = read_manifest(folder), strict((folder / "log.jsonl").read_text())

    seen = manifest["collapse"]["step"]
    assert manifest["status"] == "failed"
    assert manifest["collapse"]["cause"] == FAULTS[fault]
    assert (manifest["restarts"], manifest["interventions"]) == (0, [])
    assert manifest["error"] == str(caught.value)
    assert " of tiny_standard " in str(caught.value)
    assert f" at step {seen}" in str(caught.value)
    assert "\n" not in str(caught.value)

    assert log[-1] == manifest["collapse"] | {"event": "stop"}
    assert max(line["step"] for line in log) == seen
    assert replay(log, guard) == interventions(log)
    # What was validated before is kept, and nothing after.
    best = load_checkpoint(folder).metadata["epoch"]
    assert best == manifest["best"]["epoch"]
    assert best * PER_EPOCH < seen
    assert not (folder / "weights.safetensors").exists()
    assert not list(folder.glob("*.pt"))


def test_every_fault_is_seen_in_its_log_and_by_default_only_non_finite_values_stop(
    make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of a training without limits, read again with limits, names the fault: what a guard would act on."""
    seen: dict[str, list[tuple[str, bool]]] = {}
    for fault in ("none", *FAULTS):
        # From step 8 on; the third validation, at step 9, is the last one.
        planted(monkeypatch, fault=fault, at=7)
        default = guarded(make_experiment, Guard())
        experiment = replace(default, train=replace(default.train, epochs=3))
        runs = tmp_path / fault
        if FAULTS.get(fault) == "nonfinite":
            with pytest.raises(TrainingFailed, match=r"became non-finite at step [89]\.$"):
                train(experiment, digits, runs, CPU)
        else:
            assert read_manifest(train(experiment, digits, runs, CPU))["restarts"] == 0
        log = run_folder(runs, experiment, digits) / "log.jsonl"
        alarms = replay(strict(log.read_text()), LIMITS)
        seen[fault] = list(dict.fromkeys((alarm.cause, 8 <= alarm.step <= 9) for alarm in alarms))
    assert seen == {"none": []} | {fault: [(cause, True)] for fault, cause in FAULTS.items()}


def test_collapse_that_comes_back_stops_the_training(
    make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, fault="loss", attempts=9)
    guard = replace(LIMITS, max_restarts=2, lr_factor=0.1)
    experiment = replace(make_experiment("standard"), guard=guard)
    with pytest.raises(TrainingFailed) as caught:
        train(experiment, digits, tmp_path, CPU)
    assert (
        str(caught.value)
        == "The loss and gradient_norm of tiny_standard became non-finite at step 11, after 2 rollbacks."
    )
    folder = run_folder(tmp_path, experiment, digits)
    manifest, log = read_manifest(folder), read_log(folder / "log.jsonl")
    assert manifest["restarts"] == 2
    assert [(item["step"], item["to"], item["restarts"]) for item in manifest["interventions"]] == [
        (11, 6, 1),
        # The snapshot of step 9 of the second attempt is the younger one.
        (11, 6, 2),
    ]
    assert [line["event"] for line in log if "event" in line] == ["rollback", "rollback", "stop"]
    assert {line["attempt"]: line["lr"] for line in steps(log)} == pytest.approx({0: 0.05, 1: 0.005, 2: 0.0005})
    assert replay(log, guard) == interventions(log)
    with pytest.raises(TrainingFailed, match=r"after 2 rollbacks\. Delete .* to train it again"):
        train(experiment, digits, tmp_path, CPU)


@pytest.mark.parametrize("at", [0, pytest.param(1, marks=pytest.mark.slow), 4])
def test_collapse_before_the_second_validation_goes_back_to_the_start(
    at: int, make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, fault="loss", at=at)
    folder = train(replace(make_experiment("standard"), guard=LIMITS), digits, tmp_path, CPU)
    (intervention,) = read_manifest(folder)["interventions"]
    assert (intervention["step"], intervention["to"]) == (at + 1, 0)
    second = [line["step"] for line in steps(read_log(folder / "log.jsonl")) if line["attempt"] == 1]
    assert second == list(range(1, STEPS + 1))


class Script:
    """Validation results by the number of times that validation was asked for."""

    def __init__(self, *robust: float) -> None:
        self.robust = list(robust)

    def __call__(self, *arguments: Any) -> dict[str, float]:
        return {"clean": 90.0, "robust": self.robust.pop(0)}


def test_best_of_what_was_undone_does_not_survive(
    make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 3's 80 % belong to an attempt that collapsed; epoch 2's 50 % do not."""
    planted(monkeypatch, fault="loss")
    monkeypatch.setattr(trainer, "validate", Script(40, 50, 80, 45, 44, 43, 42, 41))
    experiment = replace(make_experiment("standard"), guard=LIMITS)
    folder = train(experiment, digits, tmp_path, CPU)
    assert read_manifest(folder)["best"]["epoch"] == 2
    assert load_checkpoint(folder).metadata["epoch"] == 2

    planted(monkeypatch)
    monkeypatch.setattr(trainer, "validate", Script(40, 50))
    straight = train(make_experiment("standard", epochs=2), digits, tmp_path / "straight", CPU)
    for name in ("best.safetensors", "best-buffer.safetensors"):
        kept, expected = load_file(folder / name), load_file(straight / name)
        assert all(torch.equal(kept[key], expected[key]) for key in expected), name


def test_best_of_a_start_that_was_undone_is_removed(
    make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, fault="loss", at=4, attempts=2)
    guard = replace(LIMITS, max_restarts=1)
    experiment = replace(make_experiment("standard", validate_every=1), guard=guard)
    monkeypatch.setattr(trainer, "validate", Script(40, 30))
    found: list[bool] = []
    original = trainer._Training._step

    def watched(self: Any, number: int) -> Any:
        found.append((self.folder / "best.safetensors").exists())
        return original(self, number)

    monkeypatch.setattr(trainer._Training, "_step", watched)
    with pytest.raises(TrainingFailed):
        train(experiment, digits, tmp_path, CPU)
    # Steps 1 to 5, rollback to the start, and again.
    assert found == [False, False, False, True, True] * 2


def test_no_snapshot_is_taken_while_a_limit_is_broken(
    make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault begins at step 5 and alarms at step 10; the validations at steps 6 and 9 are not to go back to."""
    planted(monkeypatch, fault="dead buffer", at=4)
    experiment = replace(make_experiment("standard"), guard=replace(LIMITS, patience=6))
    folder = train(experiment, digits, tmp_path, CPU)
    (intervention,) = read_manifest(folder)["interventions"]
    assert (intervention["step"], intervention["to"]) == (10, 0)


def test_guard_that_watches_what_is_not_logged_is_refused(
    make_experiment: Make, digits: Dataset, tmp_path: Path
) -> None:
    experiment = replace(make_experiment("standard"), guard=Guard(buffer_std=0.1))
    with pytest.raises(InputError, match=r'guard\.buffer_std watches "buffer_std"'):
        train(experiment, digits, tmp_path, CPU)


def test_training_that_learns_nothing_is_stopped(
    make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no good state to go back to."""
    monkeypatch.setattr(trainer, "validate", lambda *arguments: {"clean": 10.0, "robust": 0.0})
    guard = Guard(action="rollback", accuracy_drop=20, accuracy_floor=15)
    experiment = replace(make_experiment("standard"), guard=guard)
    with pytest.raises(TrainingFailed, match=r"of tiny_standard never rose, as seen at step 9: 10\.0 %, limit 15 %"):
        train(experiment, digits, tmp_path, CPU)
    manifest = read_manifest(run_folder(tmp_path, experiment, digits))
    assert (manifest["collapse"]["cause"], manifest["restarts"]) == ("accuracy_floor", 0)


class Once(Standard):
    """Its loss is NaN once, at step 11."""

    def prepare(self, train: ImageSet) -> None:
        self.spent = False

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        losses = super().loss(model, batch, inner)
        if batch.step == 10 and not self.spent:
            self.spent = True
            return Losses(losses.total * torch.nan, losses.terms)
        return losses


@pytest.mark.parametrize(
    "optimizer", [{"optimizer": "adam", "lr": 0.01}, pytest.param({"momentum": 0.9}, marks=pytest.mark.slow)]
)
def test_every_part_of_the_state_is_rolled_back(
    optimizer: dict[str, Any],
    make_experiment: Make,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the old streams and rate, what follows a rollback is a training that never had a fault."""
    experiment = make_experiment("standard", ema=0.9, **optimizer)
    expected = train(experiment, digits, tmp_path / "straight", CPU)
    monkeypatch.setattr(setup, "get", lambda name: Once)
    monkeypatch.setattr(trainer, "derive", lambda seed, *names: seed if "restart" in names else derive(seed, *names))
    folder = train(replace(experiment, guard=replace(LIMITS_OF_ANY, lr_factor=1.0)), digits, tmp_path, CPU)
    assert read_manifest(folder)["restarts"] == 1
    for name in ("weights.safetensors", "best.safetensors"):
        found, wanted = load_file(folder / name), load_file(expected / name)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), name


class Interrupted(Exception):
    """Stands for a crash inside a process."""


def interrupt_write(monkeypatch: pytest.MonkeyPatch, number: int, late: bool) -> list[str]:
    """Crash at the file of that number, from 0, before it is in place or after; return the names of all files."""
    written: list[str] = []
    original = os.replace

    def replaced(source: Path, target: Path) -> None:
        crash = len(written) == number
        written.append(Path(target).name)
        if not crash or late:
            original(source, target)
        if crash:
            raise Interrupted

    monkeypatch.setattr(files.os, "replace", replaced)
    return written


@pytest.mark.parametrize("fault", ["dead buffer", pytest.param("forgetting", marks=pytest.mark.slow)])
def test_resume_restores_what_the_detector_has_seen(
    fault: str, make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between the best validation and the fall, and between the first broken step and the alarm."""
    planted(monkeypatch, fault=fault)
    experiment = guarded(make_experiment, replace(LIMITS, patience=4))
    experiment = replace(experiment, train=replace(experiment.train, checkpoint_seconds=0.0))
    expected = content(train(experiment, digits, tmp_path / "straight", CPU))
    original = trainer._Training._step

    def interrupted(self: Any, number: int) -> Any:
        if number == 11 and self.seed == 0:
            raise Interrupted
        return original(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Training, "_step", interrupted)
        with pytest.raises(Interrupted):
            train(experiment, digits, tmp_path / "resumed", CPU)
    folder = train(experiment, digits, tmp_path / "resumed", CPU)
    found = content(folder)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert read_manifest(folder)["interventions"][0]["cause"] == FAULTS[fault]


@pytest.mark.parametrize(
    ("checkpoint_seconds", "count"),
    [(0.0, 2), *(pytest.param(seconds, 12, marks=pytest.mark.slow) for seconds in (0.0, 1e9))],
)
def test_interrupted_at_any_file_a_rolled_back_run_ends_with_the_same_bits(
    checkpoint_seconds: float,
    count: int,
    make_experiment: Make,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted(monkeypatch, fault="loss")
    experiment = make_experiment("standard", epochs=5, checkpoint_seconds=checkpoint_seconds)
    experiment = replace(experiment, guard=LIMITS)
    with monkeypatch.context() as patch:
        names = interrupt_write(patch, -1, late=False)
        expected = content(train(experiment, digits, tmp_path / "straight", CPU))
    assert [name for name in names if name.startswith("good-")] == [
        f"good-{attempt}-{step}.pt" for attempt, step in ((0, 0), (0, 3), (0, 6), (0, 9), (1, 9), (1, 12), (1, 15))
    ]
    # The manifest is last: with it, the run has ended.
    moments = list(itertools.product(range(len(names) - 1), (False, True)))
    for number, late in random.Random(0).sample(moments, count):
        runs = tmp_path / f"{number} {late}"
        with monkeypatch.context() as patch:
            interrupt_write(patch, number, late)
            with pytest.raises(Interrupted):
                train(experiment, digits, runs, CPU)
        found = content(train(experiment, digits, runs, CPU))
        assert found.keys() == expected.keys(), (number, late)
        assert [name for name in expected if found[name] != expected[name]] == [], (names[number], number, late)


@pytest.mark.parametrize(
    ("action", "fault"),
    [
        ("rollback", "dead buffer"),
        ("stop", "NaN"),
        *(
            pytest.param(action, fault, marks=pytest.mark.slow)
            for action, fault in itertools.product(("rollback", "stop"), ("NaN", "explosion", "dead buffer"))
            if (action, fault) not in {("rollback", "dead buffer"), ("stop", "NaN")}
        ),
    ],
)
def test_jem_never_ends_in_a_silent_collapse(
    action: Any, fault: str, make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = random.Random(f"{action} {fault}").randrange(STEPS - LIMITS.patience)

    class FaultyJEM(JEM):
        def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
            losses = super().loss(model, batch, inner)
            broken = batch.step == at and batch.seed == self.task.seed
            factor = {"NaN": torch.nan, "explosion": 1e8}.get(fault, 1.0) if broken else 1.0
            return Losses(losses.total * factor, losses.terms)

        def inner(self, model: nn.Module, batch: Batch) -> Inner:
            found = super().inner(model, batch)
            if fault == "dead buffer" and batch.step >= at and batch.seed == self.task.seed:
                buffer = self.negatives.buffer
                buffer.update(torch.arange(len(buffer.images)), torch.full_like(buffer.images, 0.5))
            return found

    monkeypatch.setattr(setup, "get", lambda name: FaultyJEM)
    options = {"negatives": {"buffer_size": 40, "sampler": {"steps": 2}}}
    experiment = make_experiment("jem", options, optimizer="adam", lr=1e-3)
    experiment = replace(experiment, guard=replace(LIMITS, action=action))
    folder = run_folder(tmp_path, experiment, digits)
    if action == "stop":
        with pytest.raises(TrainingFailed, match=rf"of tiny_jem .* at step ({at + 1}|{at + 2})\b"):
            train(experiment, digits, tmp_path, CPU)
    else:
        train(experiment, digits, tmp_path, CPU)
    manifest, log = read_manifest(folder), read_log(folder / "log.jsonl")
    events = interventions(log)
    assert len(events) == 1, (fault, at)
    assert at < events[0].step <= at + 3, (fault, at)
    assert replay(log, experiment.guard) == events
    if action == "stop":
        assert (manifest["status"], manifest["collapse"]["step"]) == ("failed", events[0].step)
    else:
        assert (manifest["status"], manifest["restarts"]) == ("finished", 1)
        assert read_log(folder / "log.jsonl")[-1]["step"] == STEPS
        assert all(value.isfinite().all() for value in load_file(folder / "weights.safetensors").values())
