"""The tables: a pure function of leaderboards/<dataset>/<threat>/entries/*.json.

A row is one experiment, with the mean over its seeds. Rows share a table only when their protocols have the
same hash. The newest standard protocol gives leaderboard.csv, every other one leaderboard-<id>-<hash>.csv,
and leaderboard.md shows all of them.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from benchmark import metrics as registry
from benchmark.metrics import Column
from benchmark.results import Entry, Value, read_entry
from methods.data.catalogue import slug
from methods.errors import InputError
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import write_text

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
    *("energy_gap_mean", "energy_gap_std", "masking", "reported_clean", "reported_autoattack", "protocol"),
    *("architecture", "n", "partial", "config_digest", "overrides", "budget", "selection", "flags"),
)
NOT_RUN, FAILED = "-", "failed"
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
    "seeds": "training runs behind the row; with several, cells are mean ± standard deviation (n - 1)",
    "reported_*": "as published; the settings are those of the publication, not of this row",
    "partial": "images measured, where not the whole test split",
    "budget": "how the training is scaled down from its paper's",
    "selection": "checkpoint: best on the validation split, or last",
    "flags": "number of doubts that each metric recorded; the entry has them verbatim",
}


def rebuild(leaderboards: Path) -> list[Path]:
    """Write the tables of every data set and threat model, and delete tables that have no entries any more.

    Returns:
        The files written, sorted.

    Raises:
        InputError: an entry is malformed or in the wrong folder, two entries are the same run, or a file
            cannot be written; the sentence names the file.
    """
    written: list[Path] = []
    for folder in sorted(path.parent for path in leaderboards.glob("*/*/entries") if path.is_dir()):
        entries = {path: _entry(path) for path in sorted((folder / "entries").glob("*.json"))}
        files = _tables(entries)
        for name, text in sorted(files.items()):
            write_text(folder / name, text)
            written.append(folder / name)
        for stale in [*folder.glob("leaderboard.*"), *folder.glob("leaderboard-*.csv")]:
            if stale.name not in files and stale.suffix in (".csv", ".md"):
                stale.unlink()
    return written


def read_tables(folder: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """Return (title, rows by column) of each table that :func:`rebuild` wrote for a data set and threat model."""
    tables: list[tuple[str, list[dict[str, str]]]] = []
    for path in sorted(folder.glob("leaderboard*.csv"), key=lambda path: (len(path.name), path.name)):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        first = rows[0]
        title = f"{first['dataset']} at {first['threat']}, protocol {first['protocol']}"
        tables.append((title, [{str(key): str(value) for key, value in row.items()} for row in rows]))
    return tables


def _entry(path: Path) -> Entry:
    entry = read_entry(path)
    try:
        place = (slug(entry.dataset), ThreatModel.parse(entry.threat).slug)
    except InputError as error:
        raise InputError(f"The entry {path} has no threat model: {error}") from error
    if place != path.parts[-4:-2]:
        raise InputError(f"The entry {path} is of {entry.dataset} at {entry.threat}: it belongs in {'/'.join(place)}.")
    return entry


def _tables(entries: dict[Path, Entry]) -> dict[str, str]:
    """Return file name -> content for the entries of one data set and threat model."""
    by_protocol: dict[tuple[str, str], dict[Path, Entry]] = defaultdict(dict)
    for path, entry in entries.items():
        by_protocol[entry.protocol.id, entry.protocol.hash][path] = entry
    files: dict[str, str] = {}
    sections: list[str] = []
    for position, (identity, group) in enumerate(sorted(by_protocol.items(), key=_standing, reverse=True)):
        protocol = next(iter(group.values())).protocol
        main = position == 0 and protocol.role == "standard"
        rows = _rows(group)
        name = "leaderboard.csv" if main else f"leaderboard-{identity[0]}-{identity[1][:8]}.csv"
        files[name] = pd.DataFrame(rows, columns=pd.Index(COLUMNS)).to_csv(index=False, lineterminator="\n")
        sections.append(_section(rows, group, name))
    if sections:
        first = next(iter(entries.values()))
        heading = f"# {first.dataset} at {first.threat}\n\nBuilt from `entries/`; do not edit.\n"
        files["leaderboard.md"] = "\n".join([heading, *sections, _legend()])
    return files


def _standing(
    item: tuple[tuple[str, str], dict[Path, Entry]],
) -> tuple[bool, list[tuple[int, str]], int, str]:
    (identifier, digest), group = item
    standard = next(iter(group.values())).protocol.role == "standard"
    return standard, _natural(identifier), len(group), digest


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sorting key that puts v10 after v9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _rows(group: dict[Path, Entry]) -> list[list[str]]:
    experiments: dict[tuple[str, ...], dict[Path, Entry]] = defaultdict(dict)
    for path, entry in group.items():
        experiments[_experiment(entry)][path] = entry
    ranked = sorted(experiments.items(), key=lambda item: (_merit(list(item[1].values())), item[0]))
    rows: list[list[str]] = []
    ranks: dict[int, int] = defaultdict(int)
    for _, seeds in ranked:
        _refuse_doubles(seeds)
        runs = sorted(seeds.values(), key=lambda entry: (entry.seed is not None, entry.seed or 0))
        ranks[runs[0].data.n] += 1
        cells = _cells(runs) | {"rank": str(ranks[runs[0].data.n])}
        rows.append([cells[column] for column in COLUMNS])
    return rows


def _experiment(entry: Entry) -> tuple[str, ...]:
    """Return what the seeds of one row share."""
    external = entry.subject.weights_digest if entry.subject.kind == "external" else ""
    which = entry.subject.which or ""
    return entry.recipe, entry.config_digest or "", which, f"{entry.data.n}/{entry.data.of}", external


def _refuse_doubles(seeds: dict[Path, Entry]) -> None:
    first: dict[int | None, Path] = {}
    for path, entry in seeds.items():
        if entry.seed in first:
            raise InputError(f"The entries {first[entry.seed]} and {path} are the same run twice; remove one.")
        first[entry.seed] = path


def _merit(runs: Sequence[Entry]) -> tuple[Any, ...]:
    """Return a sorting key: whole test splits first, larger parts before smaller, then the better numbers."""
    scores = [_numbers(runs, column) for column in _RANKED_BY]
    return runs[0].partial, -runs[0].data.n, [-statistics.fmean(found) if found else 1.0 for found in scores]


def _cells(runs: Sequence[Entry]) -> dict[str, str]:
    first = runs[0]
    cells = {
        "method": first.recipe,
        "dataset": first.dataset,
        "threat": first.threat,
        "seeds": str(len(runs)) if first.seed is not None else NOT_RUN,
        "protocol": first.protocol.id,
        "architecture": first.subject.architecture,
        "n": str(first.data.n),
        "partial": f"{first.data.n} of {first.data.of}" if first.partial else NOT_RUN,
        "config_digest": first.config_digest[:8] if first.config_digest else NOT_RUN,
        "overrides": "; ".join(first.overrides) or NOT_RUN,
        "budget": str(first.training.get("budget") or NOT_RUN),
        "selection": first.subject.which or NOT_RUN,
        "flags": _flags(runs),
        "reported_clean": _reported(first, "clean"),
        "reported_autoattack": _reported(first, "autoattack"),
    }
    known = _metric_columns()
    measured = {column: _cell(runs, column) if column in known else NOT_RUN for column in COLUMNS}
    return measured | cells


@cache
def _metric_columns() -> dict[str, tuple[str, Column]]:
    """Return the columns that the metrics fill: name -> (metric, column)."""
    return {
        name: (metric, column) for metric in registry.names() for name, column in registry.get(metric).COLUMNS.items()
    }


def _values(runs: Iterable[Entry], column: str) -> list[Value]:
    """Return the column's value of each run that has it; FAILED where its metric failed."""
    metric, place = _metric_columns()[column]
    found: list[Value] = []
    for run in runs:
        measurement = run.measurements.get(metric)
        if measurement is not None:
            found.append(FAILED if measurement.status == "failed" else measurement.values.get(place.value))
    return found


