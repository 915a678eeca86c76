"""Races alternate, and rows hold the median, the range and whether the target was met."""

import time

import pytest

from benchmarks.timing import Race, Row, race, timed


def test_a_race_runs_both_in_turn_after_the_warm_up() -> None:
    calls: list[str] = []
    found = race(lambda: calls.append("theirs"), lambda: calls.append("ours"), repeats=3, warm_up=2)
    assert calls == ["theirs", "ours"] * 5
    assert len(found.baseline_seconds) == len(found.ours_seconds) == 3


def test_timed_counts_what_a_call_takes() -> None:
    seconds = timed(lambda: time.sleep(0.01), repeats=2, warm_up=0)
    assert len(seconds) == 2
    assert min(seconds) >= 0.01


def test_a_speed_up_is_the_median_of_the_ratios_of_the_repeats() -> None:
    row = Race([2.0, 3.0, 8.0], [1.0, 1.0, 2.0]).speed_up("training", "a case", target=3, largest_difference=0.5)
    assert (row.value, row.low, row.high, row.met) == (3.0, 2.0, 4.0, True)
    assert row.facts == {"baseline_seconds": 3.0, "ours_seconds": 1.0, "largest_difference": 0.5}


def test_an_overhead_is_what_ours_takes_more_in_percent() -> None:
    row = Race([1.0, 1.0, 2.0], [1.02, 1.1, 2.0]).overhead("overhead", "a case", target=5)
    assert (row.value, row.low, row.high) == pytest.approx((2.0, 0.0, 10.0))
    assert row.met is True


@pytest.mark.parametrize(
    ("measure", "value", "target", "met"),
    [
        ("speed-up", 2.9, 3.0, False),
        ("efficiency", 0.9, 0.85, True),
        ("seconds", 0.29, 0.3, True),
        ("overhead in %", 5.1, 5.0, False),
        ("MiB", 5.1, None, None),
    ],
)
def test_a_target_is_a_lower_bound_of_what_is_better_when_larger(
    measure: str, value: float, target: float | None, met: bool | None
) -> None:
    assert Row.of("any", "a case", measure, [value], target).met is met
