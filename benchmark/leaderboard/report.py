"""The page to look at: every table of leaderboards/, its figures and records, in one HTML file.

The file needs no network and no other file. Style, script, data and pictures are inside, and its content security
policy lets nothing else run or load; links to the entries are relative. It is a pure function of leaderboards/ and of
where it lies beside it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from benchmark.leaderboard.aggregate import by_protocol, difference, metric_columns
from benchmark.leaderboard.page.facts import AblationTable, Link, Row, Table, is_accuracy, rows_of
from benchmark.leaderboard.page.sections import article, overview
from benchmark.results.entry import Entry
from benchmark.results.layout import ABLATIONS, read_entries
from benchmark.results.reported import beside
from methods.errors import InputError
from methods.files import write_text

_HIGHER, _LOWER = {"generation_agreement", "inception_score", "half_radius"}, {"fid", "fid_ref", "kid"}
"""Columns besides accuracies of which more, or less, is better; of the others neither is."""
_SCRIPTS = tuple(f"{name}.js" for name in ("elements", "plots", "tradeoff", "attacks", "curves", "details", "page"))
_DIGITS = 5
"""Significant digits of curves and histograms."""


def write_report(leaderboards: Path, output: Path) -> Path:
    """Write the page of all tables, and return its path.

    Args:
        leaderboards: the folder of entries, tables and pictures.
        output: the HTML file.

    Raises:
        InputError: there are no entries, one is malformed, or the file cannot be written.
    """
    tables = _tables(leaderboards)
    if not tables:
        raise InputError(f"There are no entries in {leaderboards}: evaluate something first.")
    root = os.path.relpath(leaderboards.resolve(), output.resolve().parent)

    def link(path: Path) -> str:
        return quote(os.path.normpath(os.path.join(root, path)).replace(os.sep, "/"))

    files = resources.files("benchmark.leaderboard.page")
    template, style, *scripts = (
        (files / name).read_text(encoding="utf-8") for name in ("template.html", "page.css", *_SCRIPTS)
    )
    script = "\n".join(["(() => {", '"use strict";', *scripts, "})();"])
    page = Template(template).substitute(
        style=style,
        script=script,
        policy=_policy(style, script),
        overview=overview(tables),
        articles="\n".join(article(table, leaderboards, link) for table in tables),
        data=_embedded(_data(tables, link)),
    )
    write_text(output, page)
    return output


def _tables(leaderboards: Path) -> list[Table]:
    """Return every table, the fullest first, each with the ablations under its protocol."""
    tables: list[Table] = []
    for folder in sorted(path for path in leaderboards.glob("*/*") if path.is_dir()):
        entries = {path.relative_to(leaderboards): entry for path, entry in read_entries(folder).items()}
        groups = [(next(iter(group.values())), rows_of(group)) for group in by_protocol(entries, "").values()]
        ablations: list[AblationTable] = []
        for place in sorted((folder / ABLATIONS).glob("*")):
            found = read_entries(place)
            ablations += _ablation(leaderboards, place, found)
            if not groups and found:
                groups.append((next(iter(found.values())), []))
        for number, (first, rows) in enumerate(groups):
            hashes = {entry.protocol.hash for entry, _ in groups}
            own = [
                item
                for item in ablations
                # Under a protocol that has no table here, an ablation stands beside the first one, and says so.
                if item.protocol == first.protocol or (number == 0 and item.protocol.hash not in hashes)
            ]
            place = folder.relative_to(leaderboards)
            tables.append(Table(place, first.dataset, first.threat, first.protocol, rows, own))
    return sorted(tables, key=lambda table: -sum(len(row.runs) for row in table.rows))


def _ablation(leaderboards: Path, folder: Path, entries: dict[Path, Entry]) -> list[AblationTable]:
    """Return the tables of an ablation, as its built files have them."""
    document, figure = folder / "table.md", folder / "figure.png"
    if not entries or not document.is_file():
        return []
    title, *about = _document(document)
    found: list[AblationTable] = []
    for name, group in by_protocol(entries, "table").items():
        cells = _read_table(folder / name)
        picture = figure.relative_to(leaderboards) if not found and figure.is_file() else None
        protocol = next(iter(group.values())).protocol
        files = [path.relative_to(leaderboards) for path in group]
        about_it = document.relative_to(leaderboards)
        found.append(AblationTable(title, about, cells, protocol, about_it, picture, files))
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


def _policy(style: str, script: str) -> str:
    """Return the content security policy: this script and this style, pictures that are inside, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _data(tables: list[Table], link: Link) -> dict[str, Any]:
    """Return what the script draws, and what it shows of each number."""
    entries: dict[str, Any] = {}
    for table in tables:
        for row in table.rows:
            for path, run in zip(row.files, row.runs, strict=True):
                entries[path.as_posix()] = _record(run) | {"link": link(path)}
    return {
        "columns": {
            name: {
                "metric": metric,
                "value": column.value,
                "meaning": column.meaning,
                "digits": column.digits,
                "better": _better(name),
                "percent": is_accuracy(name),
            }
            for name, (metric, column) in metric_columns().items()
        },
        "tables": [
            {
                "id": table.identifier,
                "title": table.title,
                "threat": table.threat,
                "columns": table.columns,
                "decisive": table.decisive,
                "rows": [
                    {
                        "name": row.name,
                        "entries": [path.as_posix() for path in row.files],
                        "repeat": row.repeat,
                        "compare": table.comparison(row),
                        "reported": _reported(row),
                        "intervals": {
                            column: [score.low, score.high]
                            for column in table.columns
                            if (score := row.score(column)) is not None and score.low is not None
                        },
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        ],
        "entries": entries,
    }


def _reported(row: Row) -> dict[str, list[dict[str, str]]]:
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


def _better(column: str) -> int:
    """Return 1 where more of a column is better, -1 where less is, 0 where neither is."""
    return int(is_accuracy(column) or column in _HIGHER) - int(column in _LOWER)


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


def _embedded(data: dict[str, Any]) -> str:
    """Return data as JSON that no HTML parser reads as anything else."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
