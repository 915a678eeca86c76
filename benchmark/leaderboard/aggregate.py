"""Values over the seeds of an experiment: which entries make one, their means and their intervals, as text."""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from benchmark.results import significance
from benchmark.results.entry import Entry, Measurement, Value, unpack
from benchmark.results.reported import Number, differences
from benchmark.specs import registry
from benchmark.specs.registry import Column
from methods.errors import InputError

ABSENT, FAILED = "-", "failed"
SUSPECT = "suspect: "
"""Beginning of what the metric masking says where it does not say "clear"; the names of its failed checks follow."""

MEANINGS = {
    "seeds": "training runs behind the row; with several, cells are mean ± standard deviation (n - 1)",
    "partial": "images measured, where not the whole test split",
    "restarts": "how often a collapsed training was put back to an earlier state, over all seeds",
    "collapsed_at": "epoch of every collapse, by seed, whether the training went on or stopped there",
    "budget": "how the training is scaled down from its paper's",
    "selection": "checkpoint: best on the validation split, or last",
    "flags": "number of doubts that each metric recorded; the entry has them verbatim",
}


def by_protocol(entries: dict[Path, Entry], stem: str) -> dict[str, dict[Path, Entry]]:
    """Return the entries that may share a table under its file's name: ``<stem>.csv`` for the newest standard
    protocol, which comes first, and ``<stem>-<id>-<hash>.csv`` for every other one.
    """
    groups: dict[tuple[str, str], dict[Path, Entry]] = defaultdict(dict)
    for path, entry in entries.items():
        groups[entry.protocol.id, entry.protocol.hash][path] = entry

    def standing(key: tuple[str, str]) -> tuple[bool, list[tuple[int, str]], int, str]:
        # Numbers count as such, so that v10 comes after v9.
        parts = [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key[0])]
        return _is_standard(groups[key]), parts, len(groups[key]), key[1]

    files: dict[str, dict[Path, Entry]] = {}
    for key in sorted(groups, key=standing, reverse=True):
        main = not files and _is_standard(groups[key])
        files[f"{stem}.csv" if main else f"{stem}-{key[0]}-{key[1][:8]}.csv"] = groups[key]
    return files


def _is_standard(group: dict[Path, Entry]) -> bool:
    return next(iter(group.values())).protocol.role == "standard"


def experiments(group: dict[Path, Entry]) -> list[list[Entry]]:
    """Return the entries of each experiment, by seed.

    Raises:
        InputError: two entries are the same run; the sentence names both.
    """
    found: dict[tuple[str, ...], dict[int | None, Path]] = defaultdict(dict)
    for path, entry in group.items():
        first = found[identity(entry)].setdefault(entry.seed, path)
        if first is not path:
            raise InputError(f"The entries {first} and {path} are the same run twice; remove one.")
    by_seed = [sorted(seeds.items(), key=lambda item: (item[0] is not None, item[0] or 0)) for seeds in found.values()]
    return [[group[path] for _, path in seeds] for seeds in by_seed]


def identity(entry: Entry) -> tuple[str, ...]:
    """Return what the seeds of one row share."""
    external = entry.subject.weights_digest if entry.subject.kind == "external" else ""
    which = entry.subject.which or ""
    return entry.recipe, entry.config_digest or "", which, f"{entry.data.n}/{entry.data.of}", external


def described(runs: Sequence[Entry]) -> dict[str, str]:
    """Return the cells that say what was trained and how it was measured."""
    first = runs[0]
    return {
        "dataset": first.dataset,
        "threat": first.threat,
        "seeds": str(len(runs)) if first.seed is not None else ABSENT,
        "restarts": restarts(runs),
        "collapsed_at": collapsed_at(runs),
        "protocol": first.protocol.id,
        "architecture": first.subject.architecture,
        "n": str(first.data.n),
        "partial": f"{first.data.n} of {first.data.of}" if first.partial else ABSENT,
        "config_digest": first.config_digest[:8] if first.config_digest else ABSENT,
        "budget": str(first.training.get("budget") or ABSENT),
        "selection": first.subject.which or ABSENT,
        "flags": _flags(runs),
    }


def _flags(runs: Sequence[Entry]) -> str:
    counts = Counter({"subject": sum(len(run.subject.flags) for run in runs)})
    for run in runs:
        counts.update({metric: len(found.flags) for metric, found in sorted(run.measurements.items())})
    return ", ".join(f"{metric}: {count}" for metric, count in counts.items() if count) or ABSENT


def restarts(runs: Sequence[Entry]) -> str:
    """Return how often trainings were put back, such as ``2 (1 of 3 seeds)``; ABSENT where no record says so."""
    counts = [run.training.get("restarts") for run in runs]
    known = [count for count in counts if count is not None]
    if len(known) < len(runs):
        return ABSENT
    affected = sum(count > 0 for count in known)
    return f"{sum(known)} ({affected} of {len(runs)} seeds)" if affected and len(runs) > 1 else str(sum(known))


