"""What the page says: the rows of each table with their scores, and sentences made of them."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmark.leaderboard.aggregate import ABSENT, FAILED, measured, metric_columns, numbers, verdicts
from benchmark.leaderboard.tables import standings
from benchmark.results import significance
from benchmark.results.entry import Entry, Measurement, ProtocolInfo
from benchmark.results.layout import picture_path
from benchmark.results.significance import Difference

Link = Callable[[Path], str]
"""From a path relative to the leaderboards to an address relative to the page."""
RANKED_BY = {"autoattack": "AutoAttack", "pgd20": "PGD-20", "clean": "no attack"}
_CLEAR = "clear"
"""What the metric masking says where no check failed."""
_FEW_IMAGES = 1000
"""Below which the page says how wide an interval is."""
_LISTED = 4
"""Names in a sentence."""


@dataclass(frozen=True)
class Score:
    """A column of a row, over its seeds."""

    mean: float
    spread: float | None
    """Standard deviation (n - 1); None for a single number."""
    low: float | None
    high: float | None
    """95 % interval of an accuracy; None for other columns."""
    seeds: int

    @property
    def text(self) -> str:
        """Mean and spread."""
        return f"{self.mean:.2f}" + (f" ± {self.spread:.2f}" if self.spread is not None else "")


@dataclass(frozen=True)
class Row:
    """One experiment of a table: a training over its seeds, or a model from elsewhere."""

    name: str
    rank: str
    ranks: str
    """Interval of the rank; empty where it cannot be told."""
    ties: str
    """Letters of the groups of rows that do not differ significantly."""
    runs: Sequence[Entry]
    files: Sequence[Path]
    """Of the entries, relative to the leaderboards."""

    def score(self, column: str) -> Score | None:
        """Return the column's numbers; None where it was not measured."""
        found = numbers(self.runs, column)
        if not found:
            return None
        low, high = self._interval(column, found) if is_accuracy(column) else (None, None)
        spread = statistics.stdev(found) if len(found) > 1 else None
        return Score(statistics.fmean(found), spread, low, high, len(found))

    def _interval(self, column: str, found: Sequence[float]) -> tuple[float, float]:
        """Return the 95 % interval; over images alone where the outcomes per image are not kept."""
        outcomes = verdicts(self.runs, column)
        if outcomes is not None:
            return significance.interval(outcomes)
        n = self.runs[0].data.n
        return significance.wilson(round(statistics.fmean(found) * n / 100), n)

    def said(self, column: str) -> str:
        """Return the column as the leaderboard's files have it; empty where it was not measured."""
        text = measured(self.runs, column)
        return "" if text in (ABSENT, FAILED) else text

    def done(self, metric: str) -> list[Measurement]:
        """Return the row's measurements by a metric that did not fail."""
        found = (run.measurements.get(metric) for run in self.runs)
        return [measurement for measurement in found if measurement is not None and measurement.status == "done"]

    def pictures(self, leaderboards: Path) -> list[tuple[Entry, Path]]:
        """Return the pictures of generated images, by seed, relative to the leaderboards."""
        found = zip(self.runs, map(picture_path, self.files), strict=True)
        return [(run, path) for run, path in found if (leaderboards / path).is_file()]

    @property
    def handle(self) -> str:
        """By what the command line knows the row: its recipe, with its digest where several rows have that."""
        first = self.runs[0]
        return first.recipe if self.name == first.recipe else f"{first.recipe}-{_digest(first)}"

    @property
    def flags(self) -> int:
        """How many doubts its entries record."""
        return sum(len(run.subject.flags) + sum(len(m.flags) for m in run.measurements.values()) for run in self.runs)

    @property
    def collapsed(self) -> bool:
        """Whether a training collapsed for good."""
        return any(run.training.get("collapse") for run in self.runs)

    @property
    def verify(self) -> str:
        """The command that checks its first entry's accuracies against the evidence."""
        return shlex.join(["python", "-m", "benchmark", "verify", f"leaderboards/{self.files[0].as_posix()}"])

    @property
    def repeat(self) -> str:
        """The command that trains and measures it again."""
        first = self.runs[0]
        measuring = ["--dataset", first.dataset, "--protocol", first.protocol.id]
        measuring += ["--limit", str(first.data.n)] if first.partial else []
        if first.subject.kind == "external":
            return shlex.join(["python", "-m", "benchmark", "evaluate", "--model", first.recipe, *measuring])
        training = ["--methods", first.recipe, "--seeds", ",".join(str(run.seed) for run in self.runs)]
        training += [part for text in first.overrides for part in ("--set", text)]
        training += ["--which", "last"] if first.subject.which == "last" else []
        return shlex.join(["python", "-m", "benchmark", "run", *training, *measuring])


