"""Figures: of an ablation, and those of a paper. They know numbers and names, and nothing of entries.

Colours are those of Okabe and Ito (2008), or of a map whose lightness is monotone (cividis); markers, dashes, fills and
hatches tell the same apart in grey. The same numbers give the same bytes under one version of matplotlib.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from methods.files import write

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
    _open(axis)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)


def waterfall(path: Path, title: str, walks: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
    """Write a PNG with a panel a walk: the accuracy at its first and last stop, and what each stop between changed.

    Args:
        path: of the PNG.
        title: over it.
        walks: (name, stops) each; a stop is (what was changed, accuracy in percent after it), the first the start.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [len(stops) + 1 for _, stops in walks]
    figure = Figure(figsize=(6.5, 1.2 + 0.32 * sum(heights) + 0.3 * len(walks)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(walks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, stops) in zip(axes, walks, strict=True):
        _falls(axis, name, stops)
    axes[-1].set_xlabel("accuracy in %")
    figure.suptitle(title, fontsize=11, wrap=True)
    write(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))


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
    _open(axis)


def _open(axis: Any) -> None:
    """Take frame and marks off an axis whose rows have names, save the line of its scale."""
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)


_WIDTH = 7.0
"""Inches: the text of a two-column page."""
_PAPER: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "trilemma",
}
_DPI = 200
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = "os^Dv>P*"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)))
"""With seven colours and eight markers, 56 lines are told apart."""
_IMAGES = {"clean": ("#000000", "-"), "adversarial": ("#D55E00", "-"), "generated": ("#0072B2", (0, (4, 1.5)))}
_PARTS = {
    "robust": ("#00204D", ""),
    "broken by Square": ("#575D6D", "////"),
    "broken by FAB-T": ("#7C7B78", "||||"),
    "broken by APGD-T": ("#A69D75", "\\\\\\\\"),
    "broken by APGD-CE": ("#D3C164", ""),
    "wrong without attack": ("#EEEEEE", ""),
}
"""Colour and hatch of a bar's parts, from left to right; lighter and lighter."""
_AROUND = (
    *((5, 5, "left", "bottom"), (-5, 5, "right", "bottom"), (5, -5, "left", "top"), (-5, -5, "right", "top")),
    *((7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 7, "center", "bottom"), (0, -7, "center", "top")),
)
"""Places of a label beside its point, in points, the better ones first."""


@dataclass(frozen=True)
class Point:
    """One method of the trade-off; in each list, a number a seed."""

    label: str
    clean: Sequence[float]
    """Accuracies in percent."""
    robust: Sequence[float]
    generation: Sequence[float] = ()


@dataclass(frozen=True)
class Curve:
    """One method: what was swept, and of each seed the accuracies in percent."""

    label: str
    x: Sequence[float]
    seeds: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One method's histograms: edges [m + 1] and, by kind of image, of each seed the shares [m] in percent."""

    label: str
    edges: Sequence[float]
    shares: Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Cascade:
    """One method: of each seed, the shares in percent of images that are robust, that Square, FAB-T, APGD-T and
    APGD-CE broke, and that are wrong without an attack.
    """

    label: str
    seeds: Sequence[Sequence[float]]
    pgd20: Sequence[float] = ()
    """Accuracies in percent, a number a seed."""


def trade_off(
    stem: Path, title: str, points: Sequence[Point], generation: str = "", low_is_good: bool = False
) -> list[Path]:
    """Draw clean against robust accuracy, with standard deviations over seeds and the frontier of the means.

    Args:
        stem: where, without a suffix.
        title: over the figure.
        points: the methods, at least one.
        generation: what the colour is, the brighter the better; a marker without a number is white.
        low_is_good: which end of it is the bright one.

    Returns:
        The files: ``stem`` with .png and .svg.

    Raises:
        InputError: a file cannot be written.
    """
    with _figure(stem, 0.62) as (figure, written):
        axis = figure.subplots()
        x, y = zip(*map(_centre, points), strict=True)
        errors = [[_deviation(getattr(point, name)) for point in points] for name in ("robust", "clean")]
        axis.errorbar(x, y, *errors, fmt="none", ecolor="#888888", elinewidth=0.8, capsize=1.5, zorder=2)
        _frontier(axis, x, y)
        known = [statistics.fmean(point.generation) if point.generation else np.nan for point in points]
        seen = ~np.isnan(known)
        axis.scatter(x, y, s=34, facecolor="white", edgecolor="black", linewidth=0.7, zorder=3)
        if seen.any():
            coloured = np.array([x, y, known])[:, seen]
            drawn = axis.scatter(
                *coloured[:2],
                s=34,
                c=coloured[2],
                norm=_norm(coloured[2]),
                cmap="cividis_r" if low_is_good else "cividis",
                edgecolor="black",
                linewidth=0.7,
                zorder=4,
            )
            figure.colorbar(drawn, ax=axis, label=generation, pad=0.01)
        axis.set(xlabel="clean accuracy in %", ylabel="accuracy under AutoAttack in %", title=title)
        axis.grid()
        axis.margins(0.08)
        _labelled(figure, axis, points)
    return written


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
        stem: where; as in :func:`trade_off`, which has the same result and errors.
        title: over the figure.
        lines: the methods, in the order of the legend.
        x: what was swept, and its unit.
        mark: where the protocol's own value is.
        logarithmic: the scale of ``x``.
        apart: how many of the first points are of another attack than the rest, and stand alone.
    """
    with _figure(stem, 0.5) as (figure, written):
        axis = figure.subplots()
        for number, line in enumerate(lines):
            style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
            style |= {"markersize": 3.5, "linewidth": 1.1}
            dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
            mean, spread = (
                np.mean(line.seeds, 0),
                np.array([_deviation(seeds) for seeds in zip(*line.seeds, strict=True)]),
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


def histograms(stem: Path, title: str, panels: Sequence[Panel], x: str) -> list[Path]:
    """Draw a small panel a method, each with its own axes: clean, adversarial and generated images.

    Lines are means over seeds, with a band of a standard deviation. Arguments, result and errors as :func:`curves`.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with _figure(stem, (0.45 + 1.5 * rows) / _WIDTH) as (figure, written):
        grid = figure.subplots(rows, columns, squeeze=False)
        for axis, panel in zip(grid.flat, panels, strict=False):
            for kind, seeds in panel.shares.items():
                colour, dash = _IMAGES[kind]
                mean = np.mean(seeds, 0)
                if kind == "clean":
                    axis.stairs(mean, panel.edges, fill=True, color="#cccccc")
                axis.stairs(mean, panel.edges, color=colour, linestyle=dash, linewidth=0.9, label=kind)
                if len(seeds) > 1:
                    spread = np.std(seeds, 0, ddof=1)
                    axis.stairs(mean + spread, panel.edges, baseline=mean - spread, fill=True, color=colour, alpha=0.15)
            axis.set_title(panel.label, pad=3)
            axis.set_yticks([])
            axis.set_ylim(bottom=0)
            axis.spines["left"].set_visible(False)
            axis.tick_params(labelsize=7)
            axis.margins(x=0.02)
        for axis in grid.flat[len(panels) :]:
            axis.set_visible(False)
        figure.supxlabel(x, fontsize=8)
        figure.supylabel("share of images", fontsize=8)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, title=title, title_fontsize=8, loc="outside upper center", ncols=3)
        legend.get_title().set_multialignment("center")
    return written


