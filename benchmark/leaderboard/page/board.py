"""The boards of the page, as read from leaderboards/: rows that may be compared, their scores and their commands."""

import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmark.leaderboard.aggregate import (
    ABSENT,
    FAILED,
    by_protocol,
    done,
    measured,
    metric_columns,
    numbers,
    verdicts,
)
from benchmark.leaderboard.tables import read_table, standings
from benchmark.results import significance
from benchmark.results.entry import Entry, Measurement, ProtocolInfo
from benchmark.results.layout import ABLATIONS, picture_path, read_entries
from benchmark.results.significance import Difference

ATTACK_NAMES = {"autoattack": "AutoAttack", "pgd20": "PGD-20", "clean": "no attack"}
"""Columns that can decide who leads, the strongest attack first, and what readers call the attack."""
_SAME_IN_ALL = {"dataset", "threat", "protocol", "architecture", "config_digest", "budget", "selection"}
"""Columns of an ablation that are left to its own files."""


@dataclass(frozen=True)
class SeedScore:
    """A metric's column of one row, over the row's seeds, in the column's unit."""

    mean: float
    spread: float | None
    """Standard deviation over seeds (n - 1); None for a single number."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval of an accuracy; None for other columns."""
    seeds: int

    @property
    def text(self) -> str:
        """Mean and spread, such as ``61.00 ± 1.41``."""
        return f"{self.mean:.2f}" + (f" ± {self.spread:.2f}" if self.spread is not None else "")


@dataclass(frozen=True)
class BoardRow:
    """One experiment of a board: a training over its seeds, or a model from elsewhere."""

    name: str
    rank: str
    rank_interval: str
    """The ranks that outcomes per image leave possible; empty where they are not kept."""
    ties: str
    """Letters of the groups of rows that do not differ significantly; empty where nothing was tested."""
    runs: Sequence[Entry]
    """The row's entries, by seed."""
    files: Sequence[Path]
    """Paths of the entries, relative to the leaderboards."""

    def score(self, column: str) -> SeedScore | None:
        """Return the column's numbers over seeds; None where none was measured."""
        if not (found := numbers(self.runs, column)):
            return None
        mean, n, low, high = statistics.fmean(found), self.runs[0].data.n, None, None
        if is_accuracy(column):
            kept = verdicts(self.runs, column)
            # Over images alone where the outcomes per image are not kept.
            interval = significance.wilson(round(mean * n / 100), n) if kept is None else significance.interval(kept)
            low, high = interval
        return SeedScore(mean, statistics.stdev(found) if len(found) > 1 else None, low, high, len(found))

    def text(self, column: str) -> str:
        """Return the column as the leaderboard's files have it; empty where it was not measured or failed."""
        text = measured(self.runs, column)
        return "" if text in (ABSENT, FAILED) else text

    def measurements(self, metric: str) -> list[Measurement]:
        """Return the row's measurements by a metric that did not fail."""
        return done(self.runs, metric)

    def pictures(self, leaderboards: Path) -> list[tuple[Entry, Path]]:
        """Return the pictures of generated images, by seed, relative to the leaderboards."""
        found = zip(self.runs, map(picture_path, self.files), strict=True)
        return [(run, path) for run, path in found if (leaderboards / path).is_file()]

    @property
    def method(self) -> str:
        """The training method; ``external`` for a model from elsewhere."""
        return self.runs[0].method or "external"

    @property
    def partial(self) -> str:
        """How many of the test images were measured, such as ``1,000 of 10,000``; empty for all of them."""
        data = self.runs[0].data
        return f"{data.n:,} of {data.of:,}" if self.runs[0].partial else ""

    @property
    def flag_count(self) -> int:
        """Number of doubts that its entries record."""
        return sum(len(run.subject.flags) + sum(len(m.flags) for m in run.measurements.values()) for run in self.runs)

    @property
    def collapsed(self) -> bool:
        """Whether a training collapsed for good."""
        return any(run.training.get("collapse") for run in self.runs)

    @property
    def command_name(self) -> str:
        """The row's name on the command line: its recipe, with a digest where several rows have that recipe."""
        first = self.runs[0]
        return first.recipe if self.name == first.recipe else f"{first.recipe}-{_digest(first)}"

    @property
    def repeat_command(self) -> str:
        """The command that trains and measures it again."""
        first = self.runs[0]
        measuring = ["--dataset", first.dataset, "--protocol", first.protocol.id]
        measuring += ["--limit", str(first.data.n)] if first.partial else []
        if first.subject.kind == "external":
            return command("evaluate", "--model", first.recipe, *measuring)
        training = ["--methods", first.recipe, "--seeds", ",".join(str(run.seed) for run in self.runs)]
        training += [part for text in first.overrides for part in ("--set", text)]
        training += ["--which", "last"] if first.subject.which == "last" else []
        return command("run", *training, *measuring)


