"""The leaderboard of the page: one line a row, complete without JavaScript, which adds sorting and filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from benchmark.leaderboard.page.facts import Link, Row, Score, Table
from benchmark.leaderboard.page.markup import Content, Html, join, tag
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

Cell = tuple[Content, str | int | None]
"""What is shown, and what is sorted by; None goes last."""


@dataclass(frozen=True)
class _Column:
    name: str
    kind: str
    """number or text."""
    rare: bool
    """Seen only when all columns are asked for."""
    cell: Callable[[Row], Cell]

    @property
    def classes(self) -> str:
        return f"{self.kind} rare" if self.rare else self.kind


def leaderboard(table: Table, link: Link) -> Html:
    """Return the table with its filters."""
    columns = _columns(table, link)
    about = meanings()
    name = f"Leaderboard of {table.title}"
    heads = [
        tag(
            "th",
            tag(
                "button",
                column.name.replace("_", " "),
                type="button",
                title=about.get(column.name, about.get(_group(column.name))),
            ),
            scope="col",
            data_column=column.name,
            data_kind=column.kind,
            class_="text name" if column.name == "method" else column.classes,
            aria_sort="ascending" if column.name == "rank" else None,
        )
        for column in columns
    ]
    lines = [_line(row, columns) for row in table.rows]
    return join(
        tag(
            "p",
            "Accuracies are in percent; the bar under each is its 95 % interval, on a scale from 0 to 100. ± is the "
            "standard deviation over seeds. Every number opens what it was made of.",
            class_="lead",
        ),
        _controls(table),
        tag(
            "div",
            tag(
                "table",
                tag("caption", name, class_="hidden"),
                tag("thead", tag("tr", *heads)),
                tag("tbody", *lines),
                class_="leaders",
            ),
            class_="scroll tall",
            tabindex=0,
            role="region",
            aria_label=name,
        ),
        tag("p", tag("a", "What the columns mean", href=f"#{table.identifier}-columns"), class_="note"),
    )


def meanings() -> dict[str, str]:
    """Return what each column means, those of the metrics first."""
    return {name: column.meaning for name, (_, column) in metric_columns().items()} | _OWN_MEANINGS | MEANINGS


def _group(column: str) -> str:
    """Return under which name columns of one kind are explained: reported_clean with the other reported_*."""
    return f"{column.partition('_')[0]}_*"


def _controls(table: Table) -> Html:
    methods = sorted({_method(row) for row in table.rows})
    boxes = {
        "partial": "Hide partial",
        "autoattack": "Only with AutoAttack",
        "flagged": "Hide flagged",
        "every": "All columns",
    }
    options = [tag("option", name, value=name) for name in methods]
    return tag(
        "form",
        tag("label", "Search ", tag("input", type="search", name="text", placeholder="name, architecture, override")),
        tag("label", "Method ", tag("select", tag("option", "all", value=""), *options, name="method")),
        *(
            tag("label", tag("input", type="checkbox", name=name), f" {label}", class_="box")
            for name, label in boxes.items()
        ),
        tag("output", f"{len(table.rows)} of {len(table.rows)} rows", class_="count"),
        class_="controls script",
        aria_label="Filter the leaderboard",
    )


def _columns(table: Table, link: Link) -> list[_Column]:
    metrics = [
        _Column(
            name,
            "text" if any(row.said(name) and row.score(name) is None for row in table.rows) else "number",
            name not in _KEY_COLUMNS,
            _measured(name, link),
        )
        for name in table.columns
    ]
    literature = [
        _Column(f"{kind}_{name}", "number", all(_quoted(row, name) is None for row in table.rows), cell(name, link))
        for name in QUOTED
        for kind, cell in (("reported", _reported), ("difference", _difference))
    ]
    return [
        _Column("rank", "number", False, _rank),
        _Column("method", "text", False, lambda row: (_opening(row, link, row.name), row.name.lower())),
        _Column("ties", "text", False, lambda row: (row.ties or _absent("not tested"), row.ties or None)),
        _Column("seeds", "number", True, lambda row: (described(row.runs)["seeds"], len(row.runs))),
        *metrics,
        *literature,
        _Column("flags", "number", False, lambda row: (_flags(row, link), row.flags)),
        _Column("architecture", "text", False, lambda row: _plain(row.runs[0].subject.architecture)),
        _Column("images", "number", True, lambda row: _plain(row.runs[0].data.n)),
        _Column("restarts", "text", True, lambda row: _plain(restarts(row.runs))),
        _Column("collapsed_at", "text", True, lambda row: _plain(collapsed_at(row.runs))),
    ]


def _line(row: Row, columns: list[_Column]) -> Html:
    first = row.runs[0]
    marks = [
        tag("span", f"{first.data.n:,} of {first.data.of:,}", class_="badge") if first.partial else None,
        tag("span", "collapsed", class_="badge bad") if row.collapsed else None,
    ]
    cells: list[Html] = []
    for column in columns:
        shown, value = column.cell(row)
        if column.name == "method":
            cells.append(tag("th", shown, *marks, scope="row", class_="name", data_value=value))
        else:
            cells.append(tag("td", shown, class_=column.classes, data_value=value))
    words = [row.name, first.subject.architecture, *first.overrides, str(first.training.get("budget") or "")]
    return tag(
        "tr",
        *cells,
        data_words=" ".join(words).lower(),
        data_method=_method(row),
        data_partial=first.partial,
        data_flagged=row.flags > 0,
        data_autoattack=row.score("autoattack") is not None,
    )


def _plain(value: str | int) -> Cell:
    return value, value


def _method(row: Row) -> str:
    return row.runs[0].method or "external"


def _absent(text: str) -> Html:
    return tag("span", text, class_="absent")


def _opening(row: Row, link: Link, *content: Content, column: str | None = None) -> Html:
    """Return a link to the row's first entry, which the script turns into one that opens its details."""
    return tag("a", *content, href=link(row.files[0]), data_row=row.files[0].as_posix(), data_column=column)


