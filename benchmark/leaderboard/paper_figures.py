"""The figures of a paper, from the entries alone: the trade-off, energies, curves and cascades of every table."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.leaderboard.aggregate import by_protocol, done, measured, numbers
from benchmark.leaderboard.figures.attacks import Cascade, Curve, cascade, curves
from benchmark.leaderboard.figures.histograms import HistogramPanel, histograms
from benchmark.leaderboard.figures.trade_off import Point, trade_off
from benchmark.leaderboard.tables import ranked
from benchmark.results.entry import Entry
from benchmark.results.layout import folder_name, read_entries, table_folders
from methods.primitives.norm_ball import NormBall

_GENERATION = {
    "fid": ("FID (lower is better)", True),
    "fid_ref": ("Fréchet distance in the reference network (lower is better)", True),
    "generation_agreement": ("agreement of generated images with their class in %", False),
}
"""Columns that can colour the trade-off, the preferred one first: what they are, and whether low is good."""
_SWEEPS = {
    "eps": "radius in units of [0, 1] pixels",
    "steps": "iterations of PGD at the protocol's radius; 1: FGSM, a single step as long as the radius",
}
_LEFT = ("accuracy", "after_fab_t", "after_apgd_t", "after_apgd_ce", "clean_accuracy")
"""Accuracies in AutoAttack's cascade, from its end to its beginning."""

Method = tuple[str, list[Entry]]
"""A label, and the entries of its seeds."""


def write_figures(leaderboards: Path, folder: Path) -> list[Path]:
    """Write the figures of each table, as PNG and SVG, where its entries have what they show.

    ``<folder>/<data set>/<threat>/<protocol>-<hash>-<figure>.png``, of the figures ``tradeoff``, ``energies``, ``eps``,
    ``steps`` and ``cascade``. A figure has the methods that were measured on the most images, in the order of the
    table, and leaves out those that lack its numbers. Files that are there already are overwritten, and no others.

    Returns:
        The files written, sorted.

    Raises:
        InputError: an entry is malformed or in the wrong folder, two entries are the same run, or a file cannot be
            written; the sentence names the file.
    """
    written: list[Path] = []
    for table in table_folders(leaderboards):
        for group in by_protocol(read_entries(table), "leaderboard").values():
            methods = _methods(group)
            first = methods[0][1][0]
            stem = f"{folder_name(first.protocol.id)}-{first.protocol.hash[:8]}"
            title = f"{first.dataset} at {first.threat}, {first.protocol.id}, {first.data.n} images"
            if any(len(runs) > 1 for _, runs in methods):
                title += "; mean and standard deviation over seeds"
            for name, draw in _FIGURES.items():
                written += draw(folder / table.parent.name / table.name / f"{stem}-{name}", title, methods)
    return sorted(written)


def _methods(group: dict[Path, Entry]) -> list[Method]:
    """Return the methods on the most images, the better ones first; a recipe that stands twice is told apart."""
    most = max(entry.data.n for entry in group.values())
    found = [runs for runs in ranked(group) if runs[0].data.n == most]
    recipes = [runs[0].recipe for runs in found]
    return [(_label(runs[0], recipes.count(runs[0].recipe) > 1), runs) for runs in found]


def _label(entry: Entry, several: bool) -> str:
    marks = [(entry.config_digest or entry.subject.weights_digest)[:4], entry.subject.which]
    return f"{entry.recipe} ({', '.join(filter(None, marks))})" if several else entry.recipe


def _trade_off(stem: Path, title: str, methods: Sequence[Method]) -> list[Path]:
    column = next((column for column in _GENERATION if any(numbers(runs, column) for _, runs in methods)), "")
    generation, low_is_good = _GENERATION.get(column, ("", False))
    points = [
        Point(label, clean, robust, numbers(runs, column))
        for label, runs in methods
        if (clean := numbers(runs, "clean")) and (robust := numbers(runs, "autoattack"))
    ]
    # What is no classifier would squeeze all others into a corner.
    best = max((statistics.fmean(point.clean) for point in points), default=0.0)
    shown = [point for point in points if statistics.fmean(point.clean) >= best / 2]
    hidden = ", ".join(
        f"{point.label} ({statistics.fmean(point.clean):.0f} %)" for point in points if point not in shown
    )
    title += "\ndashed: frontier of the means"
    if hidden:
        title += f"; not shown, because of their clean accuracy: {hidden}"
    return trade_off(stem, title, shown, generation, low_is_good) if shown else []


def energies(stem: Path, title: str, methods: Sequence[Method]) -> list[Path]:
    """Draw the joint energies of the methods that have them; return the files, none where no method has."""
    title += "\noverlap: of clean and adversarial images"
    panels = []
    for label, runs in methods:
        if series := landscapes(runs):
            panels.append(panel(f"{label}\noverlap {measured(runs, 'energy_overlap')}", series))
    return histograms(stem, title, panels, "joint energy E(x, y), in nats") if panels else []


def landscapes(runs: Sequence[Entry]) -> list[dict[str, list[Any]]]:
    """Return the histograms of the seeds whose energies were measured, those of generated images among them."""
    return [found.series for found in done(runs, "landscape") if None not in found.series.get("generated", [None])]


def panel(label: str, series: Sequence[dict[str, list[Any]]]) -> HistogramPanel:
    """Return the seeds' histograms on common edges: within a bin, images are spread evenly."""
    edges = np.array(series[0]["edges"])
    if len(series) > 1:
        lowest, highest = (place([found["edges"][end] for found in series]) for place, end in ((min, 0), (max, -1)))
        edges = np.linspace(lowest, highest, len(edges))
    shares = {
        kind: [np.diff(np.interp(edges, found["edges"], np.cumsum([0.0, *found[kind]]))).tolist() for found in series]
        for kind in ("clean", "adversarial", "generated")
    }
    return HistogramPanel(label, edges.tolist(), shares)


def _curves(sweep: str, stem: Path, title: str, methods: Sequence[Method]) -> list[Path]:
    lines = []
    for label, runs in methods:
        series: list[dict[str, list[Any]]] = [found.series for found in done(runs, "sweep") if found.series]
        if series:
            lines.append(Curve(label, series[0][sweep], [found[f"{sweep}_accuracy"] for found in series]))
    if not lines:
        return []
    if sweep == "eps":
        return curves(stem, title, lines, _SWEEPS[sweep], NormBall.parse(methods[0][1][0].threat).radius)
    return curves(stem, title, lines, _SWEEPS[sweep], logarithmic=True, apart=1)


def _cascade(stem: Path, title: str, methods: Sequence[Method]) -> list[Path]:
    bars = []
    for label, runs in methods:
        found: list[dict[str, Any]] = [found.values for found in done(runs, "autoattack")]
        left = [[values[name] for name in _LEFT] for values in found if values.keys() >= set(_LEFT)]
        if left:
            bars.append(Cascade(label, np.diff([[0, *seed, 100] for seed in left]).tolist(), numbers(runs, "pgd20")))
    return cascade(stem, title, bars) if bars else []


_FIGURES: dict[str, Callable[[Path, str, Sequence[Method]], list[Path]]] = {
    "tradeoff": _trade_off,
    "energies": energies,
    "eps": partial(_curves, "eps"),
    "steps": partial(_curves, "steps"),
    "cascade": _cascade,
}
