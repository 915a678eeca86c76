"""One table as Markdown, CSV and LaTeX: each format escapes what means something in it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmark.leaderboard.render import Table, latex_text, replace_files


def squeezed(text: str) -> list[str]:
    """Return the lines of a table without the spaces that align it."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_latex_escapes_what_it_must() -> None:
    rows = [["pgd_at & co", "98.2 ± 0.5"], ["a\\b", "1–3"], ["100 % #1", "{x} ~ $5^2"], ["[0, 1]", None]]
    assert squeezed(Table(["Method", "Clean (%)"], rows).latex()) == [
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"Method & Clean (\%) \\",
        r"\midrule",
        r"pgd\_at \& co & 98.2 $\pm$ 0.5 \\",
        r"a\textbackslash{}b & 1--3 \\",
        r"100 \% \#1 & \{x\} \textasciitilde{} \$5\^{}2 \\",
        r"{[}0, 1] & \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert latex_text("R&D_1 at 5 %, ± 1–2") == r"R\&D\_1 at 5 \%, $\pm$ 1--2"


def test_markdown_keeps_pipes_and_lines_inside_their_cells() -> None:
    heading, rule, row = Table(["mean |d|", "n"], [["a|b\nc", 3]]).markdown().splitlines()
    assert heading == r"| mean \|d\|   | n   |"
    assert rule.count("|") == 3
    assert row.split() == ["|", r"a\|b", "c", "|", "3", "|"]


def test_csv_reads_back() -> None:
    rows = [["a, b", 'quoted "so"', "two\nlines"], ["", 0.1, None]]
    text = Table(["x", "y", "y"], rows).csv()
    assert text.endswith("\n") and "\r" not in text
    assert list(csv.reader(text.splitlines(keepends=True))) == [["x", "y", "y"], rows[0], ["", "0.1", ""]]


def test_records_become_rows() -> None:
    table = Table.of([{"a": "1"}, {"b": "2", "a": "3"}])
    assert (table.columns, table.rows) == (["a", "b"], [["1", None], ["3", "2"]])
    assert table.column("b") == [None, "2"]
    assert table.only(["b"], {"b": "B"}) == Table(["B"], [[None], ["2"]])
    assert Table.of([{"a": "1", "b": "2"}], ["b"]) == Table(["b"], [["2"]])
    with pytest.raises(KeyError):
        Table.of([{"a": "1"}], ["a", "b"])


def test_files_are_replaced_and_others_kept(tmp_path: Path) -> None:
    for name in ("table-old.csv", "notes.md"):
        (tmp_path / name).write_text("old")
    assert replace_files(tmp_path, {"table.csv": "new"}, ["table*.csv"]) == [tmp_path / "table.csv"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"table.csv": "new", "notes.md": "old"}
