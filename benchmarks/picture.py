"""The picture of the results: speed-ups on top, all other measures in small panels below.

Colours are those of Okabe and Ito (2008). A bar is a median and its whisker the range of the repeats; the tick across a
bar is the target, black where it is met and vermilion where it is not.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import AT_LEAST, Row
from methods.files import write

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#999999")
_MISSED = "#D55E00"
_WIDTH = 11.0
_ROW, _LINE, _FRAME = 0.21, 0.1, 0.85
"""Inches of a row, of a further line of its label, and of a panel's title, scale and distance."""
_LABEL = 42
"""Characters of a label's line."""
_WIDE = 30
"""Ratio of the largest to the smallest value beyond which a panel is logarithmic."""
_TEXT = {"wide": 0.25, "narrow": 0.65, "number": 0.2}
"""Share of a panel's width that the text beside a bar takes: no target tick is drawn through it."""


def draw(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Write a PNG with a panel of all speed-ups and one for every other measure of every benchmark.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = dict(zip(dict.fromkeys(row.benchmark for row in rows), _COLOURS * len(rows), strict=False))
    speed = [row for row in rows if row.measure == "speed-up"]
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.measure != "speed-up":
            panels.setdefault((row.benchmark, row.measure), []).append(row)
    columns = _columns(list(panels.values()))
    top = _height([speed]) if speed else 0.0
    below = max(_height(column) for column in columns)
    figure = Figure(figsize=(_WIDTH, top + below + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, wrap=True)
    parts = figure.subfigures(2, 1, height_ratios=[max(top, 1e-3), max(below, 1e-3)], squeeze=False)[:, 0]
    if speed:
        axis = parts[0].subplots()
        _panel(axis, speed, colours, "speed-up: baseline / ours", _TEXT["wide"])
        axis.axvline(1, color="black", linewidth=0.8, zorder=1)
        names = dict.fromkeys(row.benchmark for row in speed)
        if len(names) > 1:
            handles = [Patch(color=colours[name], label=name) for name in names]
            axis.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=7.5)
    if panels:
        used = [column for column in columns if column]
        for part, column in zip(parts[1].subfigures(1, len(used), squeeze=False)[0], used, strict=True):
            heights = [_height([panel]) for panel in column]
            blank = below - sum(heights)
            grid = part.add_gridspec(len(column) + (blank > 0.1), 1, height_ratios=heights + [blank] * (blank > 0.1))
            for place, panel in enumerate(column):
                _panel(
                    part.add_subplot(grid[place]),
                    panel,
                    colours,
                    f"{panel[0].benchmark}: {panel[0].measure}",
                    _TEXT["narrow"],
                )
    write(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))


def _height(panels: Sequence[Sequence[Row]]) -> float:
    return sum(_FRAME + len(panel) * (_ROW + _LINE * max(_label(row).count("\n") for row in panel)) for panel in panels)


def _label(row: Row) -> str:
    return textwrap.fill(row.case, _LABEL)


def _columns(panels: Sequence[list[Row]]) -> list[list[list[Row]]]:
    """Share the panels between two columns of about the same height."""
    columns: list[list[list[Row]]] = [[], []]
    for panel in panels:
        min(columns, key=_height).append(panel)
    return columns


def _panel(axis: Any, rows: Sequence[Row], colours: Mapping[str, str], title: str, room: float) -> None:
    shared = len({row.target for row in rows}) == 1
    if shared:
        title, room = title + _target(rows[0]), _TEXT["number"]
    values = [value for row in rows for value in (row.value, row.low, row.high, row.target) if value is not None]
    logarithmic = min(values) > 0 and max(values) > _WIDE * min(values)
    for place, row in enumerate(rows):
        colour = colours[row.benchmark]
        if logarithmic:
            axis.plot(row.value, place, "o", color=colour, markersize=5, zorder=3)
        else:
            axis.barh(place, row.value, height=0.66, color=colour, zorder=2)
        axis.plot([row.low, row.high], [place, place], color="#333333", linewidth=1.1, zorder=4)
        reach = max(row.value, row.high, 0)
        if row.target is not None:
            tick = "black" if row.met else _MISSED
            axis.plot([row.target, row.target], [place - 0.42, place + 0.42], color=tick, linewidth=2, zorder=5)
            if reach < row.target and _share(row.target, reach, values, logarithmic) < room:
                reach = row.target
        axis.annotate(
            _number(row.value) + ("" if shared else _target(row)),
            (reach, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color="#333333",
        )
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=7.5, linespacing=0.95)
    axis.set_ylim(len(rows) - 0.45, -0.55)
    if logarithmic:
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 1.5, max(values) * 10 ** (0.2 * math.log10(max(values) / min(values))))
    else:
        lowest, highest = min(0, *values), max(0, *values)
        axis.set_xlim(lowest - 0.02 * (highest - lowest), highest + 0.16 * (highest - lowest or 1))
    axis.set_title(title, loc="left", fontsize=8.5, fontweight="bold")
    axis.tick_params(axis="x", labelsize=7.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _share(upper: float, lower: float, values: Sequence[float], logarithmic: bool) -> float:
    """Return which share of a panel's width lies between two values."""
    if logarithmic:
        return math.log(upper / lower) / math.log(max(values) / min(values))
    return (upper - lower) / (max(0, *values) - min(0, *values))


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    sign = "≥" if row.measure in AT_LEAST else "≤"
    return f"  (target {sign} {_number(row.target)})"
