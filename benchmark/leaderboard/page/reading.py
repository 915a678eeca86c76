"""Reading the boards of the page from the entries and built tables in leaderboards/."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmark.leaderboard.aggregate import by_protocol
from benchmark.leaderboard.page.board import AblationTable, Board, board_rows
from benchmark.results.entry import Entry
from benchmark.results.layout import ABLATIONS, read_entries
from methods.errors import InputError


def read_boards(leaderboards: Path) -> list[Board]:
    """Return every board, the one with the most entries first, each with the ablations under its protocol.

    Raises:
        InputError: an entry is malformed, two are the same run, or an ablation's table cannot be read.
    """
    boards: list[Board] = []
    for folder in sorted(path for path in leaderboards.glob("*/*") if path.is_dir()):
        entries = {path.relative_to(leaderboards): entry for path, entry in read_entries(folder).items()}
        groups = [(next(iter(group.values())), board_rows(group)) for group in by_protocol(entries, "").values()]
        ablations: list[AblationTable] = []
        for place in sorted((folder / ABLATIONS).glob("*")):
            found = read_entries(place)
            ablations += _ablation_tables(leaderboards, place, found)
            if not groups and found:
                groups.append((next(iter(found.values())), []))
        hashes = {entry.protocol.hash for entry, _ in groups}
        for number, (first, rows) in enumerate(groups):
            own = [
                item
                for item in ablations
                # Under a protocol that has no board here, an ablation stands beside the first one, and says so.
                if item.protocol == first.protocol or (number == 0 and item.protocol.hash not in hashes)
            ]
            place = folder.relative_to(leaderboards)
            boards.append(Board(place, first.dataset, first.threat, first.protocol, rows, own))
    return sorted(boards, key=lambda board: -sum(len(row.runs) for row in board.rows))


def _ablation_tables(leaderboards: Path, folder: Path, entries: dict[Path, Entry]) -> list[AblationTable]:
    """Return the tables of an ablation, one per protocol; the first has the figure."""
    document, figure = folder / "table.md", folder / "figure.png"
    if not entries or not document.is_file():
        return []
    title, *paragraphs = _document(document)
    found: list[AblationTable] = []
    for name, group in by_protocol(entries, "table").items():
        rows = _read_table(folder / name)
        picture = figure.relative_to(leaderboards) if not found and figure.is_file() else None
        protocol = next(iter(group.values())).protocol
        files = [path.relative_to(leaderboards) for path in group]
        about = document.relative_to(leaderboards)
        found.append(AblationTable(title, paragraphs, rows, protocol, about, picture, files))
    return found


def _read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table's file, by column."""
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"The table {path} cannot be read ({error}): build it by python -m benchmark leaderboard."
        ) from error


def _document(path: Path) -> list[str]:
    """Return the heading and the paragraphs above the tables of an ablation's document."""
    head = path.read_text(encoding="utf-8").partition("\n## ")[0]
    paragraphs = [text.strip() for text in head.split("\n\n")]
    return [paragraphs[0].removeprefix("# "), *(text for text in paragraphs[2:] if text and not text.startswith("!"))]
