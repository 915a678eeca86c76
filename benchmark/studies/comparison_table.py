"""Reported numbers of a paper beside reproduced ones: one target as Markdown, CSV, LaTeX and a picture.

A pure function of its file, of the entries, and of configs/reported.csv. A reproduced number that is not the same
measurement as the reported one says so, by the flags of :mod:`benchmark.results.reported` or in a sentence below the
table.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.leaderboard import paper_figures, sample_grids
from benchmark.leaderboard.aggregate import ABSENT, flagged
from benchmark.leaderboard.figures.rows import ComparedColumn, comparison
from benchmark.leaderboard.render import Table, latex_text, legend
from benchmark.results.entry import Entry
from benchmark.results.layout import ATTACKS, entry_path, picture_path
from benchmark.results.reported import FLAGS
from benchmark.studies.row_results import RowResult
from benchmark.studies.targets import Scale, Target, TargetColumn
from methods.files import write_text

_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


@dataclass(frozen=True)
class About:
    """Settings that all targets of one command share."""

    scale: Scale
    seeds: Sequence[int]
    overrides: Sequence[str]
    leaderboards: Path


def write(stem: Path, target: Target, rows: Sequence[RowResult], about: About) -> list[Path]:
    """Write ``stem`` with .md, .csv and .tex, and a picture where there is something to draw; return the files.

    Raises:
        InputError: a file cannot be written.
    """
    drawn = _DRAW[target.kind](stem, target, rows, about)
    texts = {
        stem.with_name(f"{stem.name}.md"): _document(stem, target, rows, about, drawn),
        stem.with_name(f"{stem.name}.csv"): _histograms(rows) if target.kind == "energies" else _csv(target, rows),
        stem.with_name(f"{stem.name}.tex"): _latex(stem, target, rows, about, drawn),
    }
    for path, text in texts.items():
        write_text(path, text)
    return [*texts, *drawn]


def _csv(target: Target, rows: Sequence[RowResult]) -> str:
    records = []
    for shown in rows:
        first = shown.entries[0] if shown.entries else None
        record: dict[str, str | float | int | None] = {
            "row": shown.row.label,
            "recipe": first.recipe if first else shown.row.recipe,
            "paper_dataset": shown.paper_dataset,
            "dataset": shown.dataset if first else None,
            "status": shown.status or "reproduced",
            "reason": shown.row.missing or None,
        }
        for column in target.columns:
            if column.reported:
                number = shown.reported.get(column.name)
                record[f"{column.name}_reported"] = number.value if number else None
            if column.record:
                record[column.name] = shown.text(column) if shown.runs.get(column.name) else None
                continue
            found = shown.numbers(column)
            record[column.name] = round(statistics.fmean(found), 6) if found else None
            if len(found) > 1:
                record[f"{column.name}_std"] = round(statistics.stdev(found), 6)
            if column.reported:
                record[f"{column.name}_flags"] = " ".join(shown.flags(column)) or None
        record |= {
            "seeds": " ".join(dict.fromkeys(str(entry.seed) for entry in shown.entries)) or None,
            "n": str(first.data.n) if first else None,
            "threats": " ".join(dict.fromkeys(entry.threat for entry in shown.entries)) or None,
            "protocols": " ".join(dict.fromkeys(entry.protocol.id for entry in shown.entries)) or None,
            "config_digest": first.config_digest if first else None,
        }
        records.append(record)
    return Table.of(records).csv()


def _histograms(rows: Sequence[RowResult]) -> str:
    """Return what the figure draws: of each method and kind of image the share in percent, by bin and seed."""
    records = [
        (shown.row.label, entry.seed, kind, low, high, share)
        for shown in rows
        for entry in shown.entries
        for series in paper_figures.landscapes([entry])
        for kind in ("clean", "adversarial", "generated")
        for low, high, share in zip(series["edges"], series["edges"][1:], series[kind], strict=False)
    ]
    return Table(["row", "seed", "images", "energy_from", "energy_to", "share"], records).csv()


def _headings(target: Target, about: About) -> list[tuple[str, TargetColumn, str]]:
    """Return what stands over each column of numbers: title, column, and which side of it."""
    found: list[tuple[str, TargetColumn, str]] = []
    for column in target.columns:
        if column.reported and not any(column.reported == other.reported for _, other, _ in found):
            found.append((f"{column.quote or column.heading}, reported", column, "reported"))
        found.append((column.heading, column, "reproduced"))
        if column.reported and about.scale.differences and not column.record:
            found.append((f"{column.heading}, difference", column, "difference"))
    return found


def _cell(shown: RowResult, column: TargetColumn, side: str) -> str:
    if side == "reported":
        return shown.quoted(column)
    if side == "reproduced":
        return shown.text(column)
    difference = shown.difference(column)
    return ABSENT if difference is None else flagged(difference, shown.flags(column), column.places)


def _document(stem: Path, target: Target, rows: Sequence[RowResult], about: About, drawn: Sequence[Path]) -> str:
    headings = _headings(target, about)
    parts = [
        f"# {target.source}: {target.title}\n",
        f"{target.shows} Reproduced at scale `{about.scale.title}`. Rows from "
        f"`configs/paper/{stem.name}.yaml`, numbers from entries; built, do not edit.\n",
    ]
    if about.overrides:
        parts.append(f"Trained with changed settings: {'; '.join(f'`{text}`' for text in about.overrides)}.\n")
    parts += [f"![{target.title}]({path.name})\n" for path in drawn if path.suffix == ".png"]
    for dataset in dict.fromkeys(shown.paper_dataset for shown in rows):
        own = [shown for shown in rows if shown.paper_dataset == dataset]
        place = about.scale.datasets.get(dataset)
        beside = f", reproduced on {place}" if place not in (None, dataset) else ""
        parts.append(f"## {_name(dataset)}{beside}\n")
        table = []
        for shown in own:
            cells = [_cell(shown, column, side) for _, column, side in headings]
            seeds = str(len({entry.seed for entry in shown.entries}) or ABSENT)
            table.append([shown.row.label, *cells, seeds, shown.status or _measured_on(shown.entries)])
        columns = ["row", *(title for title, *_ in headings), "seeds", "measured"]
        parts.append(f"{Table(columns, table).markdown()}\n")
    parts.append("## What could not be compared, and why\n")
    parts.append("\n".join(f"- {sentence}" for sentence in _sentences(target, rows, about)) + "\n")
    if entries := sorted({path for shown in rows for path in _places(stem, target, shown, about)}):
        links = {path.stem: Path(os.path.relpath(path, stem.parent)).as_posix() for path in entries}
        listed = "\n".join(f"- [{name}]({link})" for name, link in links.items())
        parts.append(f"## Entries\n\n{listed}\n")
    meanings = {column.heading: column.explanation for column in target.columns if column.explanation}
    return "\n".join([*parts, legend(meanings)])


def _measured_on(entries: Sequence[Entry]) -> str:
    images = " or ".join(dict.fromkeys(f"{entry.data.n} images" for entry in entries))
    threats = ", ".join(dict.fromkeys(entry.threat for entry in entries))
    return f"{images} at {threats}"


def _places(stem: Path, target: Target, shown: RowResult, about: About) -> list[Path]:
    """Return the files of a row's entries."""
    root = stem.parent / ATTACKS if target.apart else about.leaderboards
    return [entry_path(root, entry) for entry in shown.entries]


