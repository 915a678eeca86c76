"""How sure a number is, and whether two of them differ.

Verdicts of a method are bool [S, n]: S training seeds, the same n test images for every method. Images and seeds are
both samples, crossed with each other. What a method's mean would be on other images and with other seeds has

    variance = var over images of (mean over seeds) / n  +  var over seeds of (mean over images) / S

and Welch-Satterthwaite's degrees of freedom. Outcomes of two methods are paired by image, so the first term is that of
their difference; seeds are not paired, so the second term is the sum of both methods'.

- The noise of single verdicts is in both terms: where seeds hardly differ, the test is too careful.
- Seeds are not resampled: of equal methods with three seeds, a bootstrap over images and seeds calls 17 % different
  where 5 % are allowed (1,000 images, accuracies of seeds 6 points wide), this test 5 %.
- A single seed says nothing about training. Intervals and tests of single seeds are about those checkpoints, and where
  only one method has several seeds, the other's share of the variance is missing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit
from scipy.stats import binomtest

CONFIDENCE = 0.95
_SHARE = (0.0, 0.0, 1.0, 1.0)
"""Pseudo-outcomes added to those of one method: Agresti and Coull's two failures and two successes (1998)."""
_DIFFERENCE = (-math.sqrt(0.5), math.sqrt(0.5))
"""Pseudo-outcomes added to differences: the moments of half an image in each of four cells (Agresti and Min, 2005)."""


@dataclass(frozen=True)
class Difference:
    """Mean verdict of one method minus that of another, in percentage points, with its 95 % interval."""

    points: float
    low: float
    high: float
    p: float
    """p value of the two-sided test."""
    test: str

    @property
    def significant(self) -> bool:
        """Tell whether ``p`` is below 5 %."""
        return self.p < 1 - CONFIDENCE


@dataclass(frozen=True)
class Place:
    """Rank and ties of a row that the tests leave possible."""

    low: int
    """Best rank: 1 + number of rows that are significantly better."""
    high: int
    """Worst rank: number of rows that are not significantly worse."""
    ties: tuple[int, ...]
    """Groups that the row belongs to, numbered from 0; rows differ significantly unless they share one."""


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval (1927) of a share, in percent; it is honest near 0 and 100 %, and for small n.

    Args:
        correct: images that were right.
        n: images, at least 1.
    """
    low, high = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(low), 100 * float(high)


def interval(verdicts: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean accuracy, in percent.

    Args:
        verdicts: bool [S, n]. One seed: Wilson's interval; several: Student's, over images and seeds.
    """
    if len(verdicts) == 1:
        return wilson(int(verdicts.sum()), verdicts.shape[1])
    centre, error, freedom = _sampling(verdicts.mean(0), _SHARE, [verdicts])
    half = _quantile(freedom) * error
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Return the two-sided p of the exact test (McNemar 1947) that two checkpoints are equally accurate.

    Args:
        a: verdicts of one, bool [n].
        b: of the other, on the same images.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Return how two methods differ, paired by image.

    Args:
        a: verdicts of one, bool [S, n].
        b: of the other, bool [T, n]. p is that of McNemar's exact test where S = T = 1, else that of Welch's t.
    """
    paired = a.mean(0) - b.mean(0)
    centre, error, freedom = _sampling(paired, _DIFFERENCE, [a, b])
    half = _quantile(freedom) * error
    if len(a) == len(b) == 1:
        p, test = mcnemar(a[0], b[0]), "McNemar's exact test"
    else:
        p, test = 2 * float(stdtr(freedom, -abs(centre) / error)), "Welch's t over images and seeds"
    return Difference(
        100 * float(paired.mean()), 100 * max(-1.0, centre - half), 100 * min(1.0, centre + half), p, test
    )


def places(rows: Sequence[np.ndarray]) -> list[Place]:
    """Return the rank intervals and tie groups of a table, from a paired test of every pair of rows.

    The tests are corrected for their number (Holm 1979): with 95 % confidence no pair is called different wrongly, so
    all rank intervals hold at once (Mogstad, Romano, Shaikh and Wilhelm 2024). Percentiles of a bootstrapped rank are
    narrower, but where methods are nearly equal, only 82 % of those of the row on top hold its true rank.

    Args:
        rows: verdicts bool [S, n] of each row, the best row first; S may differ.
    """
    pairs = list(combinations(range(len(rows)), 2))
    found = [difference(rows[i], rows[j]) for i, j in pairs]
    corrected = _holm([pair.p for pair in found])
    apart = [(pair, test) for pair, test, p in zip(pairs, found, corrected, strict=True) if p < 1 - CONFIDENCE]
    better, worse = [0] * len(rows), [0] * len(rows)
    for (i, j), test in apart:
        winner, loser = (i, j) if test.points > 0 else (j, i)
        better[loser] += 1
        worse[winner] += 1
    groups = _groups(len(rows), [pair for pair, _ in apart])
    return [
        Place(1 + better[row], len(rows) - worse[row], tuple(k for k, group in enumerate(groups) if row in group))
        for row in range(len(rows))
    ]


def _sampling(
    outcomes: np.ndarray, added: Sequence[float], methods: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    """Return mean, standard error and degrees of freedom of outcomes per image, over images and the methods' seeds."""
    padded = np.append(outcomes, added)
    parts = [(padded.var() / padded.size, padded.size - 1)]
    parts += [(seeds.mean(1).var(ddof=1) / len(seeds), len(seeds) - 1) for seeds in methods if len(seeds) > 1]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    return float(padded.mean()), math.sqrt(variance), float(freedom)


def _quantile(freedom: float) -> float:
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number: each is at most the rate of any false one among those below it."""
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, largest = [1.0] * len(p), 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - position) * p[index]))
        corrected[index] = largest
    return corrected


def _groups(rows: int, apart: Sequence[tuple[int, int]]) -> list[frozenset[int]]:
    """Return the largest groups of rows without a pair that is apart (insert and absorb, Piepho 2004)."""
    groups = {frozenset(range(rows))}
    for i, j in apart:
        split = {group for group in groups if i in group and j in group}
        halves = {group - {row} for group in split for row in (i, j)}
        whole = groups - split
        groups = whole | {half for half in halves if not any(half < other for other in whole | halves)}
    return sorted(groups, key=sorted)
