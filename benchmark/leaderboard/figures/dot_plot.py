"""The figure of an ablation: a row a variant, its accuracies and the energy gaps of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.leaderboard.figures.canvas import dots, named_rows, save, sheet

_STYLES = {
    "clean": ("o", "#999999", True),
    "pgd20": ("s", "#E69F00", True),
    "autoattack": ("D", "#0072B2", True),
    "first epoch": ("o", "#009E73", False),
    "last epoch": ("o", "#009E73", True),
}
"""Marker, colour (told apart by colour-blind readers too) and whether it is filled."""
_LARGE_GAP = 50
"""Nats beyond which gaps are drawn on a logarithmic scale: one runaway energy would flatten all others."""


@dataclass(frozen=True)
class DotPlotRow:
    """One variant: its label, and by name the numbers of its seeds."""

    label: str
    accuracies: Mapping[str, Sequence[float]]
    """Name of an accuracy -> percent, a number a seed."""
    gaps: Mapping[str, Sequence[float]]
    """Name of an epoch -> E(x_adv) - E(x) in nats, a number a seed."""


def dot_plot(path: Path, title: str, rows: Sequence[DotPlotRow]) -> None:
    """Write a PNG with a row a variant: mean accuracies, and beside them mean gaps where there are any.

    Bars are standard deviations over seeds (n - 1).

    Raises:
        InputError: the file cannot be written.
    """
    gaps = any(values for row in rows for values in row.gaps.values())
    figure = sheet(10 if gaps else 6.5, 1.5 + 0.42 * len(rows), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2 if gaps else 1, sharey=True, squeeze=False)[0]
    _panel(axes[0], [row.accuracies for row in rows], "accuracy in %")
    axes[0].set_xlim(-3, 103)
    axes[0].set_yticks(range(len(rows)), [row.label for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    if gaps:
        _panel(axes[1], [row.gaps for row in rows], "logged E(x_adv) - E(x), in nats")
        if max(abs(value) for row in rows for seeds in row.gaps.values() for value in seeds) > _LARGE_GAP:
            axes[1].set_xscale("symlog", linthresh=1)
        axes[1].axvline(0, color="black", linewidth=0.8, zorder=1)
    figure.suptitle(title, fontsize=11, wrap=True)
    save(path, figure)


def _panel(axis: Any, rows: Sequence[Mapping[str, Sequence[float]]], label: str) -> None:
    for name in dict.fromkeys(name for row in rows for name in row):
        marker, colour, filled = _STYLES[name]
        dots(
            axis,
            [row.get(name, ()) for row in rows],
            fmt=marker,
            color=colour,
            markerfacecolor=colour if filled else "white",
            markersize=6,
            capsize=2,
            label=name,
            zorder=3 if filled else 2,
        )
    axis.set_xlabel(label)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    named_rows(axis)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
