"""Whether one method is better than another: paired tests of two entries, or of two rows of a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.leaderboard.aggregate import by_protocol, experiments, measured, metric_columns, verdicts
from benchmark.results.entry import Entry, read_entry
from benchmark.results.layout import entry_path, read_entries, table_folders
from benchmark.results.significance import Difference, difference, interval
from benchmark.specs.recipes import find_recipe
from methods.data.catalogue import slug
from methods.errors import InputError, nearest
from methods.primitives.norm_ball import NormBall

_STEPS_OF_ANOTHER = "cascade_"
"""Columns left out: accuracies on the way to AutoAttack's."""


@dataclass(frozen=True)
class Accuracy:
    """Mean over seeds in percent, with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Outcome:
    """Two methods in one column of the table."""

    column: str
    a: Accuracy
    b: Accuracy
    difference: Difference
    """a minus b."""
    only_a: float
    """Number of images that only a has right; with several seeds, the mean over all pairs of them."""
    only_b: float


@dataclass(frozen=True)
class Comparison:
    """Two methods under one protocol, on the same images."""

    a: str
    b: str
    dataset: str
    threat: str
    protocol: str
    n: int
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    """Caveats: what is left out, masked, partial or of a single seed."""


def compare(
    a: str,
    b: str,
    leaderboards: Path,
    *,
    dataset: str | None = None,
    threat: str | None = None,
    protocol: str | None = None,
) -> Comparison:
    """Compare two methods in every accuracy that both have, image by image.

    Each is an entry's file, hence one checkpoint; or a row of a table with all of its seeds: a recipe's name, or parts
    of its entries' file names where the table has several rows of it, such as "trades-a52141d1".

    Args:
        a: one method.
        b: the other.
        leaderboards: where the tables are.
        dataset: of the table, where both are in several.
        threat: of the table, such as "Linf:8/255".
        protocol: its id, or the beginning of its hash; None: the newest standard one that both were measured under.

    Raises:
        InputError: an entry cannot be read or found, or the two cannot be compared; the sentence says why.
    """
    files = {name: read_entry(Path(name)) for name in (a, b) if Path(name).suffix == ".json" or Path(name).is_file()}
    wanted = _Wanted(dataset, threat, protocol, None)
    for entry in files.values():
        wanted = _Wanted(entry.dataset, entry.threat, entry.protocol.hash, entry.data.n)
    rows: dict[str, Sequence[Entry]] = {name: [entry] for name, entry in files.items()}
    if names := [name for name in dict.fromkeys((a, b)) if name not in files]:
        rows |= _rows(names, leaderboards, wanted)
    labels = [
        f"{first.recipe} (seed {first.seed})" if name in files and first.seed is not None else first.recipe
        for name, first in ((name, rows[name][0]) for name in (a, b))
    ]
    if labels[0] == labels[1]:
        labels = [Path(name).stem if name in files else name for name in (a, b)]
    _refuse(labels[0], rows[a], labels[1], rows[b])
    return _compared(labels[0], rows[a], labels[1], rows[b])


def lines(comparison: Comparison) -> Iterator[str]:
    """Yield a comparison as text."""
    a, b = comparison.a, comparison.b
    yield (
        f"{a} and {b} on {comparison.dataset} at {comparison.threat}, {comparison.protocol}, "
        f"n = {comparison.n} images; 95 % intervals"
    )
    for outcome in comparison.outcomes:
        yield f"{outcome.column}: {sentence(comparison, outcome)}"
        for name, own in ((a, outcome.a), (b, outcome.b)):
            seeds = f"{own.seeds} seed{'s' if own.seeds > 1 else ''}"
            yield f"  {name}: {own.value:.2f} % [{own.low:.2f}, {own.high:.2f}], {seeds}"
        only_a, only_b = f"{outcome.only_a:.4g}", f"{outcome.only_b:.4g}"
        yield f"  images that only {a} has right: {only_a}; only {b}: {only_b}; {outcome.difference.test}"
    for note in comparison.notes:
        yield f"note: {note}"


def sentence(comparison: Comparison, outcome: Outcome) -> str:
    """Return who is ahead in a column, by how much, and whether that is significant."""
    found = outcome.difference
    p = "p < 0.0001" if found.p < 1e-4 else f"p = {found.p:.2g}"
    points, low, high = found.points, found.low, found.high
    if not found.significant:
        minus = f"{comparison.a} minus {comparison.b}"
        return f"no significant difference ({minus}: {points:z.1f} points [{low:z.1f}, {high:z.1f}], {p})."
    ahead = comparison.a
    if points < 0:
        ahead, points, low, high = comparison.b, -points, -high, -low
    return f"{ahead} is ahead by {points:z.1f} points [{low:z.1f}, {high:z.1f}], {p}."


@dataclass(frozen=True)
class _Wanted:
    """Conditions that a table has to meet; None in a field: any."""

    dataset: str | None
    threat: str | None
    protocol: str | None
    n: int | None

    def has(self, entry: Entry) -> bool:
        """Tell whether an entry is in such a table."""
        protocol = entry.protocol
        return (
            (self.dataset is None or slug(self.dataset) == slug(entry.dataset))
            and (self.threat is None or NormBall.parse(self.threat) == NormBall.parse(entry.threat))
            and self.n in (None, entry.data.n)
            and (self.protocol in (None, protocol.id) or protocol.hash.startswith(self.protocol or ""))
        )

    def __str__(self) -> str:
        given = {"data set": self.dataset, "threat model": self.threat, "protocol": self.protocol, "n =": self.n}
        return "".join(f", {name} {value}" for name, value in given.items() if value is not None)


def _rows(names: Sequence[str], leaderboards: Path, wanted: _Wanted) -> dict[str, Sequence[Entry]]:
    """Return the runs behind each name, all from one table."""
    places: dict[Path, dict[str, Sequence[Entry]]] = {}
    known: set[str] = set()
    matched: set[str] = set()
    for folder in table_folders(leaderboards):
        entries = {path: entry for path, entry in read_entries(folder).items() if wanted.has(entry)}
        for group in by_protocol(entries, "").values():
            table = experiments(group)
            known |= {runs[0].recipe for runs in table}
            found = {name: _matching(name, table) for name in names}
            matched |= {name for name, rows in found.items() if rows}
            if all(found.values()) and folder not in places:
                places[folder] = {name: _only(name, rows, folder) for name, rows in _on_most_images(found).items()}
    if len(places) == 1:
        return next(iter(places.values()))
    if places:
        listed = ", ".join(str(folder.relative_to(leaderboards)) for folder in places)
        raise InputError(f"{' and '.join(names)} are in several tables ({listed}): choose with --dataset and --threat.")
    for name in names:
        if name not in matched:
            raise InputError(f'There is no entry of "{name}" in {leaderboards}{wanted}.{nearest(name, known)}')
    raise InputError(
        f"{' and '.join(names)} have no table in common in {leaderboards}{wanted}: numbers of different data sets, "
        "threat models or protocols are not compared."
    )


def _matching(name: str, table: Sequence[Sequence[Entry]]) -> list[Sequence[Entry]]:
    """Return the experiments that a name may mean."""
    try:
        recipe = find_recipe(name)
    except InputError:
        recipe = name
    found = [runs for runs in table if runs[0].recipe == recipe]
    if not found:
        parts = set(name.split("-"))
        found = [runs for runs in table if all(parts <= set(_stem(run).split("-")) for run in runs)]
    return found


def _on_most_images(found: dict[str, list[Sequence[Entry]]]) -> dict[str, list[Sequence[Entry]]]:
    """Return, of the experiments found for each name, those on the largest number of images that all names have."""
    shared = set.intersection(*({runs[0].data.n for runs in rows} for rows in found.values()))
    if not shared:
        return found
    return {name: [runs for runs in rows if runs[0].data.n == max(shared)] for name, rows in found.items()}


def _only(name: str, rows: Sequence[Sequence[Entry]], folder: Path) -> Sequence[Entry]:
    if len(rows) == 1:
        return rows[0]
    listed = ", ".join(_stem(runs[0]) for runs in rows)
    raise InputError(f'"{name}" may be several rows in {folder}: add parts of one\'s file names ({listed}).')


def _stem(entry: Entry) -> str:
    return entry_path(Path(), entry).stem


def _refuse(name_a: str, a: Sequence[Entry], name_b: str, b: Sequence[Entry]) -> None:
    """Refuse two methods whose outcomes are not of the same images, in the same order, attacked in the same way."""
    both = [*a, *b]
    for what, of in (
        ("data sets", [slug(run.dataset) for run in both]),
        ("threat models", [run.threat for run in both]),
        ("protocols", [f"{run.protocol.id} ({run.protocol.hash})" for run in both]),
        ("test images", [f"SHA-256 {run.data.digests.get('test', 'unknown')[:12]}" for run in both]),
        ("numbers of test images", [str(run.data.n) for run in both]),
    ):
        if len(found := list(dict.fromkeys(of))) > 1:
            raise InputError(
                f"{name_a} and {name_b} cannot be compared: they have different {what}: {', '.join(found)}."
            )


def _compared(name_a: str, a: Sequence[Entry], name_b: str, b: Sequence[Entry]) -> Comparison:
    outcomes: list[Outcome] = []
    notes: list[str] = []
    for column in metric_columns():
        found_a, found_b = verdicts(a, column), verdicts(b, column)
        if column.startswith(_STEPS_OF_ANOTHER) or (found_a is None and found_b is None):
            continue
        if found_a is not None and found_b is not None:
            if found_a.shape[1] != found_b.shape[1]:
                raise InputError(f"{name_a} and {name_b} have {column} of different numbers of images.")
            outcomes.append(_outcome(column, found_a, found_b))
        else:
            lacking = name_a if found_a is None else name_b
            notes.append(f"{column} is left out, because {lacking} has no outcomes per image of it.")
    if not outcomes:
        raise InputError(_incomparable({name_a: a, name_b: b}))
    notes += _doubts(name_a, a, {outcome.column: outcome.a for outcome in outcomes})
    notes += _doubts(name_b, b, {outcome.column: outcome.b for outcome in outcomes})
    first = a[0]
    if first.partial:
        notes.append(f"Only the first {first.data.n} of {first.data.of} test images were measured.")
    if len(outcomes) > 1:
        notes.append("The p values are not corrected for the number of columns.")
    return Comparison(
        name_a, name_b, first.dataset, first.threat, first.protocol.id, first.data.n, tuple(outcomes), tuple(notes)
    )


def _incomparable(rows: dict[str, Sequence[Entry]]) -> str:
    for name, runs in rows.items():
        if not any(found.verdicts for run in runs for found in run.measurements.values()):
            return f"{name} has no outcomes per image, with which it could be compared: evaluate it again."
    return f"{' and '.join(rows)} have no accuracy in common."


def _doubts(name: str, runs: Sequence[Entry], accuracies: Mapping[str, Accuracy]) -> Iterator[str]:
    masking = measured(runs, "masking")
    if masking.startswith("suspect"):
        yield f"Gradient masking of {name}: {masking}."
    if single := [column for column, accuracy in accuracies.items() if accuracy.seeds == 1]:
        where = "" if len(single) == len(accuracies) else f" in {', '.join(single)}"
        yield (
            f"{name} has a single seed{where}: how its trainings would differ is unknown, and neither in the intervals "
            "nor in the tests."
        )


def _outcome(column: str, a: np.ndarray, b: np.ndarray) -> Outcome:
    share_a, share_b = a.mean(0), b.mean(0)
    only_a, only_b = float((share_a * (1 - share_b)).sum()), float((share_b * (1 - share_a)).sum())
    return Outcome(column, _accuracy(a), _accuracy(b), difference(a, b), only_a, only_b)


def _accuracy(found: np.ndarray) -> Accuracy:
    return Accuracy(100 * float(found.mean()), *interval(found), len(found))
