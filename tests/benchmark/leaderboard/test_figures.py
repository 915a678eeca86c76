"""Figures: that something is drawn for what there is; what it looks like is for eyes."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from benchmark.leaderboard.figures.attacks import Cascade, Curve, cascade, curves
from benchmark.leaderboard.figures.histograms import HistogramPanel, histograms
from benchmark.leaderboard.figures.rows import ComparedColumn, DotPlotRow, comparison, dot_plot
from benchmark.leaderboard.figures.trade_off import Point, trade_off
from methods.errors import InputError

ACCURACIES = {"clean": [90.0, 92.0], "pgd20": [50.0]}


def size(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("gap", [0.5, -1e6])
def test_gaps_have_a_panel_of_their_own(tmp_path: Path, gap: float) -> None:
    plain, wide = tmp_path / "plain.png", tmp_path / "wide.png"
    not_run = DotPlotRow("b\n(not run)", {}, {})
    dot_plot(plain, "title", [DotPlotRow("a", ACCURACIES, {"first epoch": []}), not_run])
    dot_plot(wide, "title", [DotPlotRow("a", ACCURACIES, {"first epoch": [gap, 0.1], "last epoch": [gap]}), not_run])
    assert size(wide)[0] > size(plain)[0]
    assert size(wide)[1] == size(plain)[1]


def test_same_lines_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        dot_plot(tmp_path / name, "title", [DotPlotRow("a", ACCURACIES, {})])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


POINTS = [Point("a", [90, 91], [50, 52], [3.0, 4.0]), Point("b", [92], [40], [90.0]), Point("c", [85], [10])]
CURVES = [Curve("a", [1, 2, 5], [[90, 50, 1], [91, 52, 2]]), Curve("b", [1, 2, 5], [[80, 60, 3]])]
SHARES = {"clean": [[50, 50], [40, 60]], "adversarial": [[0, 100], [10, 90]], "generated": [[100, 0], [90, 10]]}
PANELS = [HistogramPanel(f"method {number}\noverlap 0.5", [-2, -1, 0], SHARES) for number in range(5)]
BARS = [Cascade("a", [[50, 1, 2, 3, 40, 4], [52, 1, 2, 3, 40, 2]], [53, 55]), Cascade("b", [[0, 0, 0, 0, 90, 10]])]
DRAWN: dict[str, Callable[[Path], list[Path]]] = {
    "tradeoff": lambda stem: trade_off(stem, "title", POINTS, "distance", low_is_good=True),
    "steps": lambda stem: curves(stem, "title", CURVES, "iterations", mark=2, logarithmic=True, apart=1),
    "energies": lambda stem: histograms(stem, "title", PANELS, "energy"),
    "cascade": lambda stem: cascade(stem, "title", BARS),
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tradeoff", {"title", "a", "b", "c", "distance"}),
        ("steps", {"a", "b", "iterations", "2"}),
        ("energies", {"title", "clean", "adversarial", "generated", "method 4"}),
        ("cascade", {"a", "b", "robust", "broken by FAB-T", "PGD-20"}),
    ],
)
def test_paper_figures_are_png_and_svg_with_the_same_bytes_every_time(
    tmp_path: Path, name: str, words: set[str]
) -> None:
    first, second = (DRAWN[name](tmp_path / folder / "v1.0-figure") for folder in ("one", "two"))
    assert [path.name for path in first] == ["v1.0-figure.png", "v1.0-figure.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert size(first[0])[0] == 1400
    assert ElementTree.parse(first[1]).getroot().tag.endswith("svg")
    # matplotlib leaves each text as a comment beside its outlines.
    assert words <= set(re.findall(r"<!-- (.*?) -->", first[1].read_text()))


def test_single_point_without_generation_is_drawn(tmp_path: Path) -> None:
    assert len(trade_off(tmp_path / "figure", "title", [Point("a", [90], [50])])) == 2


def test_labels_of_a_crowd_do_not_cover_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (saved.append(self), Path(path).touch()))
    places = [(90, 50), (91, 50), (90.5, 54), (90, 58), (91, 58), (60, 5)]
    trade_off(tmp_path / "figure", "title", [Point(f"at {x}", [x], [y]) for x, y in places])
    boxes = [text.get_window_extent() for text in saved[0].axes[0].texts]
    assert len(boxes) == 6
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_figure_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="Cannot write"):
        cascade(tmp_path / "taken" / "figure", "title", BARS)


def drawn_by(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect every figure that is written from now on."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def test_comparison_has_a_panel_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn_by(monkeypatch)
    columns = [
        ComparedColumn("clean (%)", [96.1, None], [[99.0, 97.0], []], percent=True),
        ComparedColumn("FID", [1.0, 500.0], [[], []]),
        ComparedColumn("gap", [1.0, None], [[1.2], [-1e6]]),
        ComparedColumn("IS", [8.0, 7.0], [[], [6.5]]),
        ComparedColumn("fid_ref", [None, None], [[0.5], [0.7]]),
    ]
    comparison(tmp_path / "table.png", "Table", ["JEM", "EB-JDAT"], columns)
    assert size(tmp_path / "table.png")[0] > 600
    (figure,) = figures
    shown: list[Any] = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_xlabel() for axis in shown] == ["clean (%)", "FID", "gap", "IS", "fid_ref"]
    assert [axis.get_xscale() for axis in shown] == ["linear", "log", "symlog", "linear", "linear"]
    assert [text.get_text() for text in shown[0].get_yticklabels()] == ["JEM", "EB-JDAT"]
    reported, reproduced = shown[0].lines[0], shown[0].containers[0].lines[0]
    assert (list(reported.get_xdata()), list(reported.get_ydata())) == ([96.1], [0])
    assert (list(reproduced.get_xdata()), list(reproduced.get_ydata())) == ([98.0], [0])
