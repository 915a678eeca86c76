"""The tables: a pure function of leaderboards/<dataset>/<threat>/entries/*.json.

A row is one experiment, with the mean over its seeds. Rows share a table only when their protocols have the
same hash. The newest standard protocol gives leaderboard.csv, every other one leaderboard-<id>-<hash>.csv;
beside each lies the same as .tex, with the columns that a paper prints, and leaderboard.md shows all of them.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from benchmark.leaderboard import ablation
from benchmark.leaderboard.aggregate import (
    ABSENT,
    MEANINGS,
    by_protocol,
    described,
    difference,
    experiments,
    identity,
    interval,
    measured,
    metric_columns,
    numbers,
    span,
    verdicts,
)
from benchmark.leaderboard.render import Table, card, legend, replace_files
from benchmark.results import layout
from benchmark.results.entry import Entry
from benchmark.results.reported import FLAGS, quoted
from benchmark.results.significance import places
from methods.errors import InputError

_SETTINGS = (
    *("architecture", "n", "partial", "restarts", "collapsed_at"),
    *("config_digest", "overrides", "budget", "selection", "flags"),
)
COLUMNS = (
    *("rank", "method", "dataset", "threat", "seeds", "clean", "pgd20", "autoattack", "fid", "inception_score"),
    *("generation_agreement", "generation_agreement_start", "energy_gap_mean", "energy_gap_std", "masking"),
    *("reported_clean", "reported_pgd20", "reported_autoattack"),
    *("difference_clean", "difference_pgd20", "difference_autoattack", "protocol"),
    *_SETTINGS,
    *("rank_interval", "tie", "clean_interval", "pgd20_interval", "autoattack_interval"),
    *("kid", "fid_ref", "energy_overlap", "eot_pgd", "transfer"),
)
"""Columns of every table; the further ones that an entry has measured follow."""
SHOWN = (
    *("rank", "tie", "method", "seeds", "clean", "pgd20", "autoattack", "fid_ref", "masking"),
    *("reported_autoattack", "partial", "overrides"),
)
"""Columns that fit a terminal."""
_REPLACED = ("leaderboard.md", *(f"leaderboard{rest}.{kind}" for rest in ("", "-*") for kind in ("csv", "tex")))
_RANKED_BY = ("autoattack", "pgd20", "clean")
_MAIN = (
    *("rank", "rank_interval", "tie", "method", "seeds", "clean", "pgd20", "autoattack"),
    *("fid", "fid_ref", "energy_gap_mean", "masking", "partial"),
)
_GENERATION = (
    *("fid", "inception_score", "kid", "fid_ref", "generation_agreement", "generation_agreement_start"),
    *("energy_gap_mean", "energy_gap_std", "energy_overlap"),
)
QUOTED = ("clean", "pgd20", "autoattack")
"""Columns with a quoted number beside them."""
_REPORTED = tuple(f"{kind}_{column}" for column in QUOTED for kind in ("reported", "difference"))
_BESIDE = "Reported beside reproduced"
_PAPER = {
    "method": "Method",
    "clean": "Clean (%)",
    "pgd20": "PGD-20 (%)",
    "autoattack": "AutoAttack (%)",
    "fid": "FID",
    "fid_ref": "Fréchet, reference network",
    "masking": "Masking",
    "tie": "Ties",
    "partial": "Images",
}
_ALWAYS = ("rank", "rank_interval", "tie", "method", "seeds", "clean", "pgd20", "autoattack")
"""Columns of leaderboard.md and .tex even where no row has anything in them."""

_MEANINGS = {
    "rank": "among rows measured on the same number of images, by autoattack, then pgd20, then clean",
    "rank_interval": "ranks that the outcomes per image leave possible, with 95 % confidence for all rows at once: "
    "behind those that are significantly better, before those that are significantly worse",
    "tie": "rows differ significantly unless they share a letter: paired tests on the column that ranks them, over "
    "images, and over seeds where there are several (one seed stands for its checkpoint alone), corrected for the "
    "number of pairs; rows ranked by another column or on another number of images have letters of their own",
    "*_interval": "95 % interval of the accuracy: over images (Wilson) for one seed, which says nothing of how "
    "training varies; over images and seeds (Student) for several",
    "reported_*": "as published, for this data set or the one that it is an edition of; the settings are those of the "
    "publication, not of this row",
    "difference_*": "reproduced (mean over seeds) minus reported, in points, and in brackets what sets the two "
    "measurements apart",
}


def rebuild(leaderboards: Path) -> list[Path]:
    """Write the tables of every data set, threat model and ablation, and delete what belongs to no entry any more.

    Returns:
        The files written, sorted.

    Raises:
        InputError: an entry or an ablation is malformed or in the wrong folder, two entries are the same run, or a
            file cannot be written; the sentence names the file.
    """
    written: list[Path] = []
    measured: list[Entry] = []
    for folder in layout.table_folders(leaderboards):
        entries = layout.read_entries(folder)
        written += replace_files(folder, _tables(entries), _REPLACED)
        layout.drop_pictures(folder, entries)
        layout.drop_bundles(folder, entries)
        measured += entries.values()
    layout.drop_weights(leaderboards, measured)
    for folder in layout.ablation_folders(leaderboards):
        written += ablation.rebuild(folder)
    return sorted(written)


def read_tables(folder: Path, stem: str = "leaderboard") -> list[tuple[str, list[dict[str, str]]]]:
    """Return (title, rows by column) of each table that :func:`rebuild` wrote into a folder as ``<stem>*.csv``."""
    paths = sorted(folder.glob(f"{stem}*.csv"), key=lambda path: (len(path.name), path.name))
    title = "{dataset} at {threat}, protocol {protocol}"
    return [(title.format_map(rows[0]), rows) for rows in map(read_table, paths)]


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table's file, by column."""
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"The table {path} cannot be read ({error}): build it by python -m benchmark leaderboard."
        ) from error


