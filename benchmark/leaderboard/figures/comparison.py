"""Reported numbers beside reproduced ones, a row a method and a panel a column of a paper's table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.leaderboard.figures.canvas import COLOURS, dots, named_rows, save, sheet

_ACROSS = 4
"""Panels side by side."""


@dataclass(frozen=True)
class ComparedColumn:
    """A column of a table."""

    title: str
    reported: Sequence[float | None]
    """The reported number of each row; None where there is none."""
    reproduced: Sequence[Sequence[float]]
    """The reproduced numbers of each row, one a seed."""
    percent: bool = False
    """Whether the scale reaches from 0 to 100."""


def comparison(path: Path, title: str, labels: Sequence[str], columns: Sequence[ComparedColumn]) -> None:
    """Write a PNG with a row a method and a panel a column: reported numbers, and means of reproduced ones.

    Bars are standard deviations over seeds (n - 1). A column over several decades has a logarithmic scale.

    Raises:
        InputError: the file cannot be written.
    """
    across = min(_ACROSS, len(columns))
    down = -(-len(columns) // across)
    margin = 0.075 * max(map(len, labels))
    height = 0.7 + down * (0.75 + 0.24 * len(labels))
    figure = sheet(margin + 2.1 * across, height, dpi=150, layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    places = range(len(labels))
    for axis, column in zip(grid.flat, columns, strict=False):
        seen = [place for place in places if column.reported[place] is not None]
        axis.plot(
            [column.reported[place] for place in seen],
            seen,
            linestyle="none",
            marker="D",
            markersize=6,
            color="black",
            markerfacecolor="none",
            label="reported",
        )
        dots(
            axis,
            column.reproduced,
            fmt="o",
            color=COLOURS[0],
            markersize=4.5,
            capsize=2,
            label="reproduced",
            zorder=3,
        )
        values = [column.reported[place] or 0 for place in seen]
        values += [value for seeds in column.reproduced for value in seeds]
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
        named_rows(axis)
        axis.tick_params(labelsize=8)
    grid[0, 0].set_yticks(places, labels)
    grid[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    for axis in grid.flat[len(columns) :]:
        axis.set_visible(False)
    handles, names = grid[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles, names, title=title, fontsize=9, title_fontsize=10, loc="outside upper center", ncols=2
    )
    legend.set_frame_on(False)
    legend.get_title().set_multialignment("center")
    save(path, figure)
