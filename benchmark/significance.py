"""How sure a number is, and whether two of them differ."""

from __future__ import annotations

import math

CONFIDENCE = 0.95
_Z = 1.959963984540054


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval (1927) of a share, in percent; it is honest near 0 and 100 %, and for small n.

    Args:
        correct: images that were right.
        n: images, at least 1.
    """
    share, weight = correct / n, _Z * _Z / n
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
