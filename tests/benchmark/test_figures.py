"""Figures: that something is drawn for what there is; what it looks like is for eyes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from benchmark.figures import Line, dot_plot

ACCURACIES = {"clean": [90.0, 92.0], "pgd20": [50.0]}


def size(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("gap", [0.5, -1e6])
def test_gaps_have_a_panel_of_their_own(tmp_path: Path, gap: float) -> None:
    plain, wide = tmp_path / "plain.png", tmp_path / "wide.png"
    not_run = Line("b\n(not run)", {}, {})
    dot_plot(plain, "title", [Line("a", ACCURACIES, {"first epoch": []}), not_run])
    dot_plot(wide, "title", [Line("a", ACCURACIES, {"first epoch": [gap, 0.1], "last epoch": [gap]}), not_run])
    assert size(wide)[0] > size(plain)[0]
    assert size(wide)[1] == size(plain)[1]


def test_same_lines_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        dot_plot(tmp_path / name, "title", [Line("a", ACCURACIES, {})])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
