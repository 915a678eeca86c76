"""AutoAttack's cascade: which of its attacks broke how many images, a bar a method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.leaderboard.figures.canvas import WIDTH, deviation, paper_figure

_PARTS = {
    "robust": ("#00204D", ""),
    "broken by Square": ("#575D6D", "////"),
    "broken by FAB-T": ("#7C7B78", "||||"),
    "broken by APGD-T": ("#A69D75", "\\\\\\\\"),
    "broken by APGD-CE": ("#D3C164", ""),
    "wrong without attack": ("#EEEEEE", ""),
}
"""Colour and hatch of a bar's parts, from left to right; lighter and lighter."""


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

    Args:
        stem: path of the files, without a suffix.
        title: over the figure.
        bars: the methods, from top to bottom.

    Returns:
        The files: ``stem`` with .png and .svg.

    Raises:
        InputError: a file cannot be written.
    """
    with paper_figure(stem, (0.9 + 0.23 * len(bars)) / WIDTH) as (figure, written):
        axis = figure.subplots()
        places = np.arange(len(bars))
        left = np.zeros(len(bars))
        for part, (name, (colour, hatch)) in enumerate(_PARTS.items()):
            shares = np.array([statistics.fmean(seed[part] for seed in bar.seeds) for bar in bars])
            axis.barh(
                places, shares, 0.72, left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4, label=name
            )
            left += shares
        robust = [[seed[0] for seed in bar.seeds] for bar in bars]
        axis.errorbar(
            [statistics.fmean(seeds) for seeds in robust],
            places,
            xerr=[deviation(seeds) for seeds in robust],
            fmt="none",
            ecolor="#D55E00",
            elinewidth=1.2,
            capsize=2,
        )
        marked = [(statistics.fmean(bar.pgd20), place) for bar, place in zip(bars, places, strict=True) if bar.pgd20]
        if marked:
            axis.plot(*zip(*marked, strict=True), "D", color="white", markeredgecolor="black", ms=4, label="PGD-20")
        axis.set_yticks(places, [bar.label for bar in bars])
        axis.set(xlabel="share of images in %", xlim=(0, 100), ylim=(len(bars) - 0.4, -0.6))
        axis.tick_params(axis="y", length=0)
        axis.set_title(title)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7)
    return written