def _numbers(runs: Iterable[Entry], column: str) -> list[float]:
    return [value for value in _values(runs, column) if isinstance(value, int | float)]


def _cell(runs: Sequence[Entry], column: str) -> str:
    values = _values(runs, column)
    numbers = [value for value in values if isinstance(value, int | float)]
    failed = values.count(FAILED)
    if not numbers:
        words = sorted({value for value in values if isinstance(value, str) and value != FAILED})
        return FAILED if failed else ", ".join(words) or NOT_RUN
    digits = _metric_columns()[column][1].digits
    text = f"{statistics.fmean(numbers):.{digits}f}"
    if len(numbers) > 1:
        text += f" ± {statistics.stdev(numbers):.{digits}f}"
    if len(numbers) < len(runs):
        text += f" ({len(numbers)} of {len(runs)}{f', {failed} failed' if failed else ''})"
    return text


def _reported(entry: Entry, metric: str) -> str:
    """Return the first number the recipe quotes for this data set."""
    quoted = [item for item in entry.reported if item.dataset == entry.dataset and item.metric == metric]
    return f"{quoted[0].value:.2f}" if quoted else NOT_RUN


def _flags(runs: Sequence[Entry]) -> str:
    counts = Counter({"subject": sum(len(run.subject.flags) for run in runs)})
    for run in runs:
        counts.update({metric: len(found.flags) for metric, found in sorted(run.measurements.items())})
    return ", ".join(f"{metric}: {count}" for metric, count in counts.items() if count) or NOT_RUN


def _section(rows: list[list[str]], group: dict[Path, Entry], file: str) -> str:
    protocol = next(iter(group.values())).protocol
    images = " or ".join(str(n) for n in sorted({entry.data.n for entry in group.values()}, reverse=True))
    card = f"{protocol.role} protocol, hash `{protocol.hash}`, n = {images} images, as [{file}]({file})"
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    table = tabulate(escaped, headers=COLUMNS, tablefmt="github", disable_numparse=True)
    return f"## {protocol.id}\n\n{card}\n\n{table}\n"


def _legend() -> str:
    meanings = {name: column.meaning for name, (_, column) in _metric_columns().items()} | _MEANINGS
    lines = [f"- `{name}`: {meaning}" for name, meaning in meanings.items()]
    return "\n".join(["## Columns", "", f'"{NOT_RUN}": not measured or not applicable.', "", *lines]) + "\n"
