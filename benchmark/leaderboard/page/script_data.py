"""The data that the page's script draws, and what it shows when a number is opened, as JSON inside the page."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark.leaderboard.aggregate import difference, metric_columns
from benchmark.leaderboard.page.board import Board, BoardRow, is_accuracy
from benchmark.results.entry import Entry
from benchmark.results.reported import beside

_MORE_IS_BETTER = {"generation_agreement", "inception_score", "half_radius"}
"""Columns, besides the accuracies, of which more is better."""
_LESS_IS_BETTER = {"fid", "fid_ref", "kid"}
_DIGITS = 5
"""Significant digits of curves and histograms."""


def script_data(boards: Sequence[Board], link: Callable[[Path], str]) -> str:
    """Return the data as JSON that no HTML parser reads as anything else; ``link`` makes an entry's address."""
    data = {
        "columns": {
            name: {
                "metric": metric,
                "value": column.value,
                "meaning": column.meaning,
                "digits": column.digits,
                "better": int(is_accuracy(name) or name in _MORE_IS_BETTER) - int(name in _LESS_IS_BETTER),
                "percent": is_accuracy(name),
            }
            for name, (metric, column) in metric_columns().items()
        },
        "tables": [_board(board) for board in boards],
        "entries": {
            path.as_posix(): _record(run) | {"link": link(path)}
            for board in boards
            for row in board.rows
            for path, run in zip(row.files, row.runs, strict=True)
        },
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _board(board: Board) -> dict[str, Any]:
    return {
        "id": board.identifier,
        "title": board.title,
        "threat": board.threat,
        "columns": board.columns,
        "decisive": board.decisive,
        "rows": [
            {
                "name": row.name,
                "entries": [path.as_posix() for path in row.files],
                "repeat": row.repeat_command,
                "compare": board.compare_command(row),
                "reported": _reported(row),
                "intervals": {
                    column: [score.low, score.high]
                    for column in board.columns
                    if (score := row.score(column)) is not None and score.low is not None
                },
            }
            for row in board.rows
        ],
    }


def _reported(row: BoardRow) -> dict[str, list[dict[str, str]]]:
    """Return what is quoted beside a row, by metric: the number of the tables, then further sources and variants."""
    return {
        metric: [
            {
                "value": f"{number.value:.2f}",
                "difference": difference(row.runs, number),
                "origin": number.origin,
                "terms": number.terms,
                "caveat": number.caveat,
            }
            for number in numbers
        ]
        for metric, numbers in beside(row.runs[0].recipe, row.runs[0].dataset).items()
    }


def _record(entry: Entry) -> dict[str, Any]:
    """Return an entry without its outcomes per image, its curves rounded."""
    record = json.loads(entry.model_dump_json(exclude={"schema_version"}))
    for measurement in record["measurements"].values():
        del measurement["verdicts"]
        measurement["series"] = _rounded(measurement["series"])
    if "curves" in record["training"]:
        record["training"]["curves"] = _rounded(record["training"]["curves"])
    return record


def _rounded(curves: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value for value in values]
        for name, values in curves.items()
    }
