"""The folder of a run: where it lies, and what is in it.

- config.yaml: the resolved experiment
- log.jsonl: one JSON object a line for each step, validation and intervention
- weights.safetensors and best.safetensors: the last weights, and the best by validation
- last-buffer.safetensors and best-buffer.safetensors: the replay buffer at the same moments, where there is one
- samples/: grids of the replay buffer
- manifest.json: how the training ended, with what weights, and what code and device trained them
- state.pt and good-*.pt: what a resume and a rollback need (``state``), gone when the training has ended
"""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
import yaml
from torch import Tensor

from methods.backbones import Classifier
from methods.data import Dataset
from methods.errors import InputError
from methods.files import write_json, write_text
from methods.primitives import ranks
from methods.training.checkpoint import BUFFERS, FILES, save_weights
from methods.training.config import Experiment
from methods.training.guard import Alarm, Detector, Guard, read_log
from methods.training.method import Losses, Method
from methods.training.pictures import save_buffer

STATE = "state.pt"
MANIFEST = "manifest.json"
LOG = "log.jsonl"


def run_folder(runs: Path, experiment: Experiment, dataset: Dataset) -> Path:
    """Return ``runs/<recipe>/<dataset>/<digest8>-s<seed>``."""
    digest = experiment.digest(dataset.digests)
    return runs / experiment.recipe / dataset.slug / f"{digest[:8]}-s{experiment.seed}"


def writes() -> bool:
    """Tell whether this process writes into the folder: of several ranks, the first alone does."""
    return ranks.rank() == 0


def best_files(folder: Path) -> tuple[Path, Path]:
    """Return where the best weights lie, and the replay buffer with them; either may not exist."""
    return folder / FILES["best"], folder / BUFFERS["best"]


def write_config(folder: Path, experiment: Experiment) -> None:
    """Write the resolved experiment as YAML."""
    write_text(folder / "config.yaml", yaml.safe_dump(experiment.resolved(), sort_keys=False))


def save_result(folder: Path, which: Literal["best", "last"], model: Classifier, method: Method, about: Any) -> None:
    """Write the weights to be evaluated, described by ``about``, and the replay buffer where there is one."""
    save_weights(folder / FILES[which], model.state_dict(), about | {"which": which})
    if method.samples is not None:
        save_buffer(folder / BUFFERS[which], method.samples)


def describe(experiment: Experiment, dataset: Dataset, method: Method) -> dict[str, Any]:
    """Return what a weights file says of itself, as plain JSON data."""
    return {
        "backbone": asdict(experiment.backbone),
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "recipe": experiment.recipe,
        "method": experiment.method,
        "dataset": dataset.name,
        "threat": experiment.threat,
        "seed": experiment.seed,
        "digest": experiment.digest(dataset.digests),
        "options": experiment.resolved()["options"],
        "generation": method.generation,
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the record of a finished or failed run; an empty mapping while there is none.

    Raises:
        InputError: the file is truncated or foreign.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path} is truncated or foreign; delete it to train again.")
    return found


def write_manifest(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a training that has ended, and remove what only a resume or a rollback needs."""
    write_json(folder / MANIFEST, record)
    (folder / STATE).unlink(missing_ok=True)
    remove_snapshots(folder)


def remove_snapshots(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the snapshots for a rollback but those whose names are to be kept."""
    for path in folder.glob("good-*.pt"):
        if path.name not in keep:
            path.unlink()


class RunLog:
    """The log of a run as it grows, and the detector that reads each line.

    What the detector has seen is a function of the lines, so a resumed training restores it from the file.
    """

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
    """Open a run's log for appending, cut to the ``length`` in bytes that it had at the checkpoint that is resumed.

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
    values = _numbers({"loss": losses.total} | losses.terms | {"gradient_norm": gradient_norm})
    nonfinite = sum(not math.isfinite(value) for value in values.values())
    return {"lr": lr, **values, "nonfinite": nonfinite + int(values.get("inner_nonfinite", 0))}


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
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
