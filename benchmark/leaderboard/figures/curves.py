"""Accuracy against what an attack sweeps, a line a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.leaderboard.figures.canvas import COLOURS, deviation, paper_figure

_MARKERS = "os^Dv>P*"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)))
"""With seven colours and eight markers, 56 lines are told apart."""


@dataclass(frozen=True)
class Curve:
    """The curve of one method."""

    label: str
    x: Sequence[float]
    """Values of what was swept [m]."""
    seeds: Sequence[Sequence[float]]
    """Accuracies in percent, [seeds, m]."""


def curves(
    stem: Path,
    title: str,
    lines: Sequence[Curve],
    x: str,
    mark: float | None = None,
    logarithmic: bool = False,
    apart: int = 0,
) -> list[Path]:
    """Draw accuracy against what was swept: the mean over seeds, and a band of a standard deviation.

    The axis ends where all accuracies have fallen to 0.

    Args:
        stem: path of the files, without a suffix.
        title: over the figure.
        lines: the methods, in the order of the legend.
        x: what was swept, and its unit.
        mark: the protocol's own value, marked with a dotted line; None: no mark.
        logarithmic: the scale of ``x``.
        apart: how many of the first points are of another attack than the rest, and stand alone.

    Returns:
        The files: ``stem`` with .png and .svg.

    Raises:
        InputError: a file cannot be written.
    """
    with paper_figure(stem, 0.5) as (figure, written):
        axis = figure.subplots()
        for number, line in enumerate(lines):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
            style |= {"markersize": 3.5, "linewidth": 1.1}
            dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
            mean, spread = (
                np.mean(line.seeds, 0),
                np.array([deviation(seeds) for seeds in zip(*line.seeds, strict=True)]),
            )
            alone, joined = slice(apart), slice(apart, None)
            axis.plot(line.x[joined], mean[joined], linestyle=dash, label=line.label, **style)
            band = mean - spread, mean + spread
            axis.fill_between(
                line.x[joined], *(edge[joined] for edge in band), color=style["color"], alpha=0.15, linewidth=0
            )
            if apart:
                axis.errorbar(line.x[alone], mean[alone], spread[alone], linestyle="none", **style)
        places = sorted({value for line in lines for value in line.x})
        alive = [value for line in lines for value, *seeds in zip(line.x, *line.seeds, strict=True) if max(seeds) >= 1]
        axis.margins(x=0.01)
        if beyond := [value for value in places if value > max(alive, default=0)]:
            axis.set_xlim(right=1.02 * beyond[0])
        if mark is not None:
            axis.axvline(mark, color="black", linewidth=0.8, linestyle=":", zorder=1)
        if logarithmic:
            axis.set_xscale("log")
            axis.set_xticks(places, [f"{value:g}" for value in places])
            axis.minorticks_off()
        axis.set(xlabel=x, ylabel="accuracy in %", title=title, ylim=(-2, 102))
        axis.grid()
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7)
    return written
