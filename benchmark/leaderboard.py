"""The tables: a pure function of leaderboards/<dataset>/<threat>/entries/*.json.

A row is one experiment, with the mean over its seeds. Rows share a table only when their protocols have the
same hash. The newest standard protocol gives leaderboard.csv, every other one leaderboard-<id>-<hash>.csv,
and leaderboard.md shows all of them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark import ablation
from benchmark.cells import (
    ABSENT,
    MEANINGS,
    by_protocol,
    card,
    described,
    drop_pictures,
    experiments,
    identity,
    legend,
    markdown,
    measured,
    metric_columns,
    numbers,
    replace_files,
)
from benchmark.results import ABLATIONS, Entry, read_entries

COLUMNS = (
    *(
        "rank",
        "method",
        "dataset",
        "threat",
        "seeds",
        "clean",
        "pgd20",
        "autoattack",
        "fid",
        "inception_score",
    ),
    *("generation_agreement", "generation_agreement_start"),
    *("energy_gap_mean", "energy_gap_std", "masking", "reported_clean", "reported_autoattack", "protocol"),
    *("architecture", "n", "partial", "restarts", "collapsed_at"),
    *("config_digest", "overrides", "budget", "selection", "flags"),
)
SHOWN = (
    "rank",
    "method",
    "seeds",
    "clean",
    "pgd20",
    "autoattack",
    "energy_gap_mean",
    "reported_clean",
    "reported_autoattack",
    "architecture",
    "partial",
    "overrides",
)
"""The columns that fit a terminal."""
_RANKED_BY = ("autoattack", "pgd20", "clean")

_MEANINGS = {
    "rank": "among rows measured on the same number of images, by autoattack, then pgd20, then clean",
    "reported_*": "as published; the settings are those of the publication, not of this row",
}


def rebuild(leaderboards: Path) -> list[Path]:
    """Write the tables of every data set, threat model and ablation, and delete what has no entries any more.

    Returns:
        The files written, sorted.

    Raises:
        InputError: an entry or an ablation is malformed or in the wrong folder, two entries are the same run, or a
            file cannot be written; the sentence names the file.
    """
    written: list[Path] = []
    for folder in sorted(path.parent for path in leaderboards.glob("*/*/entries") if path.is_dir()):
        entries = read_entries(folder)
        written += replace_files(folder, _tables(entries), ("leaderboard.csv", "leaderboard-*.csv", "leaderboard.md"))
        drop_pictures(folder, entries)
    for folder in sorted(path.parent for path in leaderboards.glob(f"*/*/{ABLATIONS}/*/entries") if path.is_dir()):
        written += ablation.rebuild(folder)
    return sorted(written)


def read_tables(folder: Path, stem: str = "leaderboard") -> list[tuple[str, list[dict[str, str]]]]:
    """Return (title, rows by column) of each table that :func:`rebuild` wrote into a folder as ``<stem>*.csv``."""
    tables: list[tuple[str, list[dict[str, str]]]] = []
    for path in sorted(folder.glob(f"{stem}*.csv"), key=lambda path: (len(path.name), path.name)):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        first = rows[0]
        title = f"{first['dataset']} at {first['threat']}, protocol {first['protocol']}"
        tables.append((title, [{str(key): str(value) for key, value in row.items()} for row in rows]))
    return tables


def _tables(entries: dict[Path, Entry]) -> dict[str, str]:
    """Return file name -> content for the entries of one data set and threat model."""
    files: dict[str, str] = {}
    sections: list[str] = []
    for name, group in by_protocol(entries, "leaderboard").items():
        rows = _rows(group)
        files[name] = pd.DataFrame(rows, columns=pd.Index(COLUMNS)).to_csv(index=False, lineterminator="\n")
        protocol = next(iter(group.values())).protocol
        sections.append(f"## {protocol.id}\n\n{card(group, name)}\n\n{markdown(COLUMNS, rows)}\n")
    if sections:
        first = next(iter(entries.values()))
        heading = f"# {first.dataset} at {first.threat}\n\nBuilt from `entries/`; do not edit.\n"
        meanings = {name: column.meaning for name, (_, column) in metric_columns().items()} | _MEANINGS | MEANINGS
        files["leaderboard.md"] = "\n".join([heading, *sections, legend(meanings)])
    return files


def _rows(group: dict[Path, Entry]) -> list[list[str]]:
    rows: list[list[str]] = []
    ranks: dict[int, int] = defaultdict(int)
    for runs in sorted(experiments(group), key=lambda runs: (_merit(runs), identity(runs[0]))):
        ranks[runs[0].data.n] += 1
        cells = _cells(runs) | {"rank": str(ranks[runs[0].data.n])}
        rows.append([cells[column] for column in COLUMNS])
    return rows


def _merit(runs: Sequence[Entry]) -> tuple[Any, ...]:
    """Return a sorting key: whole test splits first, larger parts before smaller, then the better numbers."""
    scores = [numbers(runs, column) for column in _RANKED_BY]
    return runs[0].partial, -runs[0].data.n, [-statistics.fmean(found) if found else 1.0 for found in scores]


def _cells(runs: Sequence[Entry]) -> dict[str, str]:
    first = runs[0]
    return (
        {column: measured(runs, column) for column in COLUMNS}
        | described(runs)
        | {
            "method": first.recipe,
            "overrides": "; ".join(first.overrides) or ABSENT,
            "reported_clean": _reported(first, "clean"),
            "reported_autoattack": _reported(first, "autoattack"),
        }
    )


def _reported(entry: Entry, metric: str) -> str:
    """Return the first number the recipe quotes for this data set."""
    quoted = [item for item in entry.reported if item.dataset == entry.dataset and item.metric == metric]
    return f"{quoted[0].value:.2f}" if quoted else ABSENT