def _sentences(target: Target, rows: Sequence[RowResult], about: About) -> list[str]:
    sentences = [*about.scale.comment]
    if target.protocol is not None:
        sentences.append(f"These attacks are those of the protocol {target.protocol}, which is no standard one.")
    reproduced = [shown for shown in rows if shown.entries]
    for flag, meaning in FLAGS.items():
        marked = [shown for shown in reproduced if any(flag in shown.flags(column) for column in target.columns)]
        if marked:
            whose = "every row" if len(marked) == len(reproduced) else _listed(marked, reproduced)
            sentences.append(f"`{flag}`: {meaning} ({whose}).")
    by_reason: dict[str, list[RowResult]] = {}
    for shown in rows:
        if shown.status:
            names = _name(shown.paper_dataset)
            reason = {
                "reported only": f"reported only: {shown.row.missing}",
                "not at this scale": f"reported only at this scale: no data set stands for {names}",
                "not run": "not run at this scale with these settings, or the training left no weights",
            }[shown.status]
            by_reason.setdefault(reason, []).append(shown)
    sentences += [f"{_listed(those, rows)}: {reason}." for reason, those in by_reason.items()]
    for column in target.columns:
        if column.reported and reproduced and not any(shown.text(column) != ABSENT for shown in reproduced):
            why = about.scale.unmeasured.get(column.name)
            sentences.append(f"{column.heading}: not measured at this scale{f': {why}' if why else ''}.")
    for shown in reproduced:
        for entry in shown.entries:
            sentences += [f"{shown.row.label}, seed {entry.seed}: {flag}." for flag in entry.subject.flags]
    caveats: dict[str, list[RowResult]] = {}
    for shown in rows:
        for number in shown.reported.values():
            if number.caveat and shown not in caveats.setdefault(number.caveat, []):
                caveats[number.caveat].append(shown)
    sentences += [f"Reported, {_listed(those, rows)}: {caveat}" for caveat, those in caveats.items()]
    return list(dict.fromkeys([*sentences, *target.notes]))


