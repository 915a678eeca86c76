from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import ce_attack, trades_attack
from methods.primitives.losses import kl_divergence
from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel

THREAT = ThreatModel("Linf", Fraction(1, 10))
WEIGHT = torch.tensor([[2.0, -1.0, 0.5], [-2.0, 1.0, 1.5]])
X = torch.tensor([[0.4, 0.5, 0.6], [0.6, 0.4, 0.5]])
Y = torch.tensor([0, 1])


class Linear(nn.Module):
    """A linear network behind BatchNorm without weights, which remembers its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(WEIGHT.clone())
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, self.weight.requires_grad))
        return self.norm(x) @ self.weight.T


def test_the_end_is_the_corner_against_the_label() -> None:
    """Linear logits: the gradient's signs are those of the rival's weights less the label's everywhere."""
    x_adv = ce_attack(PGD(steps=8, start="normal"), Linear(), X, Y, THREAT, generator(0))
    signs = (WEIGHT[1 - Y] - WEIGHT[Y]).sign()
    torch.testing.assert_close(x_adv, X + 0.1 * signs, atol=1e-6, rtol=0)
    assert not x_adv.requires_grad


@pytest.mark.parametrize(
    ("mode", "training", "moves"),
    [("eval", False, False), ("train", True, True), ("train-frozen-statistics", True, False)],
)
def test_mode(mode: Any, training: bool, moves: bool) -> None:
    network = Linear()
    ce_attack(PGD(steps=3), network, X, Y, THREAT, generator(0), mode)
    assert network.modes == [(training, False)] * 3
    assert network.training
    assert network.weight.requires_grad
    assert bool(network.norm.num_batches_tracked) == moves


class Counting(nn.Module):
    """A linear network that remembers what it was shown, whether a gradient was wanted, and its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x.detach(), torch.is_grad_enabled(), self.training))
        return 3 * x @ WEIGHT.T


def test_the_clean_prediction_is_made_once_and_without_a_graph() -> None:
    network = Counting()
    trades_attack(PGD(steps=4, step_size=0.25, start="normal"), network, X, THREAT, generator(0))
    assert len(network.seen) == 1 + 4
    assert torch.equal(network.seen[0][0], X)
    assert [wanted for _, wanted, _ in network.seen] == [False] + [True] * 4
    assert not any(training for _, _, training in network.seen)
    assert network.training


def test_the_divergence_from_the_clean_prediction_is_raised_as_far_as_it_goes() -> None:
    """Two logits: KL grows with the change of their difference, so that a corner of the ball is the end."""
    x_adv = trades_attack(PGD(steps=20, step_size=0.25, start="normal"), Counting(), X, THREAT, generator(0))
    direction = (WEIGHT[0] - WEIGHT[1]).sign()
    corners = [X + 0.1 * sign * direction for sign in (1, -1)]
    for image, *ends in zip(x_adv, *corners, strict=True):
        assert any(torch.allclose(image, end, atol=1e-6) for end in ends)
    network = Counting()
    reached = kl_divergence(network(X), network(x_adv))
    assert (reached > kl_divergence(network(X), network(X + 0.05 * direction))).all()
    assert not x_adv.requires_grad