@dataclass(frozen=True)
class AblationTable:
    """One table of an ablation, as its built files have it."""

    title: str
    paragraphs: Sequence[str]
    """Text above the table."""
    rows: Sequence[dict[str, str]]
    """Text by column, one mapping per row."""
    protocol: ProtocolInfo
    document: Path
    """The ablation's document, relative to the leaderboards."""
    figure: Path | None
    """The ablation's figure, relative to the leaderboards; None where there is none, or another table has it."""
    files: Sequence[Path]
    """Paths of the entries, relative to the leaderboards."""

    @property
    def columns(self) -> list[str]:
        """The columns in which some row has something and in which the rows of an ablation can differ."""
        filled = {name for row in self.rows for name, text in row.items() if text != ABSENT}
        return [name for name in self.rows[0] if name in filled and name not in {*_SAME_IN_ALL, "row"}]


@dataclass(frozen=True)
class Board:
    """The rows that may be compared: one data set, threat model and protocol."""

    folder: Path
    """Folder of the entries, relative to the leaderboards."""
    dataset: str
    threat: str
    protocol: ProtocolInfo
    rows: Sequence[BoardRow]
    """All rows, best first."""
    ablations: Sequence[AblationTable]

    @property
    def identifier(self) -> str:
        """The id of the board's element in the page."""
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
        return next((column for column in ATTACK_NAMES if any(row.score(column) for row in self.rows)), "clean")

    @property
    def attack(self) -> str:
        """What readers call the attack of the decisive column."""
        return ATTACK_NAMES[self.decisive]

    @cached_property
    def contenders(self) -> list[tuple[BoardRow, SeedScore]]:
        """The rows that can lead, best first: those on the most images that have the decisive column, and its score."""
        sizes = [(not row.partial, row.runs[0].data.n) for row in self.rows]
        rows = [row for row, size in zip(self.rows, sizes, strict=True) if size == max(sizes)]
        return [(row, score) for row in rows if (score := row.score(self.decisive)) is not None]

    def paired_difference(self, one: BoardRow, other: BoardRow) -> Difference | None:
        """Return how two rows differ in the decisive column; None where their outcomes per image are not kept."""
        a, b = verdicts(one.runs, self.decisive), verdicts(other.runs, self.decisive)
        return significance.difference(a, b) if a is not None and b is not None and a.shape[1] == b.shape[1] else None

    def compare_command(self, row: BoardRow) -> str | None:
        """Return the command that compares a row with the leader, or the leader with the next row."""
        best = [found for found, _ in self.contenders]
        if row not in best or len(best) < 2:
            return None
        rival = best[0] if row is not best[0] else best[1]
        place = ["--dataset", self.dataset, "--threat", self.threat, "--protocol", self.protocol.id]
        return command("compare", row.command_name, rival.command_name, *place)

    def names_without(self, has: Callable[[BoardRow], object]) -> list[str]:
        """Return the names of the rows for which ``has`` is false."""
        return [row.name for row in self.rows if not has(row)]


