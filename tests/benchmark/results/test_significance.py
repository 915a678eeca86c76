"""Intervals and tests: against closed forms, against scipy, and in simulations of methods whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmark.results.significance import difference, interval, mcnemar, places, wilson

LEVEL = 0.05


def simulated(
    rng: np.random.Generator,
    n: int,
    methods: Sequence[float],
    seeds: Sequence[int],
    seed_spread: float = 0.2,
    own: float = 0.5,
) -> list[np.ndarray]:
    """Draw verdicts bool [seeds, n] of methods with the given merits on common images.

    Logits are merit + difficulty of the image (2 wide) + the method's own taste of the image + luck of the seed.
    """
    difficulty = rng.normal(0, 2, n)
    drawn: list[np.ndarray] = []
    for merit, count in zip(methods, seeds, strict=True):
        logits = 1 + merit + difficulty + rng.normal(0, own, n) + rng.normal(0, seed_spread, (count, 1))
        drawn.append(rng.random((count, n)) < 1 / (1 + np.exp(-logits)))
    return drawn


def most(trials: int, rate: float = LEVEL) -> float:
    """Return the share of trials that a rate exceeds by chance once in about a thousand times."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (1, 20), (150, 300), (299, 300), (300, 300), (1, 1)])
def test_wilson_is_the_closed_form(correct: int, n: int) -> None:
    """Both roots of (share - p)^2 = z^2 p (1 - p) / n."""
    share, weight = correct / n, 1.959963984540054**2 / n
    centre, half = share + weight / 2, math.sqrt(weight * share * (1 - share) + weight**2 / 4)
    expected = [100 * (centre + sign * half) / (1 + weight) for sign in (-1, 1)]
    assert wilson(correct, n) == pytest.approx(expected, abs=1e-12)
    verdicts = np.arange(n)[None] < correct
    assert interval(verdicts) == wilson(correct, n)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 0), (10, 3), (3, 10), (7, 7), (400, 330)])
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    a = np.array([True] * only_a + [False] * only_b + [True, False] * 50)
    b = np.array([False] * only_a + [True] * only_b + [True, False] * 50)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    found = difference(a[None], b[None])
    assert (found.p, found.points) == pytest.approx((expected, 100 * (only_a - only_b) / len(a)), rel=1e-9)
    assert found.low < found.points < found.high


def test_interval_of_a_difference_is_agresti_and_mins() -> None:
    both, only_a, only_b, neither = 180, 40, 22, 58
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])[None]
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])[None]
    # Half an image more in each cell; Student's quantile instead of the normal one.
    n, p, q = 302, 40.5 / 302, 22.5 / 302
    half = stats.t.ppf(0.975, n - 1) * math.sqrt((p + q - (p - q) ** 2) / n)
    found = difference(a, b)
    assert (found.low, found.high) == pytest.approx((100 * (p - q - half), 100 * (p - q + half)), rel=1e-9)


def test_single_seeds_agree_with_a_bootstrap_over_images() -> None:
    a, b = simulated(np.random.default_rng(1), 500, [0.3, 0], [1, 1])
    paired = a[0].astype(float) - b[0]
    drawn = stats.bootstrap((paired,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2))
    found = difference(a, b)
    assert found.low == pytest.approx(100 * drawn.confidence_interval.low, abs=0.3)
    assert found.high == pytest.approx(100 * drawn.confidence_interval.high, abs=0.3)


def test_where_only_seeds_matter_the_interval_is_students() -> None:
    shares = np.array([0.61, 0.64, 0.70])
    verdicts = np.arange(1_000_000)[None] % 1000 < 1000 * shares[:, None]
    expected = stats.t.interval(0.95, 2, shares.mean(), stats.sem(shares))
    assert interval(verdicts) == pytest.approx(100 * np.array(expected), abs=0.1)
    other = np.array([0.50, 0.58, 0.56, 0.53])
    found = difference(verdicts, np.arange(1_000_000)[None] % 1000 < 1000 * other[:, None])
    welch: Any = stats.ttest_ind(shares, other, equal_var=False)
    assert found.p == pytest.approx(welch.pvalue, rel=0.02)
    assert (found.low, found.high) == pytest.approx(100 * np.array(welch.confidence_interval()), abs=0.1)


