from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones import BackboneConfig, build
from methods.backbones.resnet import BasicBlock, ResNet
from methods.errors import InputError
from methods.training.config import overlay

SHAPES: list[Any] = ["resnet", "preact-resnet", "resnet-highres"]


@pytest.mark.parametrize(
    ("shape", "classes", "count"),
    [
        ("resnet", 10, 11_173_962),
        ("preact-resnet", 10, 11_172_170),
        ("resnet-highres", 10, 11_173_962),
        ("resnet", 100, 11_173_962 + 90 * 513),
    ],
)
def test_parameter_counts_of_the_papers(shape: Any, classes: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ResNet(shape, 4, 3, classes).parameters()) == count


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_network_is_the_authors(
    shape: Any,
    training: bool,
    fill_network: Callable[[nn.Module], None],
    golden_pictures: Tensor,
    golden: Callable[[str], dict[str, Any]],
) -> None:
    network = ResNet(shape, 4, 3, 10).double().train(training)
    fill_network(network)
    expected = golden("backbones")[shape]["train" if training else "eval"]
    with torch.no_grad():
        assert network(golden_pictures.double()).tolist() == [pytest.approx(row, abs=1e-5) for row in expected]


@pytest.mark.parametrize(
    ("shape", "side", "last"),
    [
        ("resnet", 32, 4),
        ("preact-resnet", 32, 4),
        ("resnet-highres", 32, 8),
        ("resnet", 8, 1),
        ("resnet-highres", 8, 2),
    ],
)
def test_size_of_the_last_maps(shape: Any, side: int, last: int) -> None:
    assert ResNet(shape, 1, 3, 10).maps(torch.rand(2, 3, side, side)).shape == (2, 128, last, last)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("image", [(1, 8, 8), (3, 13, 21)])
def test_any_shape_and_a_batch_of_one(shape: str, image: tuple[int, int, int]) -> None:
    config = BackboneConfig(shape, 18, 1)
    model = build(config, 7, image, [0.4] * image[0], [0.3] * image[0]).eval()
    x = torch.rand(3, *image)
    logits = model(x)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(model(x[:1]), logits[:1])


def test_block_activates_after_the_sum() -> None:
    torch.manual_seed(0)
    block = BasicBlock(4, 6, 2, 0.1).eval()
    x = torch.randn(2, 4, 8, 8)
    scale = (1 + 1e-5) ** 0.5
    hidden = F.relu(F.conv2d(x, block.conv1.weight, stride=2, padding=1) / scale)
    shortcut = F.conv2d(x, block.get_parameter("shortcut.0.weight"), stride=2) / scale
    expected = F.relu(F.conv2d(hidden, block.conv2.weight, padding=1) / scale + shortcut)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_momentum_reaches_every_norm(shape: Any) -> None:
    norms = [module for module in ResNet(shape, 1, 3, 10, momentum=0.3).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == (17 if shape == "preact-resnet" else 20)
    assert {norm.momentum for norm in norms} == {0.3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, 'backbone.depth of "resnet" is 18, not 28'),
        ({"depth": 34}, 'backbone.depth of "resnet" is 18, not 34'),
        ({"depth": 18, "widen": 0}, "widen is at least 1"),
        ({"depth": 18, "energy_head": True}, "no energy head"),
        ({"depth": 18, "norm": "none"}, "has batch normalisation"),
        ({"architecture": "resnet-18"}, 'No backbone "resnet-18".*preact-resnet.*Did you mean "resnet"'),
    ],
)
def test_impossible_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        overlay(BackboneConfig(), {"architecture": "resnet"} | fields, "backbone")
