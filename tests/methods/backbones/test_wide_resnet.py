from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones import BackboneConfig, build, wide_resnet
from methods.backbones.wide_resnet import JEMBlock, PlainBlock, WideResNet


def parameters(*settings: Any, **options: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in WideResNet(*settings, **options).parameters())


@pytest.mark.parametrize(
    ("settings", "norm", "energy_head", "count"),
    [
        (("wrn", 28, 10, 3, 10), "batch", False, 36_479_194),
        (("wrn", 34, 10, 3, 10), "batch", False, 46_160_474),
        (("swish-wrn", 28, 10, 3, 10), "batch", False, 36_479_194),
        (("swish-wrn", 70, 16, 3, 10), "batch", False, 266_796_506),
        (("jem-wrn", 28, 10, 3, 10), "none", True, 36_471_979),
        (("jem-wrn", 28, 10, 3, 10), "batch", True, 36_489_931),
        (("jem-wrn", 28, 10, 3, 100), "batch", True, 36_547_621),
        (("jem-wrn", 28, 10, 3, 10), "none", False, 36_471_979 - 641),
    ],
)
def test_parameter_counts_of_the_papers(settings: tuple[Any, ...], norm: str, energy_head: bool, count: int) -> None:
    assert parameters(*settings, norm=norm, energy_head=energy_head) == count


