"""Tensors on disk: weights with a description of themselves, and the state of an exact resume."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from methods.backbones import BackboneConfig, Classifier, build
from methods.errors import InputError
from methods.files import write
from methods.training.config import overlay

FILES = {"last": "weights.safetensors", "best": "best.safetensors"}
BUFFERS = {"last": "last-buffer.safetensors", "best": "best-buffer.safetensors"}
"""The replay buffer as it was with those weights, for methods that have one."""
_DESCRIPTION = "trilemma"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model (eval mode, float32, CPU) and what its file says of it."""

    model: Classifier
    metadata: dict[str, Any]
    path: Path


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors and texts that describe them as a safetensors file, atomically.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """

    def save(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            # The library hides the system's error in one of its own, which is no OSError.
            raise OSError(str(error)) from error

    write(path, save)


def save_weights(path: Path, state: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write weights and buffers with the description that :func:`load_checkpoint` rebuilds the model from."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_tensors(path, tensors, {_DESCRIPTION: json.dumps(description)})


def load_checkpoint(path: Path, which: Literal["best", "last"] = "best") -> Checkpoint:
    """Load a model this project trained from its weights file, or from its run folder.

    Raises:
        InputError: nothing there, truncated, not written by this project, or weights that do not fit the backbone
            the file describes.
    """
    file = path / FILES[which] if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"There is no checkpoint at {file}.")
    try:
        with safe_open(file, framework="pt") as handle:
            description = (handle.metadata() or {}).get(_DESCRIPTION)
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is truncated or no safetensors file: {error}.") from error
    if description is None:
        raise InputError(
            f"{file} was not written by this project; give weights from elsewhere with --model FILE:FACTORY --weights."
        )
    try:
        metadata = json.loads(description)
        model = build(
            overlay(BackboneConfig(), metadata["backbone"], "backbone"),
            metadata["num_classes"],
            tuple(metadata["image_shape"]),
            metadata["mean"],
            metadata["std"],
        )
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        # torch's report begins with a heading; its second line names the first weight that does not fit.
        reason = (str(error).splitlines() or [type(error).__name__])[:2][-1].strip().rstrip(".")
        raise InputError(f"The weights in {file} do not fit the backbone the file describes: {reason}.") from error
    return Checkpoint(model.eval(), metadata, file)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state of an exact resume: tensors and plain data only."""
    write(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict[str, Any]:
    """Read the state of an exact resume.

    Raises:
        InputError: the file is truncated or foreign.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is truncated or foreign ({reason}); delete it to train from the start.") from error
