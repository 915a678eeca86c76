"""Boards as they are read from entries and built tables."""

from pathlib import Path

import pytest

from benchmark.leaderboard.page.reading import read_boards
from methods.errors import InputError


def test_boards_come_fullest_first_with_the_ablations_under_their_protocol(full_results: Path) -> None:
    first, second = read_boards(full_results)
    assert [sum(len(row.runs) for row in board.rows) for board in (first, second)] == [7, 1]
    (ablation,) = first.ablations
    assert ablation.protocol == first.protocol
    assert "ce, pull" in [row["row"] for row in ablation.rows]
    assert "dataset" not in ablation.columns
    assert "clean" in ablation.columns
    assert list(second.ablations) == []


def test_an_ablation_without_its_table_is_told(leaderboards: Path) -> None:
    (leaderboards / "digits" / "linf-0.15" / "ablations" / "inner_objective" / "table.csv").unlink()
    with pytest.raises(InputError, match=r"table\.csv cannot be read.* build it by python -m benchmark leaderboard"):
        read_boards(leaderboards)
