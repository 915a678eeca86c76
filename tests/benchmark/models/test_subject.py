"""Subjects: checkpoints of this project, their names, digests and buffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmark.models.subject import Subject, from_checkpoint, weights_digest
from methods.backbones import BackboneConfig, build
from methods.errors import InputError
from methods.training.checkpoint import save_weights

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.weight.data.add_(1e-3),
        lambda model: setattr(model, "weight", nn.Parameter(model.weight.data.double())),
        lambda model: setattr(model, "weight", nn.Parameter(model.weight.data.t().contiguous())),
        lambda model: model.register_buffer("more", torch.zeros(1)),
    ],
)
def test_weights_digest_sees_bytes_types_shapes_and_names(change: Callable[[nn.Linear], object]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.25)
    before = weights_digest(model)
    assert weights_digest(model) == before
    change(model)
    assert weights_digest(model) != before


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder of this project with best and last weights."""
    config = BackboneConfig(depth=10, widen=1)
    description = {
        **{"backbone": {"architecture": "wrn", "depth": 10, "widen": 1}, "num_classes": 10},
        **{"image_shape": [1, 8, 8], "mean": [0.3], "std": [0.4], "recipe": "trades", "dataset": "digits"},
    }
    for seed, (which, name) in enumerate({"best": "best.safetensors", "last": "weights.safetensors"}.items()):
        torch.manual_seed(seed)
        model = build(config, 10, (1, 8, 8), (0.3,), (0.4,))
        save_weights(tmp_path / "run" / name, model.state_dict(), description | {"which": which})
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        (BackboneConfig("swish-wrn", 28, 10), "swish-wrn-28-10"),
        (BackboneConfig("resnet", 18, 4), "resnet-18"),
        (BackboneConfig("preact-resnet", 18, 1), "preact-resnet-18-1"),
        (BackboneConfig("timm:resnet18"), "timm:resnet18"),
    ],
)
def test_name_of_the_network(run_folder: Path, backbone: BackboneConfig, name: str) -> None:
    subject = from_checkpoint(run_folder, CPU)
    assert dataclasses.replace(subject, metadata={"backbone": vars(backbone)}).architecture == name


def test_checkpoint_of_the_project_becomes_a_subject(run_folder: Path) -> None:
    best, last = (from_checkpoint(run_folder, CPU, which) for which in ("best", "last"))
    by_file = from_checkpoint(run_folder / "weights.safetensors", CPU)
    assert (best.kind, best.name, best.architecture) == ("checkpoint", "trades", "wrn-10-1")
    assert (best.num_classes, best.image_shape) == (10, (1, 8, 8))
    assert (best.metadata["which"], last.metadata["which"]) == ("best", "last")
    assert best.digest != last.digest == by_file.digest
    assert best.code == last.code
    assert not any(module.training for module in best.model.modules())
    assert best.logits(torch.rand(3, 1, 8, 8)).dtype == torch.float32


def test_checkpoint_brings_the_replay_buffer_of_its_own_weights(run_folder: Path) -> None:
    assert from_checkpoint(run_folder, CPU).buffer is None
    for name in ("best", "last"):
        (run_folder / f"{name}-buffer.safetensors").touch()
    found = [from_checkpoint(run_folder, CPU, which).buffer for which in ("best", "last")]
    found.append(from_checkpoint(run_folder / "weights.safetensors", CPU).buffer)
    assert found == [run_folder / f"{name}-buffer.safetensors" for name in ("best", "last", "last")]
    renamed = (run_folder / "best.safetensors").rename(run_folder / "mine.safetensors")
    assert from_checkpoint(renamed, CPU).buffer is None


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        from_checkpoint(tmp_path / "nowhere", CPU)
    (run_folder / "best.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match="truncated"):
        from_checkpoint(run_folder, CPU)


def test_outputs_that_are_not_finite_are_no_logits(toy: Any) -> None:
    model = toy().model()
    with torch.no_grad():
        model.weight.fill_(torch.inf)
    subject: Subject = toy().subject(model)
    with pytest.raises(FloatingPointError, match="not finite"):
        subject.logits(torch.rand(2, 1, 6, 6))