def cascade(stem: Path, title: str, bars: Sequence[Cascade]) -> list[Path]:
    """Draw a bar a method: the share of images that each attack of the cascade broke, and of those left robust.

    The bar of a standard deviation is that of the robust share; a diamond is the accuracy under PGD-20. Arguments,
    result and errors as :func:`curves`.
    """
    with _figure(stem, (0.9 + 0.23 * len(bars)) / _WIDTH) as (figure, written):
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
            xerr=[_deviation(seeds) for seeds in robust],
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


@contextmanager
def _figure(stem: Path, aspect: float) -> Iterator[tuple[Any, list[Path]]]:
    """Give a figure, and a list that holds its files afterwards."""
    # matplotlib takes a second to import; the canvas keeps pyplot's global state out of it.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written: list[Path] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style would change the bytes
        matplotlib.rcParams.update(_PAPER)
        figure = Figure(figsize=(_WIDTH, _WIDTH * aspect), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, written
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            path = stem.with_name(f"{stem.name}.{kind}")
            write(path, lambda temporary, kind=kind, own=metadata: figure.savefig(temporary, format=kind, metadata=own))
            written.append(path)


def _deviation(seeds: Sequence[float]) -> float:
    return statistics.stdev(seeds) if len(seeds) > 1 else 0.0


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
    axis.plot(
        *zip(*best, strict=True), drawstyle="steps-post", color="#888888", linestyle="--", linewidth=0.8, zorder=1
    )


def _labelled(figure: Any, axis: Any, points: Sequence[Point]) -> None:
    """Write each label beside its point, where it covers least of other labels, of points and of their bars."""
    figure.canvas.draw()
    inside, taken, size = axis.bbox.extents, [], _DPI / 18
    for point in points:
        x, y = _centre(point)
        dx, dy = _deviation(point.clean), _deviation(point.robust)
        (left, low), (right, high), (px, py) = axis.transData.transform([(x - dx, y - dy), (x + dx, y + dy), (x, y)])
        taken += [
            (left, py - 1, right, py + 1),
            (px - 1, low, px + 1, high),
            (px - size, py - size, px + size, py + size),
        ]
    for point in points:
        texts = [
            axis.annotate(
                point.label,
                _centre(point),
                (dx, dy),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=7,
                zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )
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


_ACROSS = 4
"""Panels side by side."""


@dataclass(frozen=True)
class Versus:
    """A column of a table: of each row the reported number, and the reproduced ones of its seeds."""

    title: str
    reported: Sequence[float | None]
    reproduced: Sequence[Sequence[float]]
    percent: bool = False


def comparison(path: Path, title: str, labels: Sequence[str], columns: Sequence[Versus]) -> None:
    """Write a PNG with a row a method and a panel a column: reported numbers, and means of reproduced ones.

    Bars are standard deviations over seeds (n - 1). A column over several decades has a logarithmic scale.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(_ACROSS, len(columns))
    down = -(-len(columns) // across)
    margin = 0.075 * max(map(len, labels))
    size = (margin + 2.1 * across, 0.7 + down * (0.75 + 0.24 * len(labels)))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
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
        drawn = [place for place in places if column.reproduced[place]]
        axis.errorbar(
            [statistics.fmean(column.reproduced[place]) for place in drawn],
            drawn,
            xerr=[_deviation(column.reproduced[place]) for place in drawn],
            fmt="o",
            color=_COLOURS[0],
            markersize=4.5,
            capsize=2,
            label="reproduced",
            zorder=3,
        )
        values = [column.reported[place] or 0 for place in seen]
        values += [value for place in drawn for value in column.reproduced[place]]
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
        _open(axis)
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
    write(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
