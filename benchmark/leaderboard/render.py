"""Tables as text: Markdown, CSV and LaTeX, each escaped as it must be, and the files that hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import LATEX_ESCAPE_RULES, tabulate

from benchmark.leaderboard.aggregate import ABSENT
from benchmark.results.entry import Entry
from methods.files import write_text

_LATEX = {"±": r"$\pm$", "–": "--"}
"""Signs that not every setting of LaTeX knows."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names; a cell is text, a number, or None where there is nothing."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, str | float | None]], columns: Iterable[str] | None = None) -> Table:
        """Make a table with a row for each record.

        Args:
            records: column name -> cell.
            columns: the ones to show, which every record has; None: all, in the order in which the records first name
                them, with None in the cells that a record lacks.
        """
        if columns is None:
            names = list(dict.fromkeys(name for record in records for name in record))
            return cls(names, [[record.get(name) for name in names] for record in records])
        names = list(columns)
        return cls(names, [[record[name] for name in names] for record in records])

    def column(self, name: str) -> list[str | float | None]:
        """Return the cells of a column."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def only(self, columns: Sequence[str], titles: Mapping[str, str] | None = None) -> Table:
        """Return some of the columns, in this order, under other names where ``titles`` has one."""
        places = [self.columns.index(name) for name in columns]
        return Table(
            [(titles or {}).get(name, name) for name in columns],
            [[row[place] for place in places] for row in self.rows],
        )

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown, without a newline at its end."""
        heads, *rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in self._texts()]
        return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)

    def csv(self) -> str:
        """Return the table as the text of a CSV file; None is an empty cell."""
        import pandas as pd  # takes a second to load, and reading results needs none of it

        # Of type object, in which whole numbers beside an empty cell stay whole.
        table = pd.DataFrame([list(row) for row in self.rows], columns=pd.Index(self.columns), dtype=object)
        return table.to_csv(index=False, lineterminator="\n")

    def latex(self) -> str:
        """Return the table for LaTeX's booktabs, without a newline at its end."""
        heads, *rows = self._texts()
        text = tabulate(rows, headers=heads, tablefmt="latex_booktabs", disable_numparse=True)
        # A bracket or an asterisk after the end of a row would be taken for an argument of it.
        return _signs(re.sub(r"^ ([\[*])", r" {\1}", text, flags=re.MULTILINE))

    def _texts(self) -> list[list[str]]:
        return [["" if cell is None else str(cell) for cell in row] for row in (self.columns, *self.rows)]


def latex_text(text: str) -> str:
    """Return plain text as LaTeX that prints it."""
    return _signs("".join(LATEX_ESCAPE_RULES.get(sign, sign) for sign in text))


def _signs(text: str) -> str:
    for sign, command in _LATEX.items():
        text = text.replace(sign, command)
    return text


def card(group: Mapping[Path, Entry], file: str) -> str:
    """Return the line over a table: under which protocol, and on how many images."""
    protocol = next(iter(group.values())).protocol
    images = " or ".join(str(n) for n in sorted({entry.data.n for entry in group.values()}, reverse=True))
    return f"{protocol.role} protocol, hash `{protocol.hash}`, n = {images} images, as [{file}]({file})"


def legend(meanings: Mapping[str, str]) -> str:
    """Return the section that says what the columns mean."""
    lines = [f"- `{name}`: {meaning}" for name, meaning in meanings.items()]
    return "\n".join(["## Columns", "", f'"{ABSENT}": not measured or not applicable.', "", *lines]) + "\n"


def replace_files(folder: Path, files: Mapping[str, str], replaced: Sequence[str]) -> list[Path]:
    """Write files by name, and delete those that match a pattern and are not among them; return what was written."""
    for name, text in sorted(files.items()):
        write_text(folder / name, text)
    for stale in {path for pattern in replaced for path in folder.glob(pattern)}:
        if stale.name not in files:
            stale.unlink()
    return [folder / name for name in sorted(files)]