def read_boards(leaderboards: Path) -> list[Board]:
    """Return every board, the one with the most entries first, each with the ablations under its protocol.

    Raises:
        InputError: an entry is malformed, two are the same run, or an ablation's table cannot be read.
    """
    boards: list[Board] = []
    for folder in sorted(path for path in leaderboards.glob("*/*") if path.is_dir()):
        entries = {path.relative_to(leaderboards): entry for path, entry in read_entries(folder).items()}
        groups = [(next(iter(group.values())), board_rows(group)) for group in by_protocol(entries, "").values()]
        ablations: list[AblationTable] = []
        for place in sorted((folder / ABLATIONS).glob("*")):
            found = read_entries(place)
            ablations += _ablation_tables(leaderboards, place, found)
            if not groups and found:
                groups.append((next(iter(found.values())), []))
        hashes = {entry.protocol.hash for entry, _ in groups}
        for number, (first, rows) in enumerate(groups):
            own = [
                item
                for item in ablations
                # Under a protocol that has no board here, an ablation stands beside the first one, and says so.
                if item.protocol == first.protocol or (number == 0 and item.protocol.hash not in hashes)
            ]
            place = folder.relative_to(leaderboards)
            boards.append(Board(place, first.dataset, first.threat, first.protocol, rows, own))
    return sorted(boards, key=lambda board: -sum(len(row.runs) for row in board.rows))


def _ablation_tables(leaderboards: Path, folder: Path, entries: dict[Path, Entry]) -> list[AblationTable]:
    """Return the tables of an ablation, one per protocol; the first has the figure."""
    document, figure = folder / "table.md", folder / "figure.png"
    if not entries or not document.is_file():
        return []
    title, *paragraphs = _document(document)
    found: list[AblationTable] = []
    for name, group in by_protocol(entries, "table").items():
        rows, protocol = read_table(folder / name), next(iter(group.values())).protocol
        picture = figure.relative_to(leaderboards) if not found and figure.is_file() else None
        files = [path.relative_to(leaderboards) for path in group]
        about = document.relative_to(leaderboards)
        found.append(AblationTable(title, paragraphs, rows, protocol, about, picture, files))
    return found


def _document(path: Path) -> list[str]:
    """Return the heading and the paragraphs above the tables of an ablation's document."""
    head = path.read_text(encoding="utf-8").partition("\n## ")[0]
    paragraphs = [text.strip() for text in head.split("\n\n")]
    return [paragraphs[0].removeprefix("# "), *(text for text in paragraphs[2:] if text and not text.startswith("!"))]


def command(*words: str) -> str:
    """Return a command of the benchmark as it is typed."""
    return shlex.join(["python", "-m", "benchmark", *words])


def is_accuracy(column: str) -> bool:
    """Tell whether a column is an accuracy in percent."""
    value = metric_columns()[column][1].value
    return value.endswith("accuracy") or value.startswith("after_")


def board_rows(group: dict[Path, Entry]) -> list[BoardRow]:
    """Return the rows of a board, best first, from its entries by file relative to the leaderboards."""
    files = {id(entry): path for path, entry in group.items()}
    ranked, rows = standings(group), []
    for runs, standing in ranked:
        interval, ties = (standing[name].replace(ABSENT, "") for name in ("rank_interval", "tie"))
        name = _distinct_name(runs[0], [others[0] for others, _ in ranked])
        rows.append(BoardRow(name, standing["rank"], interval, ties, runs, [files[id(run)] for run in runs]))
    return rows


def _distinct_name(run: Entry, others: Sequence[Entry]) -> str:
    """Return the recipe of a row's run, and what sets it apart from other rows of that recipe."""
    same = [_marks(other) for other in others if other.recipe == run.recipe]
    apart = [mark for place, mark in enumerate(_marks(run)) if len({marks[place] for marks in same}) > 1]
    return f"{run.recipe} ({', '.join(apart)})" if apart else run.recipe


def _marks(run: Entry) -> tuple[str, ...]:
    return f"{run.data.n} images", run.subject.which or "external", _digest(run)


def _digest(run: Entry) -> str:
    return (run.config_digest or run.subject.weights_digest)[:8]
