"""Figures of attacks: how many images each attack of AutoAttack's cascade broke, and accuracy against what is swept."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.leaderboard.figures.canvas import BESIDE, COLOURS, WIDTH, deviation, paper_figure

_PARTS = {
    "robust": ("#00204D", ""),
    "broken by Square": ("#575D6D", "////"),
    "broken by FAB-T": ("#7C7B78", "||||"),
    "broken by APGD-T": ("#A69D75", "\\\\\\\\"),
    "broken by APGD-CE": ("#D3C164", ""),
    "wrong without attack": ("#EEEEEE", ""),
}
"""Colour and hatch of a bar's parts, from left to right; lighter and lighter."""
_MARKERS = "os^Dv>P*"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)))
"""With seven colours and eight markers, 56 lines are told apart."""


@dataclass(frozen=True)
class Cascade:
    """The bar of one method."""

    label: str
    seeds: Sequence[Sequence[float]]
    """Shares of the images in percent, [seeds, 6]: robust; broken by Square, FAB-T, APGD-T and APGD-CE; wrong without
    an attack.
    """
    pgd20: Sequence[float] = ()
    """Accuracies under PGD-20 in percent, a number a seed."""


def cascade(stem: Path, title: str, bars: Sequence[Cascade]) -> list[Path]:
    """Draw a bar a method: the share of images that each attack of the cascade broke, and of those left robust.

    The bar of a standard deviation is that of the robust share; a diamond is the accuracy under PGD-20.
    """
    with paper_figure(stem, (0.9 + 0.23 * len(bars)) / WIDTH) as (figure, written):
        axis = figure.subplots()
        places = np.arange(len(bars))
        left = np.zeros(len(bars))
        for part, (name, (colour, hatch)) in enumerate(_PARTS.items()):
            shares = np.array([statistics.fmean(seed[part] for seed in bar.seeds) for bar in bars])
            style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
            axis.barh(places, shares, 0.72, left, label=name, **style)
            left += shares
        robust = [[seed[0] for seed in bar.seeds] for bar in bars]
        means, spread = ([of(seeds) for seeds in robust] for of in (statistics.fmean, deviation))
        axis.errorbar(means, places, xerr=spread, fmt="none", ecolor="#D55E00", elinewidth=1.2, capsize=2)
        marked = [(statistics.fmean(bar.pgd20), place) for bar, place in zip(bars, places, strict=True) if bar.pgd20]
        if marked:
            axis.plot(*zip(*marked, strict=True), "D", color="white", markeredgecolor="black", ms=4, label="PGD-20")
        axis.set_yticks(places, [bar.label for bar in bars])
        axis.set(xlabel="share of images in %", xlim=(0, 100), ylim=(len(bars) - 0.4, -0.6))
        axis.tick_params(axis="y", length=0)
        axis.set_title(title)
        axis.legend(**BESIDE)
    return written


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
    """
    with paper_figure(stem, 0.5) as (figure, written):
        axis = figure.subplots()
        alone, joined = slice(apart), slice(apart, None)
        for number, line in enumerate(lines):
            colour = COLOURS[number % len(COLOURS)]
            style = {"color": colour, "marker": _MARKERS[number % len(_MARKERS)], "markersize": 3.5, "linewidth": 1.1}
            dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
            mean = np.mean(line.seeds, 0)
            spread = np.array([deviation(seeds) for seeds in zip(*line.seeds, strict=True)])
            axis.plot(line.x[joined], mean[joined], linestyle=dash, label=line.label, **style)
            band = (mean - spread)[joined], (mean + spread)[joined]
            axis.fill_between(line.x[joined], *band, color=colour, alpha=0.15, linewidth=0)
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
        axis.legend(**BESIDE)
    return written
