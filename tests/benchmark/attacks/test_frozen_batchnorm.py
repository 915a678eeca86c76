"""Frozen batch normalisation: the same function and the same gradients, and the model is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmark.attacks.frozen_batchnorm import FrozenBatchNorm, with_frozen_batchnorm
from benchmark.models.subject import from_checkpoint
from methods.backbones import BackboneConfig, build

WEIGHTS = Path(__file__).parents[3] / "leaderboards" / "digits" / "weights" / "c2474ab6b91aac6e.safetensors"


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)[0]


def test_function_and_gradient_are_the_models() -> None:
    model = from_checkpoint(WEIGHTS, torch.device("cpu")).model
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made, before = with_frozen_batchnorm(model), {name: value.clone() for name, value in model.state_dict().items()}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    assert sum(isinstance(module, FrozenBatchNorm) for module in made.modules()) == 7
    assert torch.allclose(made(x), model(x), rtol=1e-5, atol=1e-5)
    assert torch.allclose(gradient(made, x), gradient(model, x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in made.parameters())


@pytest.mark.parametrize("affine", [True, False])
def test_normalisation_with_and_without_weights(affine: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, affine=affine))
    model(torch.rand(16, 3, 4, 4))
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(with_frozen_batchnorm(model.eval())(x), model(x), atol=1e-6)


def test_what_cannot_be_rewritten_stays() -> None:
    without = build(BackboneConfig(depth=10, widen=1, norm="none"), 10, (1, 8, 8), (0.5,), (0.5,)).eval()
    assert with_frozen_batchnorm(without) is without
    training = nn.Sequential(nn.BatchNorm2d(3))
    assert with_frozen_batchnorm(training) is training
    uncopied = nn.Sequential(nn.BatchNorm2d(3)).eval()
    uncopied.lock = (number for number in range(3))  # pyright: ignore[reportArgumentType]
    assert with_frozen_batchnorm(uncopied) is uncopied


def test_layout_is_kept() -> None:
    x = torch.rand(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    made = with_frozen_batchnorm(nn.Sequential(nn.BatchNorm2d(8)).eval())
    assert made(x).is_contiguous(memory_format=torch.channels_last)
    assert made(x.bfloat16()).dtype == torch.bfloat16
