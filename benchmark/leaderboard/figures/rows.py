"""Figures with a named row a method or variant: an ablation, reported beside reproduced numbers, and a gap.

Numbers are means over seeds, and bars are standard deviations over seeds (n - 1).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmark.leaderboard.figures.canvas import COLOURS, deviation, save, sheet

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
_ACROSS = 4
"""Panels of a comparison side by side."""


@dataclass(frozen=True)
class DotPlotRow:
    """One variant: its label, and by name the numbers of its seeds."""

    label: str
    accuracies: Mapping[str, Sequence[float]]
    """Name of an accuracy -> percent, a number a seed."""
    gaps: Mapping[str, Sequence[float]]
    """Name of an epoch -> E(x_adv) - E(x) in nats, a number a seed."""


def dot_plot(path: Path, title: str, rows: Sequence[DotPlotRow]) -> None:
    """Write a PNG with a row a variant: mean accuracies, and beside them mean gaps where there are any."""
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
        style = {"color": colour, "markerfacecolor": colour if filled else "white", "markersize": 6}
        _dots(axis, [row.get(name, ()) for row in rows], fmt=marker, label=name, zorder=3 if filled else 2, **style)
    axis.set_xlabel(label)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    _named_rows(axis)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)


@dataclass(frozen=True)
class ComparedColumn:
    """A column of a paper's table, reported and reproduced."""

    title: str
    reported: Sequence[float | None]
    """The reported number of each row; None where there is none."""
    reproduced: Sequence[Sequence[float]]
    """The reproduced numbers of each row, one a seed."""
    percent: bool = False
    """Whether the scale reaches from 0 to 100."""


def comparison(path: Path, title: str, labels: Sequence[str], columns: Sequence[ComparedColumn]) -> None:
    """Write a PNG with a row a method and a panel a column: reported numbers, and means of reproduced ones.

    A column over several decades has a logarithmic scale.
    """
    across = min(_ACROSS, len(columns))
    down = -(-len(columns) // across)
    margin = 0.075 * max(map(len, labels))
    height = 0.7 + down * (0.75 + 0.24 * len(labels))
    figure = sheet(margin + 2.1 * across, height, dpi=150, layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axis, column in zip(grid.flat, columns, strict=False):
        reported = [(value, place) for place, value in enumerate(column.reported) if value is not None]
        style: dict[str, Any] = {"markersize": 6, "color": "black", "markerfacecolor": "none"}
        axis.plot([value for value, _ in reported], [place for _, place in reported], "D", label="reported", **style)
        style = {"fmt": "o", "markersize": 4.5, "color": COLOURS[0], "zorder": 3}
        _dots(axis, column.reproduced, label="reproduced", **style)
        values = [value for value, _ in reported] + [value for seeds in column.reproduced for value in seeds]
        if column.percent:
            axis.set_xlim(-4, 104)
        elif values and min(values) > 0 and max(values) > 100 * min(values):
            axis.set_xscale("log")
        elif values and max(map(abs, values)) > 100 * statistics.median(map(abs, values)):
            axis.set_xscale("symlog", linthresh=max(1.0, statistics.median(map(abs, values))))
        else:
            axis.margins(x=0.12)
        axis.set_xlabel(column.title, fontsize=9)
        axis.grid(axis="both", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        _named_rows(axis)
        axis.tick_params(labelsize=8)
    grid[0, 0].set_yticks(range(len(labels)), labels)
    grid[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    for axis in grid.flat[len(columns) :]:
        axis.set_visible(False)
    drawn = grid[0, 0].get_legend_handles_labels()
    legend = figure.legend(*drawn, title=title, fontsize=9, title_fontsize=10, loc="outside upper center", ncols=2)
    legend.set_frame_on(False)
    legend.get_title().set_multialignment("center")
    save(path, figure)


def waterfall(path: Path, title: str, walks: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
    """Write a PNG with a panel a walk: the accuracy at its first and last stop, and what each stop between changed.

    Args:
        path: the PNG.
        title: over the figure.
        walks: (name, stops) each; a stop is (what was changed, accuracy in percent after it), the first the start.
    """
    heights = [len(stops) + 1 for _, stops in walks]
    figure = sheet(6.5, 1.2 + 0.32 * sum(heights) + 0.3 * len(walks), dpi=150, layout="constrained")
    axes = figure.subplots(len(walks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, stops) in zip(axes, walks, strict=True):
        _falls(axis, name, stops)
    axes[-1].set_xlabel("accuracy in %")
    figure.suptitle(title, fontsize=11, wrap=True)
    save(path, figure)


def _falls(axis: Any, name: str, stops: Sequence[tuple[str, float]]) -> None:
    (first, start), end = stops[0], stops[-1][1]
    bars = [(first, 0.0, start, f"{start:.2f}", "#999999")]
    for (_, before), (label, after) in pairwise(stops):
        colour = "#D55E00" if after < before else "#0072B2"
        bars.append((label, min(before, after), abs(after - before), f"{after - before:+.2f}", colour))
    bars.append(("standard protocol", 0.0, end, f"{end:.2f}", "#999999"))
    for place, (_, left, width, text, colour) in enumerate(bars):
        axis.barh(place, width, left=left, height=0.7, color=colour)
        axis.annotate(text, (left + width, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    for place, (_, level) in enumerate(stops):
        axis.plot([level, level], [place - 0.35, place + 1.35], color="#555555", linewidth=0.7)
    axis.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlim(0, 112)
    axis.set_xticks(range(0, 101, 20))
    axis.set_title(name, loc="left", fontsize=9)
    _named_rows(axis)


def _dots(axis: Any, rows: Sequence[Sequence[float]], **style: Any) -> None:
    """Mark the mean over the seeds of each row that has numbers, with a bar of a standard deviation."""
    drawn = [(place, seeds) for place, seeds in enumerate(rows) if seeds]
    means, bars = ([of(seeds) for _, seeds in drawn] for of in (statistics.fmean, deviation))
    axis.errorbar(means, [place for place, _ in drawn], xerr=bars, capsize=2, **style)


def _named_rows(axis: Any) -> None:
    """Take frame and marks off an axis whose rows have names, save the line of its scale."""
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