@dataclass(frozen=True)
class AblationTable:
    """One table of an ablation, as its files have it."""

    title: str
    about: Sequence[str]
    """Paragraphs above it."""
    cells: Sequence[dict[str, str]]
    """By column, a row each."""
    protocol: ProtocolInfo
    document: Path
    """Relative to the leaderboards, as are the following."""
    figure: Path | None
    files: Sequence[Path]
    """Of the entries."""


@dataclass(frozen=True)
class Table:
    """The rows that may be compared: one data set, threat model and protocol."""

    folder: Path
    """Relative to the leaderboards."""
    dataset: str
    threat: str
    protocol: ProtocolInfo
    rows: Sequence[Row]
    ablations: Sequence[AblationTable]

    @property
    def identifier(self) -> str:
        """Of the table's element in the page."""
        return "-".join([*self.folder.parts, self.protocol.id, self.protocol.hash[:8]])

    @property
    def title(self) -> str:
        """Data set and threat model."""
        return f"{self.dataset} at {self.threat.replace(':', ' ')}"

    @cached_property
    def columns(self) -> list[str]:
        """The columns of metrics that some row has measured, or failed to measure, in the order of the metrics."""
        held = {metric for row in self.rows for run in row.runs for metric in run.measurements}
        return [name for name, (metric, _) in metric_columns().items() if metric in held]

    @cached_property
    def decisive(self) -> str:
        """The column of the headline: AutoAttack where any row has it, else PGD-20, else clean."""
        return next((column for column in RANKED_BY if any(row.score(column) for row in self.rows)), "clean")

    @cached_property
    def contenders(self) -> list[tuple[Row, Score]]:
        """The rows that can win, best first: those on the most images that have the decisive column."""
        most = max(((not row.runs[0].partial, row.runs[0].data.n) for row in self.rows), default=None)
        rows = [row for row in self.rows if (not row.runs[0].partial, row.runs[0].data.n) == most]
        return [(row, score) for row in rows if (score := row.score(self.decisive)) is not None]

    def duel(self, one: Row, other: Row) -> Difference | None:
        """Return how two rows differ in the decisive column; None where their outcomes per image are not kept."""
        a, b = verdicts(one.runs, self.decisive), verdicts(other.runs, self.decisive)
        return significance.difference(a, b) if a is not None and b is not None and a.shape[1] == b.shape[1] else None

    def comparison(self, row: Row) -> str | None:
        """Return the command that compares a row with the leader, or the leader with the next row."""
        best = [found for found, _ in self.contenders]
        if row not in best or len(best) < 2:
            return None
        rival = best[0] if row is not best[0] else best[1]
        place = ["--dataset", self.dataset, "--threat", self.threat, "--protocol", self.protocol.id]
        return shlex.join(["python", "-m", "benchmark", "compare", row.handle, rival.handle, *place])

    def lacking(self, has: Callable[[Row], object]) -> list[str]:
        """Return the names of the rows that lack something."""
        return [row.name for row in self.rows if not has(row)]


@dataclass(frozen=True)
class Answer:
    """To what a newcomer asks first."""

    question: str
    short: str
    long: str
    tone: str
    """good, bad, open (nobody knows) or plain."""


def is_accuracy(column: str) -> bool:
    """Tell whether a column is an accuracy in percent."""
    value = metric_columns()[column][1].value
    return value.endswith("accuracy") or value.startswith("after_")


def rows_of(group: dict[Path, Entry]) -> list[Row]:
    """Return the rows of a table, best first, from its entries by file relative to the leaderboards.

    Raises:
        InputError: two entries are the same run, or outcomes per image are damaged.
    """
    files = {id(entry): path for path, entry in group.items()}
    table = standings(group)
    found = [runs for runs, _ in table]
    return [
        Row(
            _name(runs, found),
            standing["rank"],
            standing["rank_interval"].replace(ABSENT, ""),
            standing["tie"].replace(ABSENT, ""),
            runs,
            [files[id(run)] for run in runs],
        )
        for runs, standing in table
    ]


def _name(runs: Sequence[Entry], others: Sequence[Sequence[Entry]]) -> str:
    """Return the recipe, and what sets the row apart from others of that recipe."""
    same = [_marks(other[0]) for other in others if other[0].recipe == runs[0].recipe]
    apart = [mark for place, mark in enumerate(_marks(runs[0])) if len({marks[place] for marks in same}) > 1]
    return f"{runs[0].recipe} ({', '.join(apart)})" if apart else runs[0].recipe


