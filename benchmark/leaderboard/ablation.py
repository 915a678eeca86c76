"""Ablations: one recipe trained with one thing changed at a time, and a table of what came of it.

An ablation is a file in configs/ablations/. Its table in leaderboards/<dataset>/<threat>/ablations/<name>/ is a pure
function of that file and of the entries there: table.csv for the newest standard protocol, table-<id>-<hash>.csv
for every other one, table.md for all of them, and figure.png for the first.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmark.leaderboard.aggregate import (
    ABSENT,
    MEANINGS,
    by_protocol,
    described,
    experiments,
    identity,
    mean,
    measured,
    metric_columns,
    numbers,
)
from benchmark.leaderboard.figures.rows import DotPlotRow, dot_plot
from benchmark.leaderboard.render import Table, card, legend, replace_files
from benchmark.results import layout
from benchmark.results.entry import Entry
from benchmark.results.reported import Number
from benchmark.results.reported import numbers as published
from benchmark.specs import recipes as files
from benchmark.specs.schema import Strict, checked
from methods.errors import InputError, nearest

NOT_RUN = "not run"
LOGGED_GAP, LOGGED_GAP_DIGITS = "energy_gap_logged", 3
SHOWN = (
    *("row", "seeds", "clean", "pgd20", "autoattack", "energy_gap_mean", "logged_gap_first", "logged_gap_last"),
    *("restarts", "collapsed_at", "partial"),
)
"""The columns that fit a terminal."""

_REPLACED = ("table.csv", "table-*.csv", "table.md", "table.tex", "table-*.tex")
_LABEL = 44
"""Characters in a line of a label of the figure."""
_MEASURED = ("clean", "pgd20", "autoattack", "energy_gap_mean")
_EPOCHS = {"logged_gap_first": "first_epoch", "logged_gap_last": "last_epoch"}
_MEANINGS = {
    "row": "what the ablation changes, as its file names it",
    "logged_gap_first": "mean over the training's first epoch of the logged E(x_adv) - E(x), marginal energies of the "
    "labelled images under the training's own adversary; note the sign, opposite to energy_gap_mean",
    "logged_gap_last": "the same over its last epoch",
    "overrides": "what was changed besides the row's own settings",
}


class AblationRow(Strict):
    """One variant of the recipe."""

    name: str = Field(min_length=1)
    set: dict[str, Any]
    """Settings laid over the recipe and the data set's overlay, as ``--set`` does."""


class Ablation(Strict):
    """A file in configs/ablations/."""

    title: str
    source: str = ""
    """Paper, repository or issue that raises the question."""
    reported: str = ""
    """Source and table of the quoted numbers, as configs/reported.csv has them; its rows have the names of these."""
    note: str = ""
    """Caveat on comparing with the reported numbers."""
    recipe: str
    metrics: list[str] = Field(default=["clean", "pgd20", "autoattack", "energy"], min_length=1)
    """Names of the metrics that are measured unless ``--metrics`` names others."""
    rows: list[AblationRow] = Field(min_length=1)


def load(name: str) -> Ablation:
    """Load an ablation by its name.

    Raises:
        InputError: there is no such ablation, or its file is malformed; the sentence says what is wrong.
    """
    known = files.ablations()
    if name not in known:
        raise InputError(f'There is no ablation "{name}" (there are {", ".join(known)}).{nearest(name, known)}')
    path = known[name]
    ablation = checked(Ablation, files.read_yaml(path), f"The ablation {path}")
    if ablation.reported and not _quoted(ablation):
        known = {number.origin for number in published() if number.recipe == ablation.recipe}
        hint = nearest(ablation.reported, known)
        raise InputError(f'The ablation {path}: no row of "{ablation.reported}" is quoted for it.{hint}')
    names = [row.name for row in ablation.rows]
    for row in ablation.rows:
        if names.count(row.name) > 1:
            raise InputError(f'The ablation {path} has two rows called "{row.name}".')
        for key, option in files.OPTIONS.items():
            if key in row.set:
                raise InputError(f'The ablation {path}, row "{row.name}": "{key}" is no setting, {option} gives it.')
    return ablation


