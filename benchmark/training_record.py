"""What an entry keeps of its training: the run's manifest and the first and last epoch of its log."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods.training.guard import Line, read_log

_KEPT = ("epochs", "steps", "seconds", "precision", "best", "interventions", "restarts", "collapse", "provenance")
_POSITION = ("step", "epoch")
_LOGGED_GAP = ("energy_gap_logged", "energy_adv", "energy_clean")


def training_record(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's record with ``first_epoch`` and ``last_epoch``, the mean of each term of the log.

    They hold besides ``energy_gap_logged``, the mean of E(x_adv) - E(x) (marginal energies of the labelled images,
    in nats) over the lines that have both. A stopped training's last epoch is the one in which it stopped.

    Raises:
        InputError: the log is missing or damaged.
    """
    record = {key: manifest[key] for key in _KEPT if key in manifest}
    lines = _replayed(folder / "log.jsonl")
    if lines:
        last = math.ceil(lines[-1]["epoch"])
        for name, number in (("first_epoch", 1), ("last_epoch", last)):
            record[name] = _means([line for line in lines if number - 1 < line["epoch"] <= number])
    return record


def _replayed(log: Path) -> list[Line]:
    """Return the log's lines of steps in order, without what a rollback undid."""
    lines: list[Line] = []
    for line in read_log(log):
        rollback = line.get("event") == "rollback"
        first = line["to"] + 1 if rollback else line["step"]
        if not rollback and "loss" not in line:
            continue
        while lines and lines[-1]["step"] >= first:
            lines.pop()
        if not rollback:
            lines.append(line)
    return lines


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
