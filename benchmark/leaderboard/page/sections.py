"""The sections of the page: all that can be read without JavaScript, and the places of the charts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from benchmark.leaderboard.aggregate import ABSENT, metric_columns
from benchmark.leaderboard.page.facts import (
    RANKED_BY,
    AblationTable,
    Link,
    Row,
    Table,
    answers,
    headline,
    listed,
    warnings,
)
from benchmark.leaderboard.page.leaders import leaderboard, meanings
from benchmark.leaderboard.page.markup import Content, Html, join, tag

_SHOWN_SAMPLES = 3
"""Pictures that are seen without asking for the others."""
_PREVIEW = 500
"""Side in pixels of a picture that only invites to the whole one."""
_SAME_IN_ALL = {"dataset", "threat", "protocol", "architecture", "config_digest", "budget", "selection"}
"""Columns of an ablation that are left to its own files."""
_EPOCH_TERMS = {
    "loss": "loss",
    "accuracy_clean": "accuracy, clean batches, %",
    "accuracy_adv": "accuracy, adversarial batches, %",
    "gradient_norm": "gradient norm",
    "energy_gap_logged": "E(x_adv) - E(x), nats",
}
_LIMITS = (
    "An accuracy under attack is an upper bound: a stronger attack can only lower it. AutoAttack is the one to quote.",
    "Reported numbers come from other backbones, budgets and protocols; a gap alone is no failure to reproduce.",
    "Intervals cover the choice of test images, and of seeds where there are several and their outcomes per image are "
    "kept. Neither they nor ± cover the choice of settings.",
    "Judges of generated images can be fooled. Look at the pictures.",
)


def overview(tables: Sequence[Table]) -> Html:
    """Return a card for each table: what it is, and who leads it."""
    cards = [
        tag(
            "li",
            tag(
                "a",
                tag("span", table.title, class_="card-title"),
                tag("span", f"{table.protocol.id} · {_count(table)}", class_="card-note"),
                tag("span", _leader(table), class_="card-fact"),
                href=f"#{table.identifier}",
                data_table=table.identifier,
            ),
        )
        for table in tables
    ]
    return tag("ul", *cards, class_="cards")


def article(table: Table, leaderboards: Path, link: Link) -> Html:
    """Return everything about one table; ``link`` makes addresses of paths relative to the leaderboards."""
    sections = {
        "leaderboard": ("Leaderboard", leaderboard(table, link)),
        "tradeoff": ("Trade-off", _tradeoff(table)),
        "samples": ("Samples", _samples(table, leaderboards, link)),
        "significance": ("Significance", _significance(table)),
        "masking": ("Masking court", _masking(table, link)),
        "attacks": ("Attacks", _attacks(table)),
        "curves": ("Curves", _curves(table)),
        "energies": ("Energies", _energies(table)),
        "training": ("Training", _training(table)),
        "ablations": ("Ablations", _ablations(table, leaderboards, link)),
        "protocol": ("Protocol", _protocol(table)),
        "columns": ("Columns", _columns(table)),
        "checking": ("Check and cite", _checking(table)),
    }
    name = table.identifier
    links = [tag("li", tag("a", title, href=f"#{name}-{key}")) for key, (title, _) in sections.items()]
    parts = [
        tag("section", tag("h3", title), content, id=f"{name}-{key}", class_=f"part {key}")
        for key, (title, content) in sections.items()
    ]
    return tag(
        "article",
        tag(
            "header",
            tag("h2", table.title, id=f"{name}-title"),
            tag("p", *_chips(table), class_="chips"),
            tag("p", headline(table), class_="headline"),
            _answers(table, leaderboards),
            class_="hero",
        ),
        tag(
            "div",
            tag("nav", tag("ul", *links), class_="contents", aria_label=f"Sections of {table.title}"),
            tag("div", *parts),
            class_="body-of-board",
        ),
        id=name,
        class_="board",
        aria_labelledby=f"{name}-title",
    )


# --- The head ---------------------------------------------------------------------------------------------------------


def _leader(table: Table) -> str:
    if not table.contenders:
        return "no rows yet"
    row, score = table.contenders[0]
    return f"{row.name} leads: {score.mean:.1f} % under {RANKED_BY[table.decisive]}"


def _count(table: Table) -> str:
    rows, entries = len(table.rows), sum(len(row.runs) for row in table.rows)
    return f"{rows} row{'' if rows == 1 else 's'}, {entries} entr{'y' if entries == 1 else 'ies'}"


def _chips(table: Table) -> list[Html]:
    sizes = sorted({row.runs[0].data.n for row in table.rows}, reverse=True)
    texts = [
        f"protocol {table.protocol.id}",
        f"hash {table.protocol.hash}",
        f"{table.protocol.role} protocol",
        *([f"{' or '.join(f'{n:,}' for n in sizes)} test images"] if sizes else []),
        _count(table),
    ]
    return [tag("span", text, class_="chip") for text in texts]


def _answers(table: Table, leaderboards: Path) -> Html:
    targets = {
        "leaderboard": "Leaderboard",
        "tradeoff": "Trade-off",
        "significance": "All pairs",
        "masking": "All checks",
        "samples": "Pictures",
    }
    cards = [
        tag(
            "li",
            tag("h3", answer.question),
            tag("p", answer.short, class_="answer"),
            tag("p", answer.long),
            _preview(table.contenders[0][0], leaderboards) if target == "samples" else None,
            tag("a", title, href=f"#{table.identifier}-{target}", class_="more"),
            class_=f"fact {answer.tone}",
        )
        for answer, (target, title) in zip(answers(table), targets.items(), strict=False)
    ]
    doubts = [tag("li", text) for text in warnings(table)]
    care = tag("section", tag("h3", "Read with care"), tag("ul", *doubts), class_="care") if doubts else None
    return join(tag("ul", *cards, class_="facts") if cards else None, care)


# --- Figures that the script draws ------------------------------------------------------------------------------------


def _tradeoff(table: Table) -> Html:
    return _figure(
        "tradeoff",
        "Each axis is a column. Where more is better on both, up and to the right is better, and the dashed line joins "
        "the rows that no other row beats on both (Pareto frontier). Bars are standard deviations over seeds.",
        table.lacking(lambda row: row.score("clean")),
        table,
        missing("No row has a clean accuracy.", "clean"),
    )


def _attacks(table: Table) -> Html:
    cascade = _figure(
        "cascade",
        "AutoAttack is a cascade: each attack sees only the images that the earlier ones left. A bar splits the test "
        "images by who broke them first, so that a late attack's share says what it adds, not how strong it is.",
        table.lacking(lambda row: row.done("autoattack")),
        table,
        missing("No entry of this table has AutoAttack.", "autoattack"),
    )
    marginal = _figure(
        "marginal",
        "Marginal: the accuracy under each attack alone, on all images. In the worst case an image counts as broken "
        "where any of them breaks it; it is never an average.",
        table.lacking(lambda row: row.done("marginal")),
        table,
        missing("No entry of this table has the attacks one by one.", "marginal"),
    )
    return join(tag("h4", "Cascade"), cascade, tag("h4", "Each attack alone"), marginal)


def _curves(table: Table) -> Html:
    return _figure(
        "curves",
        "Accuracy by the radius of the attack, and by its iterations. Where gradients are honest, every curve falls to "
        "0 as the radius grows, and more iterations are not weaker. The dot at 1 iteration is FGSM, one step of eps.",
        table.lacking(_has_series("sweep", "eps_accuracy")),
        table,
        missing("No entry of this table has sweeps over radius and iterations.", "sweep"),
    )


def _energies(table: Table) -> Html:
    return _figure(
        "energies",
        "Share of the images, in percent a bin, by energy; low energy means likely. A density that knows its data "
        "gives generated images the energies of clean ones, and robust training keeps adversarial ones near them.",
        table.lacking(_has_series("landscape", "edges")),
        table,
        missing("No entry of this table has histograms of its energies.", "landscape"),
    )


def _training(table: Table) -> Html:
    drawn = _figure(
        "training",
        "What the trainings logged, as means over equal spans of steps. Vertical lines mark collapses.",
        table.lacking(lambda row: any(run.training.get("curves") for run in row.runs)),
        table,
        missing("No entry of this table keeps the curves of its training; below are its first and last epoch."),
    )
    return join(drawn, _epochs(table))


def _epochs(table: Table) -> Html:
    lines: list[tuple[Content, Sequence[Html]]] = []
    for row in table.rows:
        run = row.runs[0]
        first, last = (run.training.get(name) or {} for name in ("first_epoch", "last_epoch"))
        cells = [tag("td", _change(first.get(term), last.get(term)), class_="number") for term in _EPOCH_TERMS]
        if first or last:
            lines.append((f"{row.name}, seed {run.seed}" if len(row.runs) > 1 else row.name, cells))
    if not lines:
        return missing("No entry keeps what its training logged.")
    heads = [(text, "number", None) for text in _EPOCH_TERMS.values()]
    return tag(
        "details",
        tag("summary", "Data: first and last epoch of each row's first seed"),
        _grid("First and last epoch", "method", heads, lines),
    )


def _change(first: float | None, last: float | None) -> Content:
    if first is None and last is None:
        return tag("span", "not logged", class_="absent")
    return " → ".join("?" if value is None else f"{value:.4g}" for value in (first, last))


def _figure(kind: str, lead: str, lacking: Sequence[str], table: Table, nothing: Html) -> Html:
    """Return the place of a chart and whose data it lacks, or ``nothing`` where it lacks all."""
    text = tag("p", lead, class_="lead")
    if len(lacking) == len(table.rows):
        return join(text, nothing)
    script = "This figure is drawn by JavaScript; its numbers are in the entries."
    return join(
        text,
        tag("noscript", tag("p", script, class_="note")),
        tag("div", class_="chart", data_chart=kind),
        tag("p", f"Not measured for: {', '.join(lacking)}.", class_="note") if lacking else None,
    )


def _has_series(metric: str, series: str) -> Callable[[Row], bool]:
    return lambda row: any(measurement.series.get(series) for measurement in row.done(metric))


def missing(what: str, metric: str | None = None) -> Html:
    """Return the statement that something was not measured, and by which metric it is."""
    how = join(" The metric ", tag("code", metric), " measures it, under a protocol that names it.") if metric else None
    return tag("p", tag("strong", "Not measured."), f" {what}", how, class_="missing")


# --- Samples ----------------------------------------------------------------------------------------------------------


def _samples(table: Table, leaderboards: Path, link: Link) -> Html:
    lead = tag(
        "p",
        "What each checkpoint generates: a row a class, a panel a start of the chains. The informative start shows the "
        "class already, so judge what the chains add to it. Shown is the first seed; the others are linked.",
        class_="lead",
    )
    figures = [_pictures(row, leaderboards, link) for row in table.rows if row.pictures(leaderboards)]
    if not figures:
        return join(lead, missing("No entry of this table has pictures of generated images.", "generation"))
    shown, others = figures[:_SHOWN_SAMPLES], figures[_SHOWN_SAMPLES:]
    lacking = table.lacking(lambda row: row.pictures(leaderboards))
    return join(
        lead,
        tag("div", *shown, class_="gallery"),
        tag("details", tag("summary", f"{len(others)} more"), tag("div", *others, class_="gallery"))
        if others
        else None,
        tag("p", f"Not measured for: {', '.join(lacking)}.", class_="note") if lacking else None,
    )


def _pictures(row: Row, leaderboards: Path, link: Link) -> Html:
    (_, first), *others = row.pictures(leaderboards)
    said = [tag("strong", f"{row.rank}. {row.name}")]
    if agreement := row.said("generation_agreement"):
        start = row.said("generation_agreement_start") or "unknown"
        said.append(join(f": {agreement} % recognised as the wanted class, {start} % before any step"))
    if distance := row.said("fid_ref"):
        said.append(join(f"; fid_ref {distance}"))
    links = [join(" · ", tag("a", f"seed {run.seed}", href=link(path))) for run, path in others]
    flags = sorted({text for measurement in row.done("generation") for text in measurement.flags})
    marks = [tag("span", text, class_="flag") for text in flags]
    return _picture(leaderboards / first, f"Images generated by {row.name}", tag("figcaption", *said, *links, *marks))


def _preview(row: Row, leaderboards: Path) -> Html | None:
    found = row.pictures(leaderboards)
    return _image(leaderboards / found[0][1], f"Some images generated by {row.name}", _PREVIEW) if found else None


def _picture(path: Path, alt: str, caption: Html | None = None) -> Html:
    """Return a PNG in a box that scrolls."""
    box = tag("div", _image(path, alt), class_="scroll picture", tabindex=0, role="region", aria_label=alt)
    return tag("figure", box, caption)


def _image(path: Path, alt: str, largest: int | None = None) -> Html:
    """Return a picture that is inside the page, as lossless WebP, which takes a seventh less than PNG.

    Its size is given, so that nothing jumps when it is decoded.

    Args:
        path: a PNG.
        alt: what it shows.
        largest: side in pixels to which it is scaled down.
    """
    content = io.BytesIO()
    with Image.open(path) as image:
        if largest is not None:
            image = image.convert("RGB")
            image.thumbnail((largest, largest))
        image.save(content, "WEBP", lossless=True)
        width, height = image.size
    address = f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
    return tag("img", src=address, alt=alt, width=width, height=height, decoding="async")


# --- Significance and masking -----------------------------------------------------------------------------------------


def _significance(table: Table) -> Html:
    lead = tag(
        "p",
        f"Row minus column in percentage points of accuracy, {RANKED_BY[table.decisive]}, tested on the same images. "
        "Filled cells differ significantly, corrected for the number of pairs (Holm 1979); the others may be luck.",
        class_="lead",
    )
    rows = [row for row, _ in table.contenders if row.ties]
    if len(rows) < 2:
        why = (
            "A paired test needs two rows with the outcome of each image, which these entries do not keep. Compare the "
            "intervals in the leaderboard: rows whose intervals do not overlap differ."
        )
        return join(lead, missing(why))
    lines = [
        (f"{row.rank}. {row.name}", [tag("td", row.ties), *(_pair(table, row, other) for other in rows)])
        for row in rows
    ]
    heads = [("ties", "", None), *((row.rank, "number", row.name) for row in rows)]
    lacking = table.lacking(lambda row: row in rows)
    return join(
        lead,
        _grid("Differences of all pairs of rows", "method", heads, lines, "pairs"),
        tag(
            "p",
            "Columns are ranks. Rows that share a letter are not distinguishable. Pointing at a cell shows the 95 % "
            "interval of the difference and its p, uncorrected; ",
            tag("code", "python -m benchmark compare"),
            " prints both.",
            class_="note",
        ),
        tag("p", f"Not tested: {', '.join(lacking)}.", class_="note") if lacking else None,
    )


def _pair(table: Table, row: Row, other: Row) -> Html:
    if row is other:
        return tag("td", "=", class_="number self")
    found = table.duel(row, other)
    if found is None:
        return tag("td", tag("span", "not tested", class_="absent"), class_="number self")
    apart = not set(row.ties) & set(other.ties)
    said = f"{row.name} minus {other.name}: {found.low:.1f} to {found.high:.1f} points (95 %), p = {found.p:.2g}"
    shown = tag("span", f"{found.points:+.1f}", title=f"{said}, {found.test}")
    side = "ahead" if found.points > 0 else "behind"
    return tag("td", shown, class_=f"number {side if apart else 'tied'}")


def _masking(table: Table, link: Link) -> Html:
    lead = tag(
        "p",
        "A defence that hides its gradients looks robust to attacks that follow them. Each check holds one number "
        "against another; a failed one is a reason to distrust the row's accuracy under attack.",
        class_="lead",
    )
    found = [check for row in table.rows for measurement in row.done("masking") for check in measurement.checks]
    if not found:
        return join(lead, missing("No entry of this table has been before the masking court.", "masking"))
    names = list(dict.fromkeys(check.name for check in found))
    about = {check.name: check.meaning for check in sorted(found, key=lambda check: check.passed is not None)}
    lines: list[tuple[Content, Sequence[Html]]] = []
    for row in table.rows:
        verdict = row.said("masking")
        if not row.done("masking"):
            cells = [tag("td", tag("span", "not measured", class_="absent"), colspan=len(names) + 1)]
        else:
            kind = "absent" if not verdict else "verdict" if verdict.startswith("clear") else "verdict bad"
            cells = [tag("td", tag("span", verdict or "none: no check applies", class_=kind))]
            cells += [_check(row, name, link) for name in names]
        lines.append((row.name, cells))
    heads = [("verdict", "", None), *((name.replace("_", " "), "", about[name]) for name in names)]
    return join(
        lead,
        _grid("Masking court", "method", heads, lines, "court"),
        tag(
            "p",
            "✓ passed, ✗ failed; the measured number, then what it is held against. n/a: does not apply. Of several "
            "seeds a failed one is shown.",
            class_="note",
        ),
        tag("details", tag("summary", "What each check means"), _list((name, about[name]) for name in names)),
    )


def _check(row: Row, name: str, link: Link) -> Html:
    found = [
        (check, file)
        for run, file in zip(row.runs, row.files, strict=True)
        if (measurement := run.measurements.get("masking")) is not None
        for check in measurement.checks
        if check.name == name
    ]
    failed = [item for item in found if item[0].passed is False]
    if not found:
        return tag("td", tag("span", "not measured", class_="absent"))
    check, file = (failed or found)[0]
    if check.passed is None:
        return tag("td", tag("span", "n/a", title=check.meaning, class_="absent"))
    numbers = " vs ".join("?" if value is None else f"{value:.4g}" for value in (check.measured, check.bound))
    mark, said = ("✓", "passed") if check.passed else ("✗", "failed")
    share = f"{len(failed)} of {len(found)} seeds" if 0 < len(failed) < len(found) else ""
    return tag(
        "td",
        tag(
            "a",
            tag("span", mark, class_="mark", role="img", aria_label=said),
            f" {numbers}",
            href=link(file),
            data_row=row.files[0].as_posix(),
            data_column="masking",
            title=check.meaning,
        ),
        tag("span", share, class_="badge bad") if share else None,
        class_=said,
    )


# --- Ablations, protocol, columns, how to check -----------------------------------------------------------------------


def _ablations(table: Table, leaderboards: Path, link: Link) -> Html:
    if not table.ablations:
        return missing("There is no ablation on this data set and threat model.")
    return join(*(_ablation(item, table, leaderboards, link) for item in table.ablations))


def _ablation(item: AblationTable, table: Table, leaderboards: Path, link: Link) -> Html:
    files = [tag("li", tag("a", path.name, href=link(path))) for path in item.files]
    told = {name for cells in item.cells for name, cell in cells.items() if cell != ABSENT}
    columns = [name for name in item.cells[0] if name in told and name not in {*_SAME_IN_ALL, "row"}]
    none = tag("span", "none", class_="absent")
    lines = [
        (cells["row"], [tag("td", none if cells[name] == ABSENT else cells[name]) for name in columns])
        for cells in item.cells
    ]
    other = (
        f"Measured under {item.protocol.id}, not under this table's protocol: do not compare these numbers with the "
        "leaderboard's."
    )
    return join(
        tag("h4", item.title),
        *(tag("p", text, class_="note") for text in item.about),
        tag("p", other, class_="missing") if item.protocol != table.protocol else None,
        _grid(item.title, "row", [(name.replace("_", " "), "", None) for name in columns], lines),
        _picture(leaderboards / item.figure, f"Figure of {item.title}") if item.figure is not None else None,
        tag("p", "All columns and what they mean: ", tag("a", item.document.name, href=link(item.document))),
        tag("details", tag("summary", f"{len(item.files)} entries"), tag("ul", *files)),
    )


def _protocol(table: Table) -> Html:
    settings = {
        metric: (found.version, ", ".join(f"{name} {value}" for name, value in found.config.items()))
        for row in table.rows
        for run in row.runs
        for metric, found in run.measurements.items()
    }
    lines = [
        (tag("code", metric), [tag("td", version, class_="number"), tag("td", text or "nothing to set")])
        for metric, (version, text) in settings.items()
    ]
    splits = {
        f"{run.data.of:,} images, SHA-256 {run.data.digests.get('test')}" for row in table.rows for run in row.runs
    }
    facts = {
        "id": table.protocol.id,
        "hash": f"{table.protocol.hash}, of everything below and the metrics' defaults",
        "role": table.protocol.role,
        "data set": table.dataset,
        "threat model": f"{table.threat}, eps in units of [0, 1] pixels",
        "test split": "; ".join(sorted(splits)) or "no entries",
    }
    lead = "Everything that decides a number besides the model. Rows under another hash are in another table."
    heads = [("version", "number", None), ("settings", "", None)]
    return join(
        tag("p", lead, class_="lead"),
        _list(facts.items()),
        _grid("Metrics and their settings", "metric", heads, lines) if lines else None,
    )


def _columns(table: Table) -> Html:
    about = meanings()
    absent = [name for name in metric_columns() if name not in table.columns]
    shown = [name for name in about if name not in absent]
    return join(
        _list((tag("code", name), about[name]) for name in shown),
        tag("p", f"Not measured in this table: {', '.join(absent)}.", class_="note") if absent else None,
    )


def _checking(table: Table) -> Html:
    commits = {
        str(run.provenance["commit"])[:12] for row in table.rows for run in row.runs if run.provenance.get("commit")
    }
    lines: list[tuple[str, str | None]] = [
        ("Build every table from its entries again:", "python -m benchmark leaderboard")
    ]
    for leader, _ in table.contenders[:1]:
        evidence = any(run.evidence for run in leader.runs)
        lines += [
            ("Check the leader's accuracies against its evidence:", leader.verify if evidence else None),
            ("Compare it with the next row, image by image:", table.comparison(leader)),
            ("Train and measure it again:", leader.repeat),
        ]
    cite = (
        f"Trilemma, {table.title}, protocol {table.protocol.id} (hash {table.protocol.hash}), entries of "
        f"{f'commit {listed(sorted(commits))}' if commits else 'an unrecorded commit'}."
    )
    return join(
        *(join(tag("p", text), tag("pre", tag("code", line), class_="command")) for text, line in lines if line),
        tag("h4", "How to cite"),
        tag("p", cite, class_="cite"),
        tag("h4", "Limits"),
        tag("ul", *(tag("li", text) for text in _LIMITS)),
    )


def _list(items: Iterable[tuple[Content, Content]]) -> Html:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in items), class_="legend")


def _grid(
    name: str,
    corner: str,
    heads: Sequence[tuple[str, str, str | None]],
    lines: Sequence[tuple[Content, Sequence[Html]]],
    class_: str | None = None,
) -> Html:
    """Return a table in a box that scrolls, also by keyboard.

    Args:
        name: for those who do not see it.
        corner: above the lines' heads.
        heads: text, class and hint of each further column.
        lines: head and cells of each line.
        class_: of the table.
    """
    top = [tag("th", text, scope="col", class_=kind or None, title=hint) for text, kind, hint in heads]
    table = tag(
        "table",
        tag("caption", name, class_="hidden"),
        tag("thead", tag("tr", tag("th", corner, scope="col", class_="name"), *top)),
        tag("tbody", *(tag("tr", tag("th", head, scope="row", class_="name"), *cells) for head, cells in lines)),
        class_=class_,
    )
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)
