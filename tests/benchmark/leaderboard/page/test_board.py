"""Boards as they are read, the names of their rows, and the commands that repeat and compare them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.leaderboard.page.board import Board, board_rows, read_boards
from benchmark.results.entry import Entry
from methods.errors import InputError

Make = Callable[..., Entry]


def test_rows_of_one_recipe_are_told_apart(entry: Make, board_of: Callable[..., Board]) -> None:
    rows = [entry("trades"), entry("trades", config_digest="7" * 64), entry("trades", n=20)]
    board = board_of(*rows)
    assert sorted(row.name for row in board.rows) == [
        *("trades (100 images, 77777777)", "trades (100 images, cccccccc)", "trades (20 images, cccccccc)")
    ]
    assert board.compare_command(board.rows[0]) == (
        "python -m benchmark compare trades-77777777 trades-cccccccc --dataset digits --threat Linf:0.15 "
        "--protocol digits-linf-v1"
    )


def test_commands_repeat_the_row(entry: Make) -> None:
    rows = board_rows({Path("a.json"): entry(overrides=["train.epochs=5", "data.x=a b"], n=20, which="last")})
    assert rows[0].repeat_command == (
        "python -m benchmark run --methods trades --seeds 0 --set train.epochs=5 --set 'data.x=a b' --which last "
        "--dataset digits --protocol digits-linf-v1 --limit 20"
    )
    subject = {"kind": "external", "weights_digest": "1" * 64, "architecture": "net", "parameters": 1}
    outside = entry("net.py:make", subject=subject, seed=None, config_digest=None)
    (row,) = board_rows({Path("a.json"): outside})
    assert row.repeat_command.startswith("python -m benchmark evaluate --model net.py:make")


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