def test_equal_seeds_leave_the_spread_of_images() -> None:
    once = np.arange(300)[None] < 210
    low, high = interval(np.repeat(once, 3, axis=0))
    assert (low, high) == pytest.approx(wilson(210, 300), abs=0.1)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("right", [False, True])
def test_extremes_have_intervals_inside_the_scale(seeds: int, right: bool) -> None:
    verdicts = np.full((seeds, 50), right)
    low, high = interval(verdicts)
    assert 0 <= low <= 100 * right <= high <= 100
    assert 3 < high - low < 12
    found = difference(verdicts, ~verdicts)
    assert abs(found.points) == 100
    assert -100 <= found.low <= found.points <= found.high <= 100
    assert found.p < 1e-9
    alone = difference(verdicts[:, :1], ~verdicts[:, :1])
    assert alone.p > LEVEL


def test_a_difference_is_the_same_from_both_sides() -> None:
    a, b = simulated(np.random.default_rng(3), 200, [0.5, 0], [3, 2])
    one, other = difference(a, b), difference(b, a)
    assert one.p == other.p
    assert (one.points, one.low, one.high) == pytest.approx((-other.points, -other.high, -other.low))


@pytest.mark.parametrize(
    ("seeds", "seed_spread"), [((1, 1), 0.0), ((2, 2), 0.3), ((3, 3), 0.1), ((3, 3), 0.3), ((3, 5), 0.3), ((5, 5), 0.2)]
)
def test_equal_methods_are_called_different_at_most_at_the_nominal_rate(
    seeds: tuple[int, int], seed_spread: float
) -> None:
    rng = np.random.default_rng(4)
    trials = 600
    false = seen = 0
    for _ in range(trials):
        false += difference(*simulated(rng, 300, [0, 0], seeds, seed_spread, own=0)).significant
    for _ in range(100):
        seen += difference(*simulated(rng, 300, [1, 0], seeds, seed_spread, own=0)).significant
    print(f"seeds {seeds}, spread {seed_spread}: {false / trials:.1%} false, {seen} % seen")
    assert false / trials <= most(trials)
    assert seen > 30
    if min(seeds) > 2:
        assert seen > 70


