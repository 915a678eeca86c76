"""The log of a run: one JSON object a line for each step, validation and intervention, read by the collapse detector.

What the detector has seen is a function of the lines, so a resumed training restores it from the file.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from methods.errors import InputError
from methods.training.guard import Alarm, Detector, Guard, read_log
from methods.training.method import Losses

LOG = "log.jsonl"


class RunLog:
    """The log of a run as it grows, and the detector that reads each line."""

    def __init__(self, handle: TextIO, detector: Detector) -> None:
        self._handle = handle
        self._detector = detector

    @property
    def quiet(self) -> bool:
        """Whether the last step broke no limit of the guard."""
        return self._detector.quiet

    def observe(self, line: Mapping[str, Any]) -> Alarm | None:
        """Write a line, and return an alarm where it shows a collapse; NaN and infinity are written as null."""
        recorded = _strict(line)
        self._handle.write(json.dumps(recorded, allow_nan=False) + "\n")
        return self._detector.observe(recorded)

    def flush(self) -> int:
        """Hand all lines to the system, and return the length of the file in bytes."""
        self._handle.flush()
        return self._handle.tell()


@contextmanager
def open_log(folder: Path, length: int, guard: Guard) -> Iterator[RunLog]:
    """Open a run's log for appending, cut to what it held at the checkpoint that is resumed.

    Args:
        folder: the run.
        length: bytes to keep, 0 for a new run.
        guard: the limits that the lines are watched for, the kept ones first.

    Raises:
        InputError: the log is shorter than that, or cannot be written, for example because the disk is full.
    """
    path = folder / LOG
    try:
        with open(path, "a+b") as handle:
            if handle.seek(0, os.SEEK_END) < length:
                raise InputError(f"{path} is shorter than at the last checkpoint; delete {folder} to train again.")
            handle.truncate(length)
        with open(path, "a", encoding="utf-8") as handle:
            detector = Detector(guard)
            for line in read_log(path):
                detector.observe(line)
            yield RunLog(handle, detector)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error}.") from error


@contextmanager
def no_log(guard: Guard) -> Iterator[RunLog]:
    """Open a log that keeps nothing, for the ranks that do not write."""
    with open(os.devnull, "w", encoding="utf-8") as handle:
        yield RunLog(handle, Detector(guard))


def step_record(losses: Losses, gradient_norm: Tensor, lr: float) -> dict[str, Any]:
    """Return what the log says of a step: learning rate, loss and its terms, and how many of them are not finite.

    ``nonfinite`` counts the logged values that are NaN or infinite, and those of the inner problem.
    """
    values = numbers({"loss": losses.total} | losses.terms | {"gradient_norm": gradient_norm})
    nonfinite = sum(not math.isfinite(value) for value in values.values())
    return {"lr": lr, **values, "nonfinite": nonfinite + int(values.get("inner_nonfinite", 0))}


def numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return scalar tensors as numbers, with one transfer from each device they lie on."""
    found: dict[str, float] = {}
    for device in {value.device for value in values.values()}:
        names = [name for name, value in values.items() if value.device == device]
        found |= zip(names, torch.stack([values[name].detach().float() for name in names]).tolist(), strict=True)
    return {name: found[name] for name in values}


def _strict(value: Any) -> Any:
    """Return plain data with None for every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
