"""The trade-off: clean against robust accuracy, a point a method, coloured by what it generates."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.leaderboard.figures.canvas import DPI, deviation, paper_figure

_AROUND = (
    *((5, 5, "left", "bottom"), (-5, 5, "right", "bottom"), (5, -5, "left", "top"), (-5, -5, "right", "top")),
    *((7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 7, "center", "bottom"), (0, -7, "center", "top")),
)
"""Places of a label beside its point, in points, the better ones first."""


@dataclass(frozen=True)
class Point:
    """One method of the trade-off; each list holds a number a seed."""

    label: str
    clean: Sequence[float]
    """Accuracies on clean images, in percent."""
    robust: Sequence[float]
    """Accuracies under AutoAttack, in percent."""
    generation: Sequence[float] = ()
    """Quality of the generated images, in the unit that the colour bar names; empty where it was not measured."""


def trade_off(
    stem: Path, title: str, points: Sequence[Point], generation: str = "", low_is_good: bool = False
) -> list[Path]:
    """Draw clean against robust accuracy, with standard deviations over seeds and the frontier of the means.

    There is at least one point. ``generation`` says what the colour is, and ``low_is_good`` which end of it is the
    bright one; a marker without a number is white.
    """
    with paper_figure(stem, 0.62) as (figure, written):
        axis = figure.subplots()
        x, y = zip(*map(_centre, points), strict=True)
        errors = [[deviation(getattr(point, name)) for point in points] for name in ("robust", "clean")]
        axis.errorbar(x, y, *errors, fmt="none", ecolor="#888888", elinewidth=0.8, capsize=1.5, zorder=2)
        _frontier(axis, x, y)
        known = [statistics.fmean(point.generation) if point.generation else np.nan for point in points]
        seen = ~np.isnan(known)
        axis.scatter(x, y, s=34, facecolor="white", edgecolor="black", linewidth=0.7, zorder=3)
        if seen.any():
            *places, shade = np.array([x, y, known])[:, seen]
            style = {"s": 34, "edgecolor": "black", "linewidth": 0.7, "zorder": 4}
            colours = "cividis_r" if low_is_good else "cividis"
            drawn = axis.scatter(*places, c=shade, norm=_norm(shade), cmap=colours, **style)
            figure.colorbar(drawn, ax=axis, label=generation, pad=0.01)
        axis.set(xlabel="clean accuracy in %", ylabel="accuracy under AutoAttack in %", title=title)
        axis.grid()
        axis.margins(0.08)
        _labelled(figure, axis, points)
    return written


def _norm(values: np.ndarray) -> Any:
    """Return a logarithmic scale for distances that span more than a decade."""
    from matplotlib.colors import LogNorm, Normalize

    return LogNorm() if values.min() > 0 and values.max() / values.min() > 10 else Normalize()


def _frontier(axis: Any, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw the border of what some method reaches in both accuracies at once."""
    best: list[tuple[float, float]] = []
    for clean, robust in sorted(zip(x, y, strict=True), reverse=True):
        if not best or robust > best[-1][1]:
            best.append((clean, robust))
    best = [(best[0][0], min(y)), *best, (min(x), best[-1][1])]
    style = {"color": "#888888", "linestyle": "--", "linewidth": 0.8, "zorder": 1}
    axis.plot(*zip(*best, strict=True), drawstyle="steps-post", **style)


def _labelled(figure: Any, axis: Any, points: Sequence[Point]) -> None:
    """Write each label beside its point, where it covers least of other labels, of points and of their bars."""
    figure.canvas.draw()
    inside, taken, size = axis.bbox.extents, [], DPI / 18
    for point in points:
        x, y = _centre(point)
        dx, dy = deviation(point.clean), deviation(point.robust)
        (left, low), (right, high), (px, py) = axis.transData.transform([(x - dx, y - dy), (x + dx, y + dy), (x, y)])
        taken += [(left, py - 1, right, py + 1), (px - 1, low, px + 1, high)]
        taken.append((px - size, py - size, px + size, py + size))
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    style = {"textcoords": "offset points", "fontsize": 7, "zorder": 5, "bbox": box}
    for point in points:
        texts = [
            axis.annotate(point.label, _centre(point), (dx, dy), ha=horizontal, va=vertical, **style)
            for dx, dy, horizontal, vertical in _AROUND
        ]
        boxes = [text.get_window_extent().extents for text in texts]
        costs = [sum(_common(box, other) for other in taken) + _area(box) - _common(box, inside) for box in boxes]
        chosen = int(np.argmin(costs))
        taken.append(boxes[chosen])
        texts.pop(chosen).set_in_layout(False)
        for text in texts:
            text.remove()


def _centre(point: Point) -> tuple[float, float]:
    return statistics.fmean(point.clean), statistics.fmean(point.robust)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _common(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the area that two boxes (left, bottom, right, top) share."""
    corners = (*np.maximum(one[:2], other[:2]), *np.minimum(one[2:], other[2:]))
    return _area(corners) if corners[0] < corners[2] and corners[1] < corners[3] else 0.0