def _tables(entries: dict[Path, Entry]) -> dict[str, str]:
    """Return file name -> content for the entries of one data set and threat model."""
    files: dict[str, str] = {}
    sections: list[str] = []
    shown: set[str] = set()
    for name, group in by_protocol(entries, "leaderboard").items():
        columns = [*COLUMNS, *_further(group)]
        table = Table.of([_cells(runs, columns) | standing for runs, standing in standings(group)], columns)
        files[name] = table.csv()
        files[f"{Path(name).stem}.tex"] = _paper(group, table)
        sections.append(_section(group, name, table))
        shown |= set(columns)
    if sections:
        first = next(iter(entries.values()))
        heading = f"# {first.dataset} at {first.threat}\n\nBuilt from `entries/`; do not edit.\n"
        meanings = {name: column.meaning for name, (_, column) in metric_columns().items() if name in shown}
        files["leaderboard.md"] = "\n".join([heading, *sections, legend(meanings | _MEANINGS | MEANINGS)])
    return files


def _further(group: dict[Path, Entry]) -> list[str]:
    """Return the columns, not among those of every table, that some entry has measured."""
    further = [column for column in metric_columns() if column not in COLUMNS]
    return [column for column in further if any(measured([entry], column) != ABSENT for entry in group.values())]


def _section(group: dict[Path, Entry], file: str, table: Table) -> str:
    """Return a protocol's part of leaderboard.md: the table to look at first, and the rest by subject."""
    named = {*_MAIN, *_GENERATION, *_REPORTED, *_SETTINGS, "dataset", "threat", "protocol"}
    parts = {
        "": _MAIN,
        "Intervals and further attacks": [column for column in table.columns if column not in named],
        "Generation and energy": _GENERATION,
        _BESIDE: _REPORTED,
        "Settings and records": _SETTINGS,
    }
    text = f"## {next(iter(group.values())).protocol.id}\n\n{card(group, file)}\n"
    for title, columns in parts.items():
        kept = _filled(table, columns)
        if title and kept:
            text += f"\n### {title}\n"
            kept = ["rank", "method", *kept]
        if kept:
            text += f"\n{table.only(kept).markdown()}\n"
        if kept and title == _BESIDE:
            text += f"\n{_apart(table)}\n\n{_origins(group)}\n"
    return text


def _apart(table: Table) -> str:
    """Return the sentence about the differences of a table, and what their flags mean."""
    cells = [str(cell) for column in QUOTED for cell in table.column(f"difference_{column}")]
    found = {flag for cell in cells for flag in cell.partition(" (")[2].removesuffix(")").split(", ")}
    flags = [f"*{flag}*: {meaning}" for flag, meaning in FLAGS.items() if flag in found]
    return (
        "No difference is shown without what sets the two measurements apart; one without a word in brackets is "
        f"between two that are the same as far as the records go. {'; '.join(flags)}{'.' if flags else ''}"
    ).rstrip()


