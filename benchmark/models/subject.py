"""Subjects: the models that are evaluated, from this project's checkpoints or from elsewhere."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from benchmark.models.output_probes import training_mode
from benchmark.models.probes import probe
from methods.backbones import BackboneConfig
from methods.backbones.resnet import PAPER_WIDEN, Shape
from methods.data import Dataset
from methods.errors import InputError
from methods.training.checkpoint import BUFFERS, FILES, load_checkpoint
from methods.training.config import overlay

_TRIED = 100
"""Test images that a model from elsewhere is tried on."""
_REFUSED = ("forward pass", "output shape", "finite outputs")
"""Findings that leave nothing to evaluate."""


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, images [B,C,H,W] in [0,1] to logits [B,K]: eval mode, float32, on its device."""

    name: str
    model: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    device: torch.device
    digest: str
    """SHA-256 of the weights, see :func:`weights_digest`."""
    code: str
    """SHA-256 of what makes the weights a function: the backbone's settings, or the source files of your own model."""
    kind: Literal["checkpoint", "external"]
    metadata: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    """Reasons to doubt what is measured on it."""
    buffer: Path | None = None
    """File of the replay buffer, where the training had one."""

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def architecture(self) -> str:
        """Name of the network, such as ``wrn-28-10`` or, 64 channels wide, ``resnet-18``; else the model's class."""
        backbone = self.metadata.get("backbone")
        if backbone is None:
            return type(self.model).__name__
        config = overlay(BackboneConfig(), backbone, "backbone")
        name = config.architecture
        if name.startswith("timm:"):
            return name
        usual = name in get_args(Shape) and config.widen == PAPER_WIDEN
        return f"{name}-{config.depth}" + ("" if usual else f"-{config.widen}")

    def logits(self, x: Tensor, batch_size: int | None = None) -> Tensor:
        """Return logits [B,K] in float32, ``batch_size`` images at a time; FloatingPointError: not all are finite."""
        batches = (x,) if batch_size is None else x.split(batch_size)
        logits = torch.cat([self.model(batch) for batch in batches]).float()
        if not bool(logits.isfinite().all()):
            raise FloatingPointError("the model's outputs are not finite (NaN or infinite)")
        return logits


def from_checkpoint(path: Path, device: torch.device, which: Literal["best", "last"] = "best") -> Subject:
    """Load a model of this project from its weights file or run folder; raise InputError where there is none."""
    checkpoint = load_checkpoint(path, which)
    model, metadata = checkpoint.model, checkpoint.metadata
    model.autocast = None
    backbone = json.dumps(metadata["backbone"], sort_keys=True)
    buffers = {FILES[kind]: checkpoint.path.with_name(name) for kind, name in BUFFERS.items()}
    buffer = buffers.get(checkpoint.path.name)
    return Subject(
        name=metadata.get("recipe", checkpoint.path.parent.name),
        # Faster convolutions on CPUs, and the layout that Tensor Cores want.
        model=model.to(device).to(memory_format=torch.channels_last).float().eval(),
        num_classes=model.num_classes,
        image_shape=model.image_shape,
        device=device,
        digest=weights_digest(model),
        code=hashlib.sha256(backbone.encode()).hexdigest(),
        kind="checkpoint",
        metadata=metadata,
        buffer=buffer if buffer is not None and buffer.is_file() else None,
    )


def external(
    name: str, model: nn.Module, dataset: Dataset, device: torch.device, *, code: str, metadata: dict[str, Any]
) -> Subject:
    """Make a subject of a model that this project did not train, and flag what the probes find on a few test images.

    The model maps images [B,C,H,W] in [0,1] to logits [B,K], in float32 on ``device``, and is put into eval mode.
    ``code`` is the SHA-256 of what makes the weights a function, ``metadata`` plain data on where the model comes from.
    InputError: it is no classifier of this data set, or there are no test images.
    """
    if len(dataset.test) == 0:
        raise InputError(f"{dataset.name} has no test images.")
    x, y = dataset.test.unit(slice(0, _TRIED)).to(device), dataset.test.labels[:_TRIED].to(device)
    training = training_mode(model)
    findings = [training, *probe(model.eval(), x, y, dataset.num_classes, dataset.name)[1:]]
    doubts = [found for found in findings if not found.fine]
    for found in doubts:
        if found.name in _REFUSED:
            raise InputError(f"{found.sentence[0].upper()}{found.sentence[1:]}.")
    return Subject(
        name=name,
        model=model,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        device=device,
        digest=weights_digest(model),
        code=code,
        kind="external",
        metadata=metadata,
        flags=[found.sentence for found in doubts],
    )


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights and buffers; see :func:`state_digest`."""
    return state_digest(model.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and bytes of all weights and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
