"""v of a network whose gradient is known, and what comes back when it is taken off."""

import pytest
import torch
from torch import nn

from methods.primitives.random import generator
from methods.primitives.sharpness import perturbed, weight_perturbation


class Network(nn.Module):
    """One of each: convolution, BatchNorm, linear, a matrix that is no layer's weight, and a layer out of use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(2, 3)
        self.matrix = nn.Parameter(torch.eye(3))
        self.idle = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.conv(x)).mean((2, 3))) @ self.matrix


@pytest.fixture
def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network()


def loss(network: Network) -> torch.Tensor:
    return (network(torch.rand(4, 1, 5, 5, generator=generator(0))) - 3).square().mean()


def test_v_is_uphill_and_as_long_as_gamma_says(network: Network) -> None:
    """adversarial-training.md, trap 6: |v| = gamma |w|, and no rows of biases, BatchNorm or other parameters."""
    v = weight_perturbation(loss(network), network, 0.01)
    assert set(v) == {network.conv.weight, network.linear.weight, network.idle.weight}
    gradients = torch.autograd.grad(loss(network), [network.conv.weight, network.linear.weight])
    for name, g in zip(("conv.weight", "linear.weight"), gradients, strict=True):
        weight = network.get_parameter(name)
        torch.testing.assert_close(v[weight], 0.01 * weight.detach().norm() * g / g.norm())
        assert not v[weight].requires_grad
    assert torch.equal(v[network.get_parameter("idle.weight")], torch.zeros(3, 2))
    before = loss(network)
    with perturbed(v):
        assert loss(network) > before


def test_what_has_no_gradient_stays(network: Network) -> None:
    network.conv.weight.requires_grad_(False)
    assert network.conv.weight not in weight_perturbation(loss(network), network, 0.01)


def test_no_gradient_reaches_the_weights(network: Network) -> None:
    with perturbed(weight_perturbation(loss(network), network, 0.01)):
        pass
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gamma_0_is_no_perturbation(network: Network) -> None:
    assert all(not v.any() for v in weight_perturbation(loss(network), network, 0.0).values())


def test_weights_come_back_but_for_rounding_and_a_step_taken_inside_stays(network: Network) -> None:
    """adversarial-training.md, trap 6: w + v - v is w to a few units in its last place."""
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    v = weight_perturbation(loss(network), network, 0.01)
    with perturbed(v):
        assert not torch.equal(network.conv.weight, before["conv.weight"])
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name], rtol=0, atol=4 * 2**-24)
    with perturbed(v), torch.no_grad():
        network.linear.weight.add_(1)
    torch.testing.assert_close(network.linear.weight.detach(), before["linear.weight"] + 1)


def test_weights_come_back_when_the_body_raises(network: Network) -> None:
    before = network.conv.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), perturbed(weight_perturbation(loss(network), network, 0.1)):
        raise RuntimeError("inside")
    torch.testing.assert_close(network.conv.weight.detach(), before)