def _rank(row: Row) -> Cell:
    possible = "" if row.ranks == row.rank else row.ranks
    span = tag("span", f" {possible}", class_="spread", title="rank interval") if possible else None
    return join(tag("span", row.rank, class_="value"), span), row.rank


def _flags(row: Row, link: Link) -> Content:
    return _opening(row, link, row.flags, column="flags") if row.flags else "0"


def _measured(column: str, link: Link) -> Callable[[Row], Cell]:
    """Return what makes the cell of a metric's column."""

    def cell(row: Row) -> Cell:
        text, score = measured(row.runs, column), row.score(column)
        if text == FAILED:
            return _opening(row, link, tag("span", text, class_="bad"), column=column), None
        if text == ABSENT:
            return _absent("none" if row.done(metric_columns()[column][0]) else "not measured"), None
        if score is None:
            return _opening(row, link, text, column=column), text
        mean, _, spread = text.split(" (")[0].partition(" ± ")
        number = _opening(
            row,
            link,
            tag("span", mean, class_="value"),
            tag("span", f" ± {spread}", class_="spread") if spread else None,
            column=column,
        )
        part = f"{score.seeds} of {len(row.runs)} seeds" if score.seeds < len(row.runs) else ""
        return join(number, _bar(score), tag("span", part, class_="badge") if part else None), f"{score.mean:.9g}"

    return cell


def _bar(score: Score) -> Html | None:
    """Return the interval as a band and the mean as a line, on a scale from 0 to 100."""
    if score.low is None or score.high is None:
        return None
    text = f"95 % interval {score.low:.1f} to {score.high:.1f}"
    left = min(max(score.mean - 0.8, 0), 98.4)
    return tag(
        "svg",
        tag("title", text),
        tag("rect", x=0, y=2, width=100, height=4, class_="rail"),
        tag("rect", x=f"{score.low:.1f}", y=1, width=f"{score.high - score.low:.1f}", height=6, class_="band"),
        tag("rect", x=f"{left:.1f}", y=0, width="1.6", height=8, class_="mean"),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        class_="interval",
        role="img",
        aria_label=text,
    )


def _quoted(row: Row, metric: str) -> Number | None:
    return quoted(row.runs[0].recipe, row.runs[0].dataset, metric)


def _reported(metric: str, link: Link) -> Callable[[Row], Cell]:
    """Return what makes the cell of a quoted number."""

    def cell(row: Row) -> Cell:
        number = _quoted(row, metric)
        if number is None:
            return _absent("none"), None
        about = f"{number.origin} ({number.terms}). {number.caveat}".rstrip()
        shown = tag("span", f"{number.value:.2f}", title=about)
        return _opening(row, link, shown, column=metric), f"{number.value:g}"

    return cell


def _difference(metric: str, link: Link) -> Callable[[Row], Cell]:
    """Return what makes the cell of a difference to a quoted number, which is never without its flags."""

    def cell(row: Row) -> Cell:
        text = difference(row.runs, _quoted(row, metric))
        if text == ABSENT:
            return _absent("none"), None
        value, _, flags = text.partition(" (")
        apart = tag("span", flags.removesuffix(")"), class_="apart") if flags else None
        return join(_opening(row, link, value, column=metric), apart), value

    return cell
