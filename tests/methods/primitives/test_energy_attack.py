from typing import Any

import pytest
import torch
from torch import Tensor

from methods.errors import InputError
from methods.primitives.energy_attack import EnergyAttack
from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel

THREAT = ThreatModel.parse("Linf:8/255")
WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 1.0, 2.0], [0.5, 0.5, -1.0]])
X = torch.tensor([[0.4, 0.5, 0.6], [0.5, 0.5, 0.5]])
Y = torch.tensor([0, 2])


def linear(x: Tensor) -> Tensor:
    return 10 * x @ WEIGHT.T


def attacked(**options: Any) -> Tensor:
    return EnergyAttack(steps=20, **options)(linear, X, Y, THREAT, generator(0, "attack"))


def test_joint_energy_reaches_the_corner_against_the_label() -> None:
    torch.testing.assert_close(attacked(), X - 8 / 255 * WEIGHT[Y].sign())


def test_code_literal_reaches_the_corner_of_the_label() -> None:
    torch.testing.assert_close(attacked(objective="code_literal"), X + 8 / 255 * WEIGHT[Y].sign())


def test_marginal_energy_ignores_the_labels() -> None:
    attack = EnergyAttack(objective="marginal_energy")
    first = attack(linear, X, Y, THREAT, generator(0, "attack"))
    assert torch.equal(first, attack(linear, X, 2 - Y, THREAT, generator(0, "attack")))


def test_faithful_scale_leaves_the_ball() -> None:
    """Without a projection, 20 steps of 1/255 go on until [0, 1] ends."""
    reached = THREAT.distance(attacked(scale="faithful"), X)
    assert (reached > 16 / 255).all()
    assert (reached <= 24 / 255 + 1e-6).all()


def test_lpips_is_called_on_both_images_and_lowers_the_distance() -> None:
    def distance(x_adv: Tensor, x: Tensor) -> Tensor:
        return 1e4 * (x_adv - x).square().sum(1)

    attack = EnergyAttack(steps=20, step_size=0.01, perceptual="lpips", start="zero")
    near = attack(linear, X, Y, THREAT, generator(0, "attack"), lpips=distance)
    assert (THREAT.distance(near, X) < THREAT.distance(attacked(), X) / 4).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "joint_energie"}, 'Did you mean "joint_energy"'),
        ({"scale": "eps8"}, 'Did you mean "eps-8"'),
        ({"perceptual": "lpip"}, 'Did you mean "lpips"'),
        ({"steps": 0}, "at least one step"),
        ({"direction": "sign"}, "direction"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EnergyAttack(**options)


def test_lpips_needs_its_network() -> None:
    with pytest.raises(InputError, match="LPIPS"):
        attacked(perceptual="lpips")