def varied(ablation: Ablation, changes: Mapping[str, Any]) -> list[str]:
    """Return the keys among some changes that a row of the ablation sets itself."""
    # With a dot at its end, a key is the beginning of those below it, and of no other.
    own = {f"{text.partition('=')[0]}." for row in ablation.rows for text in files.flat(row.set)}
    keys = [f"{text.partition('=')[0]}." for text in files.flat(changes)]
    return sorted(key[:-1] for key in keys if any(key.startswith(other) or other.startswith(key) for other in own))


def rebuild(folder: Path) -> list[Path]:
    """Write the tables and the figure of leaderboards/<dataset>/<threat>/ablations/<name>/; return the files.

    The figure is drawn where its table changed or it is missing, because its bytes depend on matplotlib's version.

    Raises:
        InputError: the ablation, or an entry, is missing or malformed; or a file cannot be written.
    """
    entries = layout.read_entries(folder)
    layout.drop_pictures(folder, entries)
    figure = folder / "figure.png"
    if not entries:
        figure.unlink(missing_ok=True)
        return replace_files(folder, {}, _REPLACED)
    ablation = load(folder.name)
    tables = by_protocol(entries, "table")
    contents = {name: _table(ablation, group) for name, group in tables.items()}
    texts = {name: content.csv() for name, content in contents.items()}
    first = next(iter(tables))
    before = (folder / first).read_text(encoding="utf-8") if (folder / first).is_file() else None
    drawn = figure.is_file() and before == texts[first]
    for name, content in contents.items():
        texts[f"{Path(name).stem}.tex"] = content.latex() + "\n"
    texts["table.md"] = _document(ablation, folder.name, entries, tables, contents)
    written = replace_files(folder, texts, _REPLACED)
    if not drawn:
        dot_plot(figure, ablation.title, _lines(ablation, tables[first]))
        written.append(figure)
    return written


def _table(ablation: Ablation, group: dict[Path, Entry]) -> Table:
    columns = _columns(ablation, group)
    first = next(iter(group.values()))
    rows: list[dict[str, str]] = []
    for row in ablation.rows:
        same = {"row": row.name, "dataset": first.dataset, "threat": first.threat, "protocol": first.protocol.id}
        same |= _reported(ablation, row)
        variants = _variants(row, group)
        for runs in variants:
            cells = {column: measured(runs, column) for column in columns} | described(runs)
            gaps = {column: _logged_gaps(runs, epoch) for column, epoch in _EPOCHS.items()}
            cells |= {column: mean(found, LOGGED_GAP_DIGITS) if found else ABSENT for column, found in gaps.items()}
            rows.append(cells | same | {"overrides": "; ".join(_others(row, runs[0])) or ABSENT})
        if not variants:
            rows.append(dict.fromkeys(columns, ABSENT) | {"seeds": NOT_RUN} | same)
    return Table.of(rows, columns)


def _columns(ablation: Ablation, group: dict[Path, Entry]) -> list[str]:
    found = {metric for entry in group.values() for metric in entry.measurements}
    left_out = (*_MEASURED, "energy_gap_std")
    quoted = dict.fromkeys(f"reported_{number.metric}" for number in _quoted(ablation))
    extra = [name for name, (metric, _) in metric_columns().items() if metric in found and name not in left_out]
    return [
        *("row", "dataset", "threat", "seeds"),
        *_MEASURED,
        *(name for name in extra if not name.startswith("cascade_")),
        *_EPOCHS,
        *("restarts", "collapsed_at"),
        *([*quoted, "reported_source"] if quoted else []),
        *("protocol", "n", "partial", "architecture", "config_digest", "overrides", "budget", "selection", "flags"),
    ]


def _variants(row: AblationRow, group: dict[Path, Entry]) -> list[list[Entry]]:
    """Return what was run of a row: mostly one list of seeds; more where ``--set`` or ``--limit`` differed."""
    own = {path: entry for path, entry in group.items() if _fits(row, entry)}
    return sorted(experiments(own), key=lambda runs: (runs[0].partial, -runs[0].data.n, identity(runs[0])))


