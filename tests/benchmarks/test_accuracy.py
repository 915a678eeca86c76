"""The comparison of trainings with and without the accelerations."""

import pytest

from benchmarks import accuracy


def test_a_row_is_the_difference_of_the_means_against_the_spread_of_the_seeds() -> None:
    row = accuracy._row("trades", on=[90.0, 92.0, 91.0], off=[93.0, 92.0, 94.0])
    assert (row.value, row.low, row.high) == pytest.approx((2.0, 0.0, 3.0))
    assert row.target == pytest.approx(2.0) and row.met
    assert row.facts == {"on_mean": 91.0, "on_std": 1.0, "off_mean": 93.0, "off_std": 1.0, "on_minus_off": -2.0}


def test_a_difference_beyond_the_spread_is_told() -> None:
    assert not accuracy._row("trades", on=[90.0, 90.0, 90.5], off=[92.0, 92.0, 92.5]).met
