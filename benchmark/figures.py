"""The figure of an ablation: accuracies and logged energy gaps, a line a variant."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.training.checkpoint import write

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
class Line:
    """One variant: its label, and by name the numbers of its seeds."""

    label: str
    accuracies: Mapping[str, Sequence[float]]
    """In percent."""
    gaps: Mapping[str, Sequence[float]]
    """E(x_adv) - E(x), in nats."""


def dot_plot(path: Path, title: str, lines: Sequence[Line]) -> None:
    """Write a PNG with a row a variant: mean accuracies, and beside them mean gaps where there are any.

    Bars are standard deviations over seeds (n - 1).

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gaps = any(values for line in lines for values in line.gaps.values())
    figure = Figure(figsize=(10 if gaps else 6.5, 1.5 + 0.42 * len(lines)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if gaps else 1, sharey=True, squeeze=False)[0]
    _panel(axes[0], [line.accuracies for line in lines], "accuracy in %")
    axes[0].set_xlim(-3, 103)
    axes[0].set_yticks(range(len(lines)), [line.label for line in lines])
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    if gaps:
        _panel(axes[1], [line.gaps for line in lines], "logged E(x_adv) - E(x), in nats")
        if max(abs(value) for line in lines for seeds in line.gaps.values() for value in seeds) > _LARGE_GAP:
            axes[1].set_xscale("symlog", linthresh=1)
        axes[1].axvline(0, color="black", linewidth=0.8, zorder=1)
    figure.suptitle(title, fontsize=11, wrap=True)
    write(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))


def _panel(axis: Any, rows: Sequence[Mapping[str, Sequence[float]]], label: str) -> None:
    for name in dict.fromkeys(name for row in rows for name in row):
        marker, colour, filled = _STYLES[name]
        places = [place for place, row in enumerate(rows) if row.get(name)]
        values = [rows[place][name] for place in places]
        axis.errorbar(
            [statistics.fmean(seeds) for seeds in values],
            places,
            xerr=[statistics.stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values],
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
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
