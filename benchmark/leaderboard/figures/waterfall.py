"""The figure of a gap: what each change between two evaluators adds to an accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmark.leaderboard.figures.canvas import named_rows, save, sheet


def waterfall(path: Path, title: str, walks: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
    """Write a PNG with a panel a walk: the accuracy at its first and last stop, and what each stop between changed.

    Args:
        path: the PNG.
        title: over the figure.
        walks: (name, stops) each; a stop is (what was changed, accuracy in percent after it), the first the start.

    Raises:
        InputError: the file cannot be written.
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
    named_rows(axis)
