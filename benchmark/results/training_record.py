"""The record of a training in its entry: the run's manifest, the first and last epoch of its log, and its curves."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods.training.guard import Line, read_log

POINTS = 40
"""Most points that a curve has, each the mean over an equal span of steps, so that an entry stays small."""
_KEPT = (
    *("epochs", "steps", "seconds", "precision", "devices", "best"),
    *("interventions", "restarts", "collapse", "provenance"),
)
_POSITION = ("step", "epoch")
_LOGGED_GAP = ("energy_gap_logged", "energy_adv", "energy_clean")
_CURVES = (
    *("loss", "accuracy_clean", "accuracy_adv", "energy_clean", "energy_adv", "energy_gap_logged"),
    *("energy_data", "energy_samples", "gradient_norm", "lr", "validation_clean", "validation_robust"),
)
_DIGITS = 5


def training_record(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's record with ``first_epoch`` and ``last_epoch``, the mean of each term of the log.

    They hold besides ``energy_gap_logged``, the mean of E(x_adv) - E(x) (marginal energies of the labelled images,
    in nats) over the lines that have both. A stopped training's last epoch is the one in which it stopped.

    ``curves`` holds the terms that tell how a training went, name -> a number a point, of the same length as
    ``epoch``: means over at most :data:`POINTS` equal spans of steps, to five digits; None where a span has no finite
    value. Accuracies and ``validation_*`` are in percent. Nothing of what a rollback undid is in any of these.

    Raises:
        InputError: the log is missing or damaged.
    """
    record = {key: manifest[key] for key in _KEPT if key in manifest}
    lines = _replayed(folder / "log.jsonl")
    steps = [line for line in lines if "loss" in line]
    if steps:
        last = math.ceil(steps[-1]["epoch"])
        for name, number in (("first_epoch", 1), ("last_epoch", last)):
            record[name] = _means([line for line in steps if number - 1 < line["epoch"] <= number])
        record["curves"] = _curves(lines)
    return record


def _replayed(log: Path) -> list[Line]:
    """Return the log's lines of steps and validations in order, without what a rollback undid."""
    lines: list[Line] = []
    for line in read_log(log):
        rollback, validation = line.get("event") == "rollback", "validation" in line
        if not (rollback or validation or "loss" in line):
            continue
        # A validation follows the line of its step, and does not replace it.
        first = line["to"] + 1 if rollback else line["step"] + validation
        while lines and lines[-1]["step"] >= first:
            lines.pop()
        if not rollback:
            lines.append(line)
    return lines


def _curves(lines: list[Line]) -> dict[str, list[float | None]]:
    spans: dict[int, list[Line]] = {}
    last = lines[-1]["step"]
    for line in lines:
        validation = {f"validation_{name}": value for name, value in line.get("validation", {}).items()}
        spans.setdefault((line["step"] - 1) * POINTS // last, []).append({**line, **validation})
    means = [_means(span) | {"epoch": statistics.fmean(line["epoch"] for line in span)} for span in spans.values()]
    names = ("epoch", *(name for name in _CURVES if any(name in mean for mean in means)))
    return {name: [float(f"{mean[name]:.{_DIGITS}g}") if name in mean else None for mean in means] for name in names}


def _means(lines: list[Line]) -> dict[str, float]:
    name, adversarial, clean = _LOGGED_GAP
    values: dict[str, list[float]] = {}
    for line in lines:
        found = {term: value for term, value in line.items() if term not in _POSITION and _finite(value)}
        if adversarial in found and clean in found:
            found[name] = found[adversarial] - found[clean]
        for term, value in found.items():
            values.setdefault(term, []).append(value)
    return {term: statistics.fmean(found) for term, found in values.items()}


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