def _origins(group: dict[Path, Entry]) -> str:
    """Return where the quoted numbers of a table come from, a line each."""
    rows = dict.fromkeys((entry.recipe, entry.dataset) for entry in group.values())
    found = [number for row in rows for column in QUOTED if (number := quoted(*row, column))]
    return "\n".join(
        f"- {number.recipe}, {number.metric} {number.value:.2f}: {number.origin} ({number.terms}). "
        f"{number.caveat}".rstrip()
        for number in found
    )


def _filled(table: Table, columns: Iterable[str]) -> list[str]:
    return [column for column in columns if column in _ALWAYS or set(table.column(column)) - {ABSENT}]


def _paper(group: dict[Path, Entry], table: Table) -> str:
    """Return the table as a paper prints it."""
    first = next(iter(group.values()))
    kept = _filled(table, _PAPER)
    images, seeds = (", ".join(dict.fromkeys(map(str, table.column(name)))) for name in ("n", "seeds"))
    about = [
        f"{first.dataset} at {first.threat}, {first.protocol.role} protocol {first.protocol.id}, "
        f"hash {first.protocol.hash}, n = {images} test images, training seeds: {seeds}.",
        "Mean ± standard deviation (n - 1) over seeds. Methods that share a letter do not differ significantly.",
    ]
    comment = "".join(f"% {line}\n" for line in about)
    return f"{comment}{table.only(kept, _PAPER).latex()}\n"


def ranked(group: dict[Path, Entry]) -> list[list[Entry]]:
    """Return the entries of each row of a table, best first: whole test splits, larger parts, then better numbers."""

    def merit(runs: Sequence[Entry]) -> tuple[Any, ...]:
        scores = [numbers(runs, column) for column in _RANKED_BY]
        means = [-statistics.fmean(found) if found else 1.0 for found in scores]
        return runs[0].partial, -runs[0].data.n, means, identity(runs[0])

    return sorted(experiments(group), key=merit)


def standings(group: dict[Path, Entry]) -> list[tuple[list[Entry], dict[str, str]]]:
    """Return the rows of a table, best first: the entries of each, and its ``rank``, ``rank_interval`` and ``tie``."""
    table = ranked(group)
    ranks: dict[int, int] = defaultdict(int)
    placed: list[dict[str, str]] = []
    families: dict[tuple[object, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
    for runs in table:
        ranks[runs[0].data.n] += 1
        column = next((column for column in _RANKED_BY if numbers(runs, column)), "")
        if (found := verdicts(runs, column)) is not None:
            images = frozenset(run.data.digests.get("test") for run in runs)
            families[column, found.shape[1], images].append((len(placed), found))
        placed.append({"rank": str(ranks[runs[0].data.n]), "rank_interval": ABSENT, "tie": ABSENT})
    letters = 0
    for family in families.values():
        # Rows without outcomes per image, and those that another column ranks, keep their ranks.
        own = [placed[row]["rank"] for row, _ in family]
        tied = places([found for _, found in family])
        for (row, _), place in zip(family, tied, strict=True):
            placed[row]["rank_interval"] = span(own[place.low - 1], own[place.high - 1])
            placed[row]["tie"] = "".join(_letter(letters + group) for group in place.ties)
        letters += 1 + max(group for place in tied for group in place.ties)
    return list(zip(table, placed, strict=True))


def _letter(number: int) -> str:
    """Return a, b, ..., z, a1, b1, ..."""
    return f"{ascii_lowercase[number % 26]}{number // 26 or ''}"


def _cells(runs: Sequence[Entry], columns: Sequence[str]) -> dict[str, str]:
    first = runs[0]
    reported = {column: quoted(first.recipe, first.dataset, column) for column in QUOTED}
    return (
        {column: measured(runs, column) for column in columns}
        | {f"{column}_interval": interval(runs, column) for column in QUOTED}
        | described(runs)
        | {"method": first.recipe, "overrides": "; ".join(first.overrides) or ABSENT}
        | {f"reported_{column}": f"{number.value:.2f}" if number else ABSENT for column, number in reported.items()}
        | {f"difference_{column}": difference(runs, number) for column, number in reported.items()}
    )