def _marks(run: Entry) -> tuple[str, ...]:
    return f"{run.data.n} images", run.subject.which or "external", _digest(run)


def _digest(run: Entry) -> str:
    return (run.config_digest or run.subject.weights_digest)[:8]


# --- Sentences --------------------------------------------------------------------------------------------------------


def headline(table: Table) -> str:
    """Return who leads the table, by how much, whether that is significant, and whether masking is suspected."""
    if not table.contenders:
        return "Nothing is measured yet."
    best, score = table.contenders[0]
    under = "on clean images; no attack was measured" if table.decisive == "clean" else f"under {_attack(table)}"
    text = f"{best.name} leads with {score.text} % {under} (95 % interval {_span(score.low, score.high)})"
    if len(table.contenders) > 1:
        second, other = table.contenders[1]
        text += f", {score.mean - other.mean:.1f} points ahead of {second.name} ({_significance(table).short})"
    return f"{text}. Gradient masking: {_masking(table).short}."


def answers(table: Table) -> list[Answer]:
    """Return who wins, by how much, whether that is significant, whether masking is suspected, and the samples."""
    if not table.contenders:
        return []
    return [_winner(table), _lead(table), _significance(table), _masking(table), _samples(table)]


def _winner(table: Table) -> Answer:
    best, score = table.contenders[0]
    what = (
        "are classified correctly without attack; no attack was measured"
        if table.decisive == "clean"
        else f"withstand {_attack(table)}"
    )
    over = f"mean ± standard deviation over {score.seeds} seeds" if score.seeds > 1 else "one seed"
    return Answer(
        "Who wins?",
        f"{best.name}, {score.mean:.1f} %",
        f"{score.text} % of {best.runs[0].data.n} test images {what} ({over}; 95 % interval "
        f"{_span(score.low, score.high)})."
        + ("" if table.decisive == "autoattack" else " No row has AutoAttack, so this is an upper bound only."),
        "good",
    )


def _lead(table: Table) -> Answer:
    question = "By how much?"
    if len(table.contenders) < 2:
        return Answer(question, "no rival", "No other row was measured like this one.", "open")
    (best, score), (second, other) = table.contenders[:2]
    long = f"{second.name} comes next with {other.text} %."
    clean = [(found.mean, row, held) for row, held in table.contenders if (found := row.score("clean")) is not None]
    own = best.score("clean")
    if own is not None and table.decisive != "clean":
        most, accurate, held = max(clean, key=lambda item: item[0])
        if accurate is best:
            long += f" It also has the highest clean accuracy, {own.mean:.1f} %."
        else:
            long += (
                f" The highest clean accuracy has {accurate.name}: {most:.1f} %, {most - own.mean:.1f} points more "
                f"than {best.name}, but {held.mean:.1f} % under {_attack(table)}."
            )
    return Answer(question, f"{score.mean - other.mean:.1f} points", long, "plain")


def _significance(table: Table) -> Answer:
    question = "Is the lead significant?"
    if len(table.contenders) < 2:
        return Answer(question, "no rival", "No other row was measured like this one.", "open")
    (best, score), (second, other) = table.contenders[:2]
    found = table.duel(best, second)
    if found is None or not best.ties or not second.ties:
        overlap = (other.high or 0) >= (score.low or 0)
        return Answer(
            question,
            "not tested",
            f"A paired test needs the outcome of each image, which these entries do not keep. The 95 % intervals of "
            f"{best.name} and {second.name} {'overlap' if overlap else 'do not overlap'} "
            f"({_span(score.low, score.high)} and {_span(other.low, other.high)}).",
            "open",
        )
    apart = not set(best.ties) & set(second.ties)
    tied = [row.name for row, _ in table.contenders[1:] if set(row.ties) & set(best.ties)]
    long = (
        f"{best.name} minus {second.name}: {_span(found.low, found.high)} points (95 %), p = {_p(found.p)} by "
        f"{found.test}. "
    )
    if apart:
        long += "It stays significant when corrected for the number of pairs in the table."
    else:
        long += f"Not distinguishable from {best.name}, corrected for the number of pairs: {listed(tied)}."
    return Answer(question, "significant" if apart else "not significant", long, "good" if apart else "open")


