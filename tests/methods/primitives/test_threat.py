from fractions import Fraction

import pytest
import torch

from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel

LINF = ThreatModel("Linf", Fraction(8, 255))
L2 = ThreatModel("L2", Fraction(1, 2))


def test_a_text_is_read_as_a_threat_model() -> None:
    assert ThreatModel.parse("linf: 8 / 255") == LINF
    assert type(ThreatModel.parse("L2:0.5")) is ThreatModel


def test_linf_projection_clips_each_pixel_and_then_the_cube() -> None:
    x = torch.tensor([[0.5, 0.5, 0.01, 0.99]])
    moved = x + torch.tensor([[0.02, -1.0, -0.02, 0.02]])
    torch.testing.assert_close(LINF.project(moved, x), torch.tensor([[0.52, 0.5 - 8 / 255, 0.0, 1.0]]))


def test_l2_projection_scales_only_what_is_outside() -> None:
    x = torch.full((2, 1, 1, 2), 0.5)
    delta = torch.tensor([[0.6, 0.8], [0.1, 0.0]]).view(2, 1, 1, 2)
    expected = x + torch.tensor([[0.3, 0.4], [0.1, 0.0]]).view(2, 1, 1, 2)
    torch.testing.assert_close(L2.project(x + delta, x), expected)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_projection_with_eps_zero_returns_x(norm: str) -> None:
    x = torch.rand(2, 3, 4, 4, generator=generator(0))
    assert torch.equal(ThreatModel.parse(f"{norm}:0").project(x + 0.1, x), x)


def test_steepest_has_unit_norm_and_survives_zero_and_vanishing_gradients() -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0], [3e-30, 4e-30]])
    torch.testing.assert_close(LINF.steepest(gradient), torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(L2.steepest(gradient), torch.tensor([[0.6, -0.8], [0.0, 0.0], [0.6, 0.8]]))


def test_distance() -> None:
    x, x_adv = torch.zeros(2, 1, 1, 2), torch.tensor([[0.3, -0.4], [0.0, 0.1]]).view(2, 1, 1, 2)
    torch.testing.assert_close(LINF.distance(x_adv, x), torch.tensor([0.4, 0.1]))
    torch.testing.assert_close(L2.distance(x_adv, x), torch.tensor([0.5, 0.1]))


def test_linf_start_is_uniform_in_the_ball() -> None:
    x = torch.full((200, 50), 0.5)
    delta = (LINF.random_start(x, generator(0)) - x) / LINF.radius
    assert delta.abs().max() <= 1 + 1e-5
    assert abs(delta.mean()) < 0.02 and abs(delta.var() - 1 / 3) < 0.01


def test_l2_start_has_a_uniform_length() -> None:
    x = torch.full((4000, 30), 0.5)
    length = L2.distance(L2.random_start(x, generator(0)), x) / L2.radius
    assert length.max() <= 1 + 1e-5
    assert abs(length.mean() - 1 / 2) < 0.02 and abs(length.var() - 1 / 12) < 0.01


@pytest.mark.parametrize("threat", [LINF, L2])
def test_start_scale_and_cube(threat: ThreatModel) -> None:
    x = torch.rand(50, 1, 3, 3, generator=generator(0)).round()
    start = threat.random_start(x, generator(1), scale=0.25)
    assert start.min() >= 0 and start.max() <= 1
    assert 0 < threat.distance(start, x).max() <= threat.radius / 4 + 1e-6