def collapsed_at(runs: Sequence[Entry]) -> str:
    """Return the epochs of all collapses by seed, such as ``s1: 3.2, 7.9; s2: 4.0``; ABSENT where there was none."""
    told = []
    for run in runs:
        events = [*(run.training.get("interventions") or []), run.training.get("collapse")]
        if epochs := [f"{event['epoch']:.1f}" for event in events if event]:
            told.append(f"s{run.seed}: {', '.join(epochs)}")
    return "; ".join(told) or ABSENT


@cache
def metric_columns() -> dict[str, tuple[str, Column]]:
    """Return the columns that the metrics fill: name -> (metric, column)."""
    return {
        name: (metric, column) for metric in registry.names() for name, column in registry.get(metric).COLUMNS.items()
    }


def values(runs: Iterable[Entry], column: str) -> list[Value]:
    """Return the column's value of each run that has it; FAILED where its metric failed."""
    metric, place = metric_columns()[column]
    found: list[Value] = []
    for run in runs:
        measurement = run.measurements.get(metric)
        if measurement is not None:
            found.append(FAILED if measurement.status == "failed" else measurement.values.get(place.value))
    return found


def done(runs: Iterable[Entry], metric: str) -> list[Measurement]:
    """Return the runs' measurements by a metric that did not fail."""
    found = (run.measurements.get(metric) for run in runs)
    return [measurement for measurement in found if measurement is not None and measurement.status == "done"]


def numbers(runs: Iterable[Entry], column: str) -> list[float]:
    """Return the numbers among the column's values."""
    if column not in metric_columns():
        return []
    return [value for value in values(runs, column) if isinstance(value, int | float)]


def measured(runs: Sequence[Entry], column: str) -> str:
    """Return the cell of a column that a metric fills; ABSENT where no metric fills it."""
    if column not in metric_columns():
        return ABSENT
    found = values(runs, column)
    failed = found.count(FAILED)
    kept = numbers(runs, column)
    words = [value for value in found if isinstance(value, str) and value != FAILED]
    if not kept and not words:
        return FAILED if failed else ABSENT
    text = mean(kept, metric_columns()[column][1].digits) if kept else _said(words)
    if (known := len(kept or words)) < len(runs):
        text += f" ({known} of {len(runs)}{f', {failed} failed' if failed else ''})"
    return text


def _said(words: Sequence[str]) -> str:
    """Return what the seeds' words come to; of suspicions, how many seeds have some, and which."""
    suspected = [word.removeprefix(SUSPECT) for word in words if word.startswith(SUSPECT)]
    if not suspected or len(words) == 1:
        return ", ".join(dict.fromkeys(words))
    names = dict.fromkeys(name for text in suspected for name in text.split(", "))
    return f"suspect ({len(suspected)} of {len(words)} seeds): {', '.join(names)}"


def difference(runs: Sequence[Entry], number: Number | None) -> str:
    """Return the mean over seeds minus a quoted number, and in brackets what sets the two apart.

    ABSENT where nothing is quoted or measured. The settings of a row's seeds are the same, and so are the flags.
    """
    found = numbers(runs, number.metric) if number else []
    if number is None or not found:
        return ABSENT
    return flagged(statistics.fmean(found) - number.value, differences(number, runs[0]))


def flagged(difference: float, flags: Sequence[str], digits: int = 2) -> str:
    """Return the text of a difference, which never stands without what sets its two numbers apart."""
    return f"{difference:+.{digits}f}" + (f" ({', '.join(flags)})" if flags else "")


def verdicts(runs: Iterable[Entry], column: str) -> np.ndarray | None:
    """Return the outcomes per image behind an accuracy, bool [seeds, n]; None where a seed that has it lacks them.

    Raises:
        InputError: those of an entry are damaged.
    """
    if column not in metric_columns():
        return None
    metric, place = metric_columns()[column]
    found: list[np.ndarray] = []
    for run in runs:
        measurement = run.measurements.get(metric)
        if measurement is None or not isinstance(measurement.values.get(place.value), int | float):
            continue
        if place.value not in measurement.verdicts:
            return None
        try:
            found.append(unpack(measurement.verdicts[place.value], measurement.n))
        except InputError as error:
            raise InputError(f"{column} of {run.recipe}, seed {run.seed}: {error}") from error
    return np.stack(found) if found and len({len(one) for one in found}) == 1 else None


def interval(runs: Sequence[Entry], column: str) -> str:
    """Return the cell with an accuracy's 95 % interval; ABSENT where there are no outcomes per image."""
    found = verdicts(runs, column)
    if found is None:
        return ABSENT
    low, high = significance.interval(found)
    return span(f"{low:.2f}", f"{high:.2f}")


def span(low: str, high: str) -> str:
    """Return ``low–high``, or one of them where they are the same."""
    return low if low == high else f"{low}–{high}"


def mean(found: Sequence[float], digits: int) -> str:
    """Return the mean, with the standard deviation (n - 1) where there are several numbers."""
    text = f"{statistics.fmean(found):.{digits}f}"
    return f"{text} ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else text