def _masking(table: Table) -> Answer:
    question = "Is masking suspected?"
    judged = [row for row in table.rows if row.said("masking")]
    if not judged:
        long = (
            "No entry of this table has the checks for gradient masking. AutoAttack's own warnings are among the flags."
        )
        return Answer(question, "not measured", long, "open")
    suspects = [row for row in judged if not row.said("masking").startswith(_CLEAR)]
    unchecked = table.lacking(lambda row: row in judged)
    rest = f" Without a verdict: {listed(unchecked)}." if unchecked else ""
    best, _ = table.contenders[0]
    if not suspects:
        return Answer(question, "not suspected", f"Every check is clear for all {len(judged)} rows.{rest}", "good")
    reasons = [f"{row.name}: {row.said('masking')}" for row in suspects]
    long = f"{'; '.join(reasons[:_LISTED])}{_more(reasons)}.{rest}"
    if best in suspects:
        return Answer(question, "suspected of the leader", long, "bad")
    leader = f"{best.name} is {'clear' if best in judged else 'without a verdict'}"
    return Answer(question, f"{leader}, {len(suspects)} suspect", long, "good" if best in judged else "open")


def _samples(table: Table) -> Answer:
    question = "What do the samples look like?"
    best, _ = table.contenders[0]
    score, start = best.score("generation_agreement"), best.score("generation_agreement_start")
    distances = [row for row in table.rows if row.score("fid_ref")]
    if score is None:
        return Answer(question, "not measured", f"No generated images of {best.name} were measured.", "open")
    long = f"So many of the images that {best.name} generates show the wanted class, as a separate classifier sees them"
    long += f"; {start.mean:.1f} % do before any step, so look at the pictures." if start else "."
    if distances:
        nearest = min(distances, key=lambda row: row.score("fid_ref").mean)  # pyright: ignore[reportOptionalMemberAccess]
        long += f" Nearest to the training images is {nearest.name} (fid_ref {nearest.said('fid_ref')})."
    return Answer(question, f"{score.mean:.1f} % recognised", long, "plain")


def warnings(table: Table) -> list[str]:
    """Return the reasons to read the table with care, a sentence each."""
    rows = table.rows
    budgets = Counter(str(row.runs[0].training.get("budget") or "") for row in rows)
    found = [f"Training budget of {_share(count, len(rows))}: {text}." for text, count in budgets.items() if text]
    if partial := [row for row in rows if row.runs[0].partial]:
        sizes = sorted({f"{row.runs[0].data.n:,} of {row.runs[0].data.of:,}" for row in partial})
        found.append(f"Partial, measured on the first {' or '.join(sizes)} test images only: {_among(partial, rows)}.")
    n = max((row.runs[0].data.n for row in rows), default=_FEW_IMAGES)
    if n < _FEW_IMAGES:
        low, high = significance.wilson(n // 2, n)
        found.append(f"Few test images: from {n}, an accuracy near 50 % is known to ± {(high - low) / 2:.1f} points.")
    if single := [row for row in rows if len(row.runs) == 1 and row.runs[0].seed is not None]:
        found.append(f"A single seed, so that nothing is known of other trainings: {_among(single, rows)}.")
    for column in ("autoattack", "pgd20"):
        fewer = [row for row in rows if (score := row.score(column)) and score.seeds < len(row.runs)]
        if fewer:
            found.append(f"{RANKED_BY[column]} for some of the seeds only: {_among(fewer, rows)}.")
    without = [row for row in rows if row.score("autoattack") is None]
    if without and len(without) == len(rows):
        found.append("No row has AutoAttack: accuracies under other attacks are upper bounds, and often loose ones.")
    elif without:
        found.append(f"Without AutoAttack, and ranked behind those that have it: {_among(without, rows)}.")
    if failed := [
        row for row in rows if any(m.status == "failed" for run in row.runs for m in run.measurements.values())
    ]:
        found.append(f"A metric failed: {_among(failed, rows)}.")
    if collapsed := [row for row in rows if row.collapsed]:
        found.append(f"A training collapsed and was stopped; measured on older weights: {_among(collapsed, rows)}.")
    if dirty := [row for row in rows if any(run.provenance.get("dirty") for run in row.runs)]:
        found.append(f"Measured with uncommitted changes in the code: {_among(dirty, rows)}.")
    return found


def listed(names: Sequence[str]) -> str:
    """Return names as a list that stays short."""
    return ", ".join(names[:_LISTED]) + _more(names)


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""


def _among(chosen: Sequence[Row], rows: Sequence[Row]) -> str:
    """Return the chosen rows by name, or that they are all."""
    return f"all {len(rows)} rows" if len(chosen) == len(rows) > 1 else listed([row.name for row in chosen])


def _share(count: int, of: int) -> str:
    return f"all {of} rows" if count == of > 1 else f"{count} of {of} rows"


def _attack(table: Table) -> str:
    return RANKED_BY[table.decisive]


def _span(low: float | None, high: float | None) -> str:
    return "unknown" if low is None or high is None else f"{low:.1f} to {high:.1f}"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"
