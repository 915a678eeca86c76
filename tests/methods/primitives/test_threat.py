from fractions import Fraction

import pytest
import torch

from methods.errors import InputError
from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel

LINF = ThreatModel("Linf", Fraction(8, 255))
L2 = ThreatModel("L2", Fraction(1, 2))


@pytest.mark.parametrize(
    ("text", "norm", "eps", "shown", "slug"),
    [
        ("Linf:8/255", "Linf", Fraction(8, 255), "Linf:8/255", "linf-8_255"),
        ("linf: 8 / 255 ", "Linf", Fraction(8, 255), "Linf:8/255", "linf-8_255"),
        ("LINF:.031", "Linf", Fraction(31, 1000), "Linf:0.031", "linf-0.031"),
        ("Linf:0.15", "Linf", Fraction(3, 20), "Linf:0.15", "linf-0.15"),
        ("Linf:3e-2", "Linf", Fraction(3, 100), "Linf:0.03", "linf-0.03"),
        ("Linf:51/255", "Linf", Fraction(1, 5), "Linf:0.2", "linf-0.2"),
        ("Linf:0", "Linf", Fraction(0), "Linf:0", "linf-0"),
        ("Linf:1", "Linf", Fraction(1), "Linf:1", "linf-1"),
        ("l2:0.5", "L2", Fraction(1, 2), "L2:0.5", "l2-0.5"),
        ("L2:128/255", "L2", Fraction(128, 255), "L2:128/255", "l2-128_255"),
        ("L2:10", "L2", Fraction(10), "L2:10", "l2-10"),
        ("L2:1/7", "L2", Fraction(1, 7), "L2:1/7", "l2-1_7"),
    ],
)
def test_parse_and_show(text: str, norm: str, eps: Fraction, shown: str, slug: str) -> None:
    threat = ThreatModel.parse(text)
    assert (threat.norm, threat.eps, str(threat), threat.slug) == (norm, eps, shown, slug)
    assert threat.radius == pytest.approx(float(eps))
    assert ThreatModel.parse(str(threat)) == threat


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a threat model"),
        ("8/255", "not a threat model"),
        ("L3:0.5", "not a threat model"),
        ("Linf=8/255", "not a threat model"),
        ("Linf:", "not an eps"),
        ("Linf:8\\255", "not an eps"),
        ("Linf:nan", "not an eps"),
        ("Linf:inf", "not an eps"),
        ("Linf:8/0", "not an eps"),
        ("Linf:8/255/2", "not an eps"),
        ("Linf:8/255 px", "not an eps"),
        ("Linf:1_0/255", "not an eps"),
        ("Linf:eight", "not an eps"),
        ("Linf:-8/255", "not be negative"),
        ("Linf:8", r"Did you mean 8/255\?$"),
        ("Linf:1000", r"got 1000\.$"),
    ],
)
def test_bad_threat_models_are_told_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ThreatModel.parse(text)


def test_unknown_norm() -> None:
    with pytest.raises(InputError, match='Unknown norm "L1"'):
        ThreatModel("L1", Fraction(1))  # pyright: ignore[reportArgumentType]


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