def _fits(row: AblationRow, entry: Entry) -> bool:
    """Tell whether an entry is of a row as the file has it now."""
    named = entry.ablation is not None and entry.ablation.row == row.name
    return named and set(files.flat(row.set)) <= set(entry.overrides)


def _others(row: AblationRow, entry: Entry) -> list[str]:
    return [text for text in entry.overrides if text not in files.flat(row.set)]


def _logged_gaps(runs: Sequence[Entry], epoch: str) -> list[float]:
    means = [(run.training.get(epoch) or {}).get(LOGGED_GAP) for run in runs]
    return [value for value in means if value is not None]


def _lines(ablation: Ablation, group: dict[Path, Entry]) -> list[DotPlotRow]:
    lines: list[DotPlotRow] = []
    for row in ablation.rows:
        variants = _variants(row, group)
        for runs in variants:
            label = row.name
            if len(variants) > 1:
                marks = [f"{runs[0].data.n} images", *([runs[0].subject.which] if runs[0].subject.which else [])]
                label += "\n" + textwrap.fill(f"({'; '.join([*marks, *_others(row, runs[0])])})", _LABEL)
            accuracies = {column: numbers(runs, column) for column in ("clean", "pgd20", "autoattack")}
            gaps = {epoch.replace("_", " "): _logged_gaps(runs, epoch) for epoch in _EPOCHS.values()}
            lines.append(DotPlotRow(label, accuracies, gaps))
        if not variants:
            lines.append(DotPlotRow(f"{row.name}\n({NOT_RUN})", {}, {}))
    return lines


def _quoted(ablation: Ablation) -> list[Number]:
    """Return the quoted numbers of the ablation's rows."""
    rows, wanted = {row.name for row in ablation.rows}, (ablation.reported, ablation.recipe)
    return [number for number in published() if (number.origin, number.recipe) == wanted and number.row in rows]


def _reported(ablation: Ablation, row: AblationRow) -> dict[str, str]:
    cells: dict[str, str] = {}
    for number in _quoted(ablation):
        if number.row == row.name:
            form = "g" if number.metric == "collapsed_at" else ".2f"
            cells[f"reported_{number.metric}"] = f"{number.value:{form}}"
            cells["reported_source"] = f"{number.origin} ({number.dataset})"
    return cells


def _document(
    ablation: Ablation,
    name: str,
    entries: dict[Path, Entry],
    tables: dict[str, dict[Path, Entry]],
    contents: dict[str, Table],
) -> str:
    first = next(iter(entries.values()))
    parts = [
        f"# {ablation.title}\n",
        f"{first.dataset} at {first.threat}, recipe `{ablation.recipe}`. Rows from `configs/ablations/{name}.yaml`, "
        "numbers from `entries/`; built, do not edit.\n",
    ]
    if ablation.source:
        parts.append(f"Source: {ablation.source}.{f' {ablation.note}' if ablation.note else ''}\n")
    parts.append(f"![{ablation.title}](figure.png)\n")
    for file, group in tables.items():
        content = contents[file]
        parts.append(f"## {next(iter(group.values())).protocol.id}\n\n{card(group, file)}\n\n{content.markdown()}\n")
    undescribed = [path.name for path, entry in entries.items() if not any(_fits(row, entry) for row in ablation.rows)]
    if undescribed:
        listed = "\n".join(f"- `{name}`" for name in undescribed)
        parts.append(f"## Entries that no row describes any more\n\n{listed}\n")
    columns = dict.fromkeys(column for content in contents.values() for column in content.columns)
    meanings = {column: column_.meaning for column, (_, column_) in metric_columns().items()} | MEANINGS | _MEANINGS
    shown = {column: meanings[column] for column in columns if column in meanings}
    if _quoted(ablation):
        shown["reported_*"] = "as published; the settings are those of the publication, not of this row"
    parts.append(legend(shown))
    return "\n".join(parts)