def test_plain_block_shares_the_activation_with_its_shortcut() -> None:
    torch.manual_seed(0)
    block = PlainBlock(4, 6, 2, "batch", 0.1).eval()
    nn.init.constant_(block.get_parameter("norm1.bias"), -0.3)
    x = torch.randn(2, 4, 8, 8)
    activated = F.relu(x / (1 + 1e-5) ** 0.5 - 0.3)
    hidden = F.relu(F.conv2d(activated, block.conv1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5)
    expected = F.conv2d(hidden, block.conv2.weight, padding=1)
    expected = expected + F.conv2d(activated, block.get_parameter("shortcut.weight"), stride=2)
    torch.testing.assert_close(block(x), expected)


def test_jem_block_strides_late_and_cuts_short_from_the_raw_input() -> None:
    torch.manual_seed(0)
    block = JEMBlock(4, 6, 2, "none", 0.9)
    x = torch.randn(2, 4, 8, 8)
    hidden = F.conv2d(F.leaky_relu(x, 0.2), block.conv1.weight, block.conv1.bias, padding=1)
    expected = F.conv2d(F.leaky_relu(hidden, 0.2), block.conv2.weight, block.conv2.bias, stride=2, padding=1)
    shortcut = block.get_parameter("shortcut.weight"), block.get_parameter("shortcut.bias")
    torch.testing.assert_close(block(x), expected + F.conv2d(x, *shortcut, stride=2))


@pytest.mark.parametrize("block", [PlainBlock(4, 4, 1, "batch", 0.1), JEMBlock(4, 4, 1, "batch", 0.9)])
def test_unchanged_shape_keeps_the_raw_input(block: PlainBlock | JEMBlock) -> None:
    nn.init.zeros_(block.conv2.weight)
    if block.conv2.bias is not None:
        nn.init.zeros_(block.conv2.bias)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_global_pool_is_the_papers_pool_at_32_pixels() -> None:
    torch.manual_seed(0)
    network = WideResNet("wrn", 10, 1, 3, 10).eval()
    x = torch.rand(1, 3, 32, 32)
    final = F.relu(network.norm(network.stages(network.conv(x))))
    torch.testing.assert_close(network.features(network.conv(x)), F.avg_pool2d(final, 8).flatten(1))


@pytest.mark.parametrize("training", [False, True])
def test_swish_network_is_the_authors(
    training: bool,
    fill_network: Callable[[nn.Module], None],
    golden_pictures: Tensor,
    golden: Callable[[str], dict[str, Any]],
) -> None:
    """Their weights give their logits, means and deviations of CIFAR-10 inside."""
    config = BackboneConfig("swish-wrn", 10, 1, norm_momentum=0.01)
    cifar10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    classifier = build(config, 10, (3, 32, 32), *cifar10).double().train(training)
    fill_network(classifier.network)
    expected = golden("backbones")["swish-wrn"]["train" if training else "eval"]
    assert classifier(golden_pictures.double()).tolist() == [pytest.approx(row, abs=1e-5) for row in expected]


@pytest.mark.parametrize("sides", [(8, 8), (7, 6), (5, 9)])
def test_swish_block_pads_as_tensorflow(sides: tuple[int, int]) -> None:
    """ "SAME": the output has ceil(n / 2) pixels, and what must be padded for that goes right and bottom first."""
    torch.manual_seed(0)
    block = PlainBlock(4, 6, 2, "batch", 0.1, swish=True).eval()
    x = torch.randn(2, 4, *sides)
    activated = F.silu(x / (1 + 1e-5) ** 0.5)
    pads: list[int] = []
    for side in reversed(sides):
        total = max(0, (-(-side // 2) - 1) * 2 + 3 - side)
        pads += [total // 2, total - total // 2]
    hidden = F.conv2d(F.pad(activated, pads), block.conv1.weight, stride=2)
    expected = F.conv2d(F.silu(hidden / (1 + 1e-5) ** 0.5), block.conv2.weight, padding=1)
    expected = expected + F.conv2d(activated, block.get_parameter("shortcut.weight"), stride=2)
    torch.testing.assert_close(block(x), expected)
    assert expected.shape[2:] == tuple(-(-side // 2) for side in sides)


@pytest.mark.parametrize(("dialect", "smallest"), [("wrn", 0.0), ("jem-wrn", -0.2), ("swish-wrn", -0.26894)])
def test_activation_in_front_of_the_pool(dialect: Any, smallest: float) -> None:
    network = WideResNet(dialect, 10, 1, 3, 10)
    low, high = network.activation(torch.tensor([-1.0, 20.0])).tolist()
    assert (low, high) == (pytest.approx(smallest, abs=1e-5), pytest.approx(20))


@pytest.mark.parametrize(
    ("dialect", "norm", "biased"),
    [
        *(("wrn", "batch", False), ("wrn", "none", True), ("jem-wrn", "batch", True), ("jem-wrn", "none", True)),
        *(("swish-wrn", "batch", False), ("swish-wrn", "none", True)),
    ],
)
def test_who_has_biases_and_norms(dialect: Any, norm: Any, biased: bool) -> None:
    modules = list(WideResNet(dialect, 10, 2, 3, 10, norm).modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 1 + 3 * 3
    assert {module.bias is not None for module in convolutions} == {biased}
    assert sum(isinstance(module, nn.BatchNorm2d) for module in modules) == (7 if norm == "batch" else 0)


def test_norm_momentum_is_the_weight_of_the_new_batch() -> None:
    network = WideResNet("jem-wrn", 10, 1, 3, 10, momentum=0.9)
    assert {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {0.9}


@pytest.mark.parametrize("dialect", ["wrn", "swish-wrn"])
def test_plain_initialisation_is_kaiming_fan_out(dialect: Any) -> None:
    torch.manual_seed(0)
    network = WideResNet(dialect, 10, 4, 3, 10)
    weight = network.get_parameter("stages.2.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert torch.equal(network.head.bias, torch.zeros(10))


@pytest.mark.parametrize("dialect", ["wrn", "jem-wrn", "swish-wrn"])
def test_deep_network_without_norm_starts_tame(dialect: Any) -> None:
    torch.manual_seed(0)
    network = WideResNet(dialect, 40, 1, 3, 10, "none")
    features = network.features(network.conv(torch.randn(2, 3, 16, 16)))
    assert 1e-3 < features.abs().max().item() < 10


def test_leaky_relu_and_its_gradient_are_the_same_when_compiled() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    upstream = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    compiled = torch.compile(wide_resnet._leaky, backend="eager", fullgraph=True)
    found, expected = compiled(x), wide_resnet._leaky(x)
    assert torch.equal(expected, F.leaky_relu(x, 0.2))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    # Another function was compiled: abs, whose derivative is no bool.
    assert not torch.equal(found, expected)
    (slope,), (slope_expected,) = (torch.autograd.grad(value, x, upstream) for value in (found, expected))
    torch.testing.assert_close(slope, slope_expected, rtol=1e-14, atol=0)
