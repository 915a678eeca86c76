from fractions import Fraction

import pytest

from methods.errors import InputError
from methods.primitives.norm_ball import NormBall


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
    ball = NormBall.parse(text)
    assert (ball.norm, ball.eps, str(ball), ball.slug) == (norm, eps, shown, slug)
    assert ball.radius == pytest.approx(float(eps))
    assert NormBall.parse(str(ball)) == ball


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
        NormBall.parse(text)


def test_unknown_norm() -> None:
    with pytest.raises(InputError, match='Unknown norm "L1"'):
        NormBall("L1", Fraction(1))  # pyright: ignore[reportArgumentType]
