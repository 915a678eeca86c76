"""The training loop: what a step moves, what is saved, and failures that leave a record."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from methods.data import Dataset
from methods.standard import Standard
from methods.training import setup, trainer
from methods.training.checkpoint import load_checkpoint
from methods.training.config import Experiment
from methods.training.guard import read_log
from methods.training.method import Batch, Inner, Losses
from methods.training.run_folder import read_manifest, run_folder
from methods.training.trainer import TrainingFailed, train

Make = Callable[..., Experiment]
Crash = Callable[[int], AbstractContextManager[None]]

CPU = torch.device("cpu")


RESULTS = ("weights.safetensors", "best.safetensors", "log.jsonl", "config.yaml")
STEPS = 18


def flat(model: nn.Module) -> Tensor:
    """Return all weights in one vector, a copy."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def forbidden(*arguments: Any, **keywords: Any) -> None:
    raise AssertionError("trained again")


def test_finished_run_is_not_repeated(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("standard", epochs=1)
    folder = train(experiment, data, tmp_path, CPU)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(times) == {*RESULTS, "manifest.json"}
    monkeypatch.setattr(trainer, "_Training", forbidden)
    assert train(experiment, data, tmp_path, CPU) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    with pytest.raises(AssertionError, match="trained again"):
        train(replace(experiment, seed=1), data, tmp_path, CPU)


class Diverging(Standard):
    """Its loss is infinite from optimiser step 7 on, counted from 0."""

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        losses = super().loss(model, batch, inner)
        factor = float("inf") if batch.step >= 7 else 1.0
        return Losses(losses.total * factor, {"natural": losses.total.detach()})


@pytest.mark.parametrize("log_every", [1, 100])
def test_non_finite_loss_stops_with_a_record(
    log_every: int, make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("standard", log_every=log_every)
    with monkeypatch.context() as patch:
        patch.setattr(setup, "get", lambda name: Diverging)
        with pytest.raises(TrainingFailed, match="non-finite at step 8"):
            train(experiment, data, tmp_path, CPU)
    folder = run_folder(tmp_path, experiment, data)
    manifest = read_manifest(folder)
    assert (manifest["status"], manifest["steps"]) == ("failed", 8)
    assert manifest["error"] == "The loss and gradient_norm of tiny_standard became non-finite at step 8."
    step, stop = read_log(folder / "log.jsonl")[-2:]
    assert (step["step"], step["loss"], step["natural"] > 0, step["nonfinite"]) == (8, None, True, 2)
    assert stop["event"] == "stop"
    assert not (folder / "weights.safetensors").exists()

    monkeypatch.setattr(trainer, "_Training", forbidden)
    with pytest.raises(TrainingFailed, match=r"at step 8\. Delete .* to train it again"):
        train(experiment, data, tmp_path, CPU)


def test_moving_average_of_weights_and_copy_of_buffers(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    """adversarial-training.md, trap 8."""
    experiment = make_experiment("standard", ema=0.9)
    training = trainer._Training(experiment, data, tmp_path, CPU)
    training.state.model.train()
    assert training.state.ema is not None
    averaged = training.state.ema.module
    expected = None
    for step in range(4):
        training._step(step)
        weights = flat(training.state.model)
        # The first average is the first weights.
        expected = weights if expected is None else 0.9 * expected + 0.1 * weights
        torch.testing.assert_close(flat(averaged), expected)
    assert not torch.allclose(flat(averaged), flat(training.state.model))
    buffers = dict(averaged.named_buffers())
    for name, value in training.state.model.named_buffers():
        assert torch.equal(buffers[name], value), name
        assert buffers[name].data_ptr() != value.data_ptr(), name


def test_moving_average_is_what_is_saved(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    plain = load_checkpoint(train(make_experiment("standard", epochs=2), data, tmp_path, CPU), "last").model
    averaged = load_checkpoint(train(make_experiment("standard", epochs=2, ema=0.9), data, tmp_path, CPU), "last").model
    assert (flat(plain) - flat(averaged)).abs().max() > 1e-3


def test_first_statistics_are_those_of_the_first_batch(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    """imrahulr/adversarial_robustness_pytorch: momentum 1 in the first step, as Haiku begins."""
    found = {}
    for first_statistics in (False, True):
        experiment = make_experiment("standard", first_statistics=first_statistics)
        training = trainer._Training(experiment, data, tmp_path, CPU)
        training.state.model.train()
        layer = next(module for module in training.state.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
        for step in range(2):
            training._step(step)
            assert layer.momentum == 0.1
            found[first_statistics, step] = layer.running_mean.clone() if layer.running_mean is not None else None
    torch.testing.assert_close(found[False, 0], 0.1 * found[True, 0])
    assert not torch.equal(found[True, 1], found[True, 0])


@pytest.mark.parametrize("method", ["pgd_at", "ebjdat"])
def test_bf16_trains_and_its_checkpoint_gives_float32(
    method: str, make_experiment: Make, data: Dataset, tmp_path: Path
) -> None:
    folder = train(make_experiment(method, epochs=2, precision="bf16"), data, tmp_path, CPU)
    assert read_manifest(folder)["precision"] == "bf16"
    state = load_file(folder / "weights.safetensors")
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    model = load_checkpoint(folder, "last").model
    logits = model(data.validation.unit())
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    exact = train(make_experiment(method, epochs=2, precision="float32"), data, tmp_path, CPU)
    other = load_file(exact / "weights.safetensors")
    assert any(not torch.equal(state[name], other[name]) for name in state)