def resampled(rng: np.random.Generator, n: int, draws: int) -> np.ndarray:
    """Return the share of each image in bootstrap samples, [draws, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), draws) / n


def test_a_bootstrap_over_seeds_would_not_keep_that_rate() -> None:
    """Why there is none: of equal methods with three seeds, 6 points wide, it calls too many different."""
    rng = np.random.default_rng(5)
    trials, n, draws = 300, 1000, 300
    images = resampled(rng, n, draws)
    bootstrapped = welch = 0
    for _ in range(trials):
        rows = simulated(rng, n, [0, 0], [3, 3], 0.4, own=0)
        means = [np.take_along_axis(images @ row.T, rng.integers(0, 3, (draws, 3)), 1).mean(1) for row in rows]
        low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
        bootstrapped += not low <= 0 <= high
        welch += difference(*rows).significant
    print(f"false: bootstrap {bootstrapped / trials:.1%}, Welch {welch / trials:.1%}")
    assert bootstrapped / trials > 2 * LEVEL
    assert welch / trials <= most(trials)


@pytest.mark.parametrize("seeds", [(1,) * 6, (3,) * 6, (1, 1, 1, 1, 3, 3)])
def test_a_table_of_equal_rows_is_one_tie_at_the_nominal_rate(seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    trials = 150
    apart = 0
    for _ in range(trials):
        found = places(simulated(rng, 200, [0.0] * 6, seeds, 0.0, own=0.3))
        one_tie = all(place.ties == (0,) for place in found)
        assert one_tie == all((place.low, place.high) == (1, 6) for place in found)
        apart += not one_tie
    print(f"seeds {seeds}: {apart / trials:.1%} of the tables separate equal rows")
    assert apart / trials <= most(trials)


@pytest.mark.parametrize("gap", [0.02, 0.3])
def test_rank_intervals_hold_all_at_once(gap: float) -> None:
    rng = np.random.default_rng(7)
    trials, rows = 100, 6
    held = width = 0
    for _ in range(trials):
        drawn = simulated(rng, 300, list(-gap * np.arange(rows)), [1, 1, 1, 3, 3, 3], 0.0, own=0)
        found = places(drawn)
        held += all(place.low <= rank <= place.high for rank, place in enumerate(found, start=1))
        width += sum(place.high - place.low for place in found) / rows
    print(f"gap {gap}: {held / trials:.1%} of the tables hold, mean width {width / trials:.2f} of {rows - 1}")
    assert held / trials >= 1 - most(trials)
    if gap > 0.1:
        assert width / trials < 3


def test_percentiles_of_a_bootstrapped_rank_would_not_hold() -> None:
    """Why they are not used: where methods are nearly equal, the row that came out on top seems to belong there."""
    rng = np.random.default_rng(11)
    trials, rows, n = 300, 8, 300
    images = resampled(rng, n, 200)
    held = 0
    for _ in range(trials):
        drawn = np.concatenate(simulated(rng, n, list(-0.01 * np.arange(rows)), [1] * rows, 0.0))
        top = int(drawn.mean(1).argmax())
        scores = images @ drawn.T
        worst = (scores >= scores[:, [top]]).sum(1)
        held += top + 1 <= np.quantile(worst, 0.975)
    print(f"{held / trials:.1%} of the bootstrapped intervals of the top row hold its true rank")
    assert held / trials < 0.9


def test_clear_order_is_found() -> None:
    rows = simulated(np.random.default_rng(8), 400, [6, 3, 0, -3], [3, 1, 3, 1], 0.05)
    assert [(place.low, place.high, place.ties) for place in places(rows)] == [
        *[(1, 1, (0,)), (2, 2, (1,)), (3, 3, (2,)), (4, 4, (3,))]
    ]


def test_groups_overlap_where_ties_are_not_transitive() -> None:
    rows = [np.ones((1, 400), bool) for _ in range(4)]
    for k, row in enumerate(rows):
        # Wrong on 8 images more than the row before, and on 6 of its own: 14 to 6 of neighbours, 22 to 6 two apart.
        row[0, : 8 * k] = False
        row[0, 100 + 6 * k : 106 + 6 * k] = False
    found = places(rows)
    assert [place.ties for place in found] == [(0,), (0, 1), (1, 2), (2,)]
    assert [(place.low, place.high) for place in found] == [(1, 2), (1, 3), (2, 4), (3, 4)]


def test_letters_and_ranks_follow_holms_correction() -> None:
    rng = np.random.default_rng(10)
    rows = simulated(rng, 150, list(rng.normal(0, 0.8, 12)), [1] * 12, 0.0)
    rows.sort(key=lambda row: -row.mean())
    p = {(i, j): difference(rows[i], rows[j]).p for i in range(12) for j in range(i)}
    apart: set[tuple[int, int]] = set()
    for position, pair in enumerate(sorted(p, key=p.__getitem__)):
        if p[pair] * (len(p) - position) >= LEVEL:
            break
        apart.add(pair)
    assert 5 < len(apart) < 60
    found = places(rows)
    for pair in p:
        i, j = pair
        assert bool(set(found[i].ties) & set(found[j].ties)) == (pair not in apart)
    for i, place in enumerate(found):
        better = sum((i, j) in apart for j in range(i))
        worse = sum((j, i) in apart for j in range(i + 1, 12))
        assert (place.low, place.high) == (1 + better, 12 - worse)


def test_one_row_has_the_first_place() -> None:
    (only,) = places([np.ones((1, 3), bool)])
    assert (only.low, only.high, only.ties) == (1, 1, (0,))
    assert places([]) == []
