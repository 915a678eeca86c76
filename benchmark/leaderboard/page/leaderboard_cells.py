"""The leaderboard of the page as plain data: its columns, and what each shows of every row and sorts by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmark.leaderboard.aggregate import (
    ABSENT,
    FAILED,
    MEANINGS,
    collapsed_at,
    described,
    difference,
    measured,
    metric_columns,
    restarts,
)
from benchmark.leaderboard.page.board import Board, BoardRow, SeedScore
from benchmark.leaderboard.tables import QUOTED
from benchmark.results.reported import FLAGS, Number, quoted

_KEY_COLUMNS = {
    *("clean", "pgd20", "autoattack", "marginal_worst", "masking"),
    *("fid", "fid_ref", "generation_agreement", "energy_gap_mean"),
}
"""The metrics' columns that are seen without asking for all."""
_OWN_MEANINGS = {
    "rank": "among rows measured on the same number of images, by autoattack, then pgd20, then clean; beside it the "
    "ranks that the outcomes per image leave possible, with 95 % confidence for all rows at once",
    "ties": "rows differ significantly unless they share a letter: paired tests over images, and over seeds where "
    "there are several, corrected for the number of pairs",
    "images": "measured ones, the first of the test split",
    "reported_*": "as published, for this data set or the one that it is an edition of; the settings are those of the "
    "publication, not of this row",
    "difference_*": "reproduced (mean over seeds) minus reported, in points, and below it what sets the two "
    f"measurements apart ({'; '.join(f'{flag}: {meaning}' for flag, meaning in FLAGS.items())})",
    "architecture": "the backbone",
}


@dataclass(frozen=True)
class LeaderboardCell:
    """What one row shows in one column of the leaderboard."""

    text: str | int
    sort: str | int | None
    """The value that the column is sorted by; rows with None go last."""
    opens: str | None = None
    """The column whose details the text opens; empty for those of the whole row, None where it opens nothing."""
    style: str = ""
    """Class of the text: value, bad, absent, or empty."""
    hint: str | None = None
    """What pointing at the text shows."""
    spread: str = ""
    """Standard deviation or rank interval beside the text."""
    score: SeedScore | None = None
    """The accuracy whose interval is drawn below."""
    seeds: str = ""
    """How many of the seeds were measured, where not all."""
    apart: str = ""
    """What sets a reproduced and a reported number apart."""


@dataclass(frozen=True)
class LeaderboardColumn:
    """One column of the leaderboard."""

    name: str
    kind: str
    """Whether it sorts as ``number`` or as ``text``."""
    rare: bool
    """Whether it is seen only when all columns are asked for."""
    meaning: str | None
    cells: Sequence[LeaderboardCell]
    """One cell per row of the board, in its order."""


def leaderboard_columns(board: Board) -> list[LeaderboardColumn]:
    """Return the columns of a board's leaderboard, from left to right."""
    about = meanings()

    def column(name: str, kind: str, rare: bool, cell: Callable[[BoardRow], LeaderboardCell]) -> LeaderboardColumn:
        # Columns of one kind are explained together: reported_clean as reported_*.
        meaning = about.get(name, about.get(f"{name.partition('_')[0]}_*"))
        return LeaderboardColumn(name, kind, rare, meaning, [cell(row) for row in board.rows])

    def rank(row: BoardRow) -> LeaderboardCell:
        possible = "" if row.rank_interval == row.rank else row.rank_interval
        return LeaderboardCell(row.rank, row.rank, style="value", spread=possible)

    def flags(row: BoardRow) -> LeaderboardCell:
        return LeaderboardCell(row.flag_count, row.flag_count, opens="flags" if row.flag_count else None)

    def worded(name: str) -> bool:
        return any(row.text(name) and row.score(name) is None for row in board.rows)

    def unquoted(name: str) -> bool:
        return all(_quoted(row, name) is None for row in board.rows)

    return [
        column("rank", "number", False, rank),
        column("method", "text", False, lambda row: LeaderboardCell(row.name, row.name.lower(), opens="")),
        column("ties", "text", False, lambda row: _plain(row.ties) if row.ties else _absent("not tested")),
        column("seeds", "number", True, lambda row: LeaderboardCell(described(row.runs)["seeds"], len(row.runs))),
        *(
            column(name, "text" if worded(name) else "number", name not in _KEY_COLUMNS, partial(_measured, name))
            for name in board.columns
        ),
        *(
            column(f"{kind}_{name}", "number", unquoted(name), partial(cell, name))
            for name in QUOTED
            for kind, cell in (("reported", _reported), ("difference", _difference))
        ),
        column("flags", "number", False, flags),
        column("architecture", "text", False, lambda row: _plain(row.runs[0].subject.architecture)),
        column("images", "number", True, lambda row: _plain(row.runs[0].data.n)),
        column("restarts", "text", True, lambda row: _plain(restarts(row.runs))),
        column("collapsed_at", "text", True, lambda row: _plain(collapsed_at(row.runs))),
    ]


def meanings() -> dict[str, str]:
    """Return what each column means, those of the metrics first."""
    return {name: column.meaning for name, (_, column) in metric_columns().items()} | _OWN_MEANINGS | MEANINGS


def search_words(row: BoardRow) -> str:
    """Return the words by which the search finds a row."""
    first = row.runs[0]
    words = [row.name, first.subject.architecture, *first.overrides, str(first.training.get("budget") or "")]
    return " ".join(words).lower()


def _plain(value: str | int) -> LeaderboardCell:
    return LeaderboardCell(value, value)


def _absent(text: str) -> LeaderboardCell:
    return LeaderboardCell(text, None, style="absent")


def _measured(column: str, row: BoardRow) -> LeaderboardCell:
    """Return the cell of a metric's column."""
    text, score = measured(row.runs, column), row.score(column)
    if text == FAILED:
        return LeaderboardCell(text, None, column, style="bad")
    if text == ABSENT:
        return _absent("none" if row.measurements(metric_columns()[column][0]) else "not measured")
    if score is None:
        return LeaderboardCell(text, text, column)
    mean, _, spread = text.split(" (")[0].partition(" ± ")
    return LeaderboardCell(
        mean,
        f"{score.mean:.9g}",
        column,
        style="value",
        spread=f"± {spread}" if spread else "",
        score=score if score.low is not None else None,
        seeds=f"{score.seeds} of {len(row.runs)} seeds" if score.seeds < len(row.runs) else "",
    )


def _quoted(row: BoardRow, metric: str) -> Number | None:
    return quoted(row.runs[0].recipe, row.runs[0].dataset, metric)


def _reported(metric: str, row: BoardRow) -> LeaderboardCell:
    """Return the cell of a quoted number."""
    number = _quoted(row, metric)
    if number is None:
        return _absent("none")
    about = f"{number.origin} ({number.terms}). {number.caveat}".rstrip()
    return LeaderboardCell(f"{number.value:.2f}", f"{number.value:g}", metric, hint=about)


def _difference(metric: str, row: BoardRow) -> LeaderboardCell:
    """Return the cell of a difference to a quoted number, which is never without its flags."""
    text = difference(row.runs, _quoted(row, metric))
    if text == ABSENT:
        return _absent("none")
    value, _, flags = text.partition(" (")
    return LeaderboardCell(value, value, metric, apart=flags.removesuffix(")"))
