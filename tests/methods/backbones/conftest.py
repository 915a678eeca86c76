"""Weights and images that closed formulas give, behind the logits of tests/golden/backbones.json."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def _wave(shape: torch.Size | tuple[int, ...], phase: float) -> Tensor:
    """Return a fixed tensor of values in (-1, 1) that looks irregular: sin of a running index."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(12.9898 * index + 78.233 * phase).reshape(shape)


def _fill(network: nn.Module) -> None:
    with torch.no_grad():
        for phase, (name, value) in enumerate(network.state_dict().items()):
            wave = _wave(value.shape, phase)
            if name.endswith("num_batches_tracked"):
                continue
            if value.dim() > 1:
                value.copy_(2 * wave / value[0].numel() ** 0.5)
            elif name.endswith("running_var"):
                value.copy_(0.5 + 0.2 * wave)
            else:
                value.copy_(0.2 * wave + (value.double().mean() > 0.5))


@pytest.fixture
def fill_network() -> Callable[[nn.Module], None]:
    """Give a new network its weights and statistics, each by its place among those of its state dict."""
    return _fill


@pytest.fixture
def golden_pictures() -> Tensor:
    """Return two images, [2, 3, 32, 32] in [0, 1]."""
    return 0.5 + 0.5 * _wave((2, 3, 32, 32), 212)