def _listed(some: Sequence[RowResult], rows: Sequence[RowResult]) -> str:
    """Return the names of some of the rows, each once where all of its data sets are meant."""
    names = dict(zip(map(id, rows), _labels(rows), strict=True))
    for shown in some:
        if all(other in some for other in rows if other.row.label == shown.row.label):
            names[id(shown)] = shown.row.label
    return "; ".join(dict.fromkeys(names[id(shown)] for shown in some))


def _labels(rows: Sequence[RowResult]) -> list[str]:
    """Return what tells rows apart, with the paper's data set where there are several."""
    if len({shown.paper_dataset for shown in rows}) == 1:
        return [shown.row.label for shown in rows]
    return [f"{shown.row.label} ({_name(shown.paper_dataset)})" for shown in rows]


def _name(dataset: str) -> str:
    return _NAMES.get(dataset, dataset)


def _latex(stem: Path, target: Target, rows: Sequence[RowResult], about: About, drawn: Sequence[Path]) -> str:
    lines = [f"% {target.source}: {target.title}. Scale {about.scale.title}, seeds {', '.join(map(str, about.seeds))}."]
    lines += [f"% {' '.join(sentence.split())}" for sentence in _sentences(target, rows, about)]
    if target.kind != "table" and drawn:
        lines += [
            r"\begin{figure}",
            r"\centering",
            rf"\includegraphics[width=\linewidth]{{{stem.name}.png}}",
            rf"\caption{{{latex_text(f'{target.title} ({about.scale.title}).')}}}",
            r"\end{figure}",
        ]
    headings = _headings(target, about)
    several = len({shown.paper_dataset for shown in rows}) > 1
    table = []
    for shown in rows:
        cells = [_cell(shown, column, side) for _, column, side in headings]
        table.append([shown.row.label, *([_name(shown.paper_dataset)] if several else []), *cells, shown.status])
    columns = ["Method", *(["Data of the paper"] if several else []), *(title for title, *_ in headings), ""]
    return "\n".join([*lines, Table(columns, table).latex()]) + "\n"


def _draw_table(stem: Path, target: Target, rows: Sequence[RowResult], about: About) -> list[Path]:
    kept = [shown for shown in rows if shown.dataset is not None]
    columns = []
    for column in target.columns:
        reported = [shown.reported.get(column.name) for shown in kept]
        reproduced = [shown.numbers(column) for shown in kept]
        percent = column.record is None and column.source[1].endswith("accuracy")
        if any(reproduced) or any(reported):
            values = [number.value if number else None for number in reported]
            title = f"{column.heading} (%)" if percent else column.heading
            columns.append(ComparedColumn(title, values, reproduced, percent))
    path = stem.with_name(f"{stem.name}.png")
    comparison(path, _title(target, about), _labels(kept), columns)
    return [path]


def _title(target: Target, about: About) -> str:
    if target.quotes is None:
        return f"{target.source}\n{target.title}, on {', '.join(about.scale.datasets.values())}"
    places = [
        f"reported on {_name(name)}, reproduced on {place}" if name != place else f"on {place}"
        for name, place in about.scale.datasets.items()
    ]
    return f"{target.source}\n{target.title}: {'; '.join(places)}"


def _draw_energies(stem: Path, target: Target, rows: Sequence[RowResult], about: About) -> list[Path]:
    methods = [(shown.row.label, shown.entries) for shown in rows if shown.entries]
    return paper_figures.energies(stem, _title(target, about), methods)


def _draw_samples(stem: Path, target: Target, rows: Sequence[RowResult], about: About) -> list[Path]:
    pictures = {
        shown.row.label: picture_path(_places(stem, target, shown, about)[0]) for shown in rows if shown.entries
    }
    path, there = (
        stem.with_name(f"{stem.name}.png"),
        {label: file for label, file in pictures.items() if file.is_file()},
    )
    if there:
        sample_grids.stack(path, there)
    return [path] if there else []


_DRAW: dict[str, Callable[[Path, Target, Sequence[RowResult], About], list[Path]]] = {
    "table": _draw_table,
    "energies": _draw_energies,
    "samples": _draw_samples,
}
