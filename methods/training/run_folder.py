"""The folder of a run: where it lies, and what is in it when the training has ended.

- config.yaml: the resolved experiment
- log.jsonl: steps, validations and interventions (``run_log``)
- weights.safetensors and best.safetensors: the last weights, and the best by validation
- last-buffer.safetensors and best-buffer.safetensors: the replay buffer at the same moments, where there is one
- samples/: grids of the replay buffer
- manifest.json: how the training ended, with what weights, and what code and device trained them
- state.pt and good-*.pt: what a resume and a rollback need (``rollback``), gone when the training has ended
"""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml

from methods.data import Dataset
from methods.errors import InputError
from methods.files import write_json, write_text
from methods.primitives import ranks
from methods.training.checkpoint import BUFFERS, FILES, save_weights
from methods.training.config import Experiment
from methods.training.method import Method
from methods.training.pictures import save_buffer
from methods.training.setup import Setup
from methods.training.state import TrainState

STATE = "state.pt"
MANIFEST = "manifest.json"


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


def save_result(
    folder: Path,
    which: Literal["best", "last"],
    epoch: int,
    experiment: Experiment,
    dataset: Dataset,
    state: TrainState,
) -> None:
    """Write the weights to be evaluated, with their description, and the replay buffer where there is one."""
    description = describe(experiment, dataset, state.method) | {"epoch": epoch, "which": which}
    save_weights(folder / FILES[which], state.result.state_dict(), description)
    if state.method.samples is not None:
        save_buffer(folder / BUFFERS[which], state.method.samples)


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


def manifest(experiment: Experiment, dataset: Dataset, setup: Setup, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a training as far as it got, but for how it ended, as plain JSON data."""
    state = setup.state
    attack_rows = state.method.attack_rows
    return {
        "recipe": experiment.recipe,
        "dataset": dataset.name,
        "seed": experiment.seed,
        "digest": experiment.digest(dataset.digests),
        "data_digests": dict(dataset.digests),
        "steps": state.done,
        "epochs": state.done / setup.steps_per_epoch,
        "best": asdict(state.best),
        "restarts": state.restarts,
        "interventions": state.history.interventions,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "precision": "bf16" if state.model.autocast else "float32",
        "devices": ranks.count(),
        "undecayed": setup.undecayed,
        "seconds": round(state.history.seconds, 1),
        "provenance": provenance | {"commits": state.history.commits},
        **({} if attack_rows is None else {"attack_rows": attack_rows}),
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
