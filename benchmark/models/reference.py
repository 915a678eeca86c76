"""Reference networks: small classifiers trained by this project, whose weights are part of it.

Their features stand in for Inception's where that cannot be had or says nothing (``fid_ref``), and they are the
surrogates of transfer attacks. ``references/<data set>.safetensors`` is the best checkpoint of a run of
``configs/reference.yaml``, and the JSON file beside it that run's manifest: digest of its settings, commit, versions,
accuracy. The seed is none that is evaluated, so that no subject is its own reference. A training and two copies remake
them:

    python -m benchmark train --methods reference --dataset digits --seeds 1000
    cp runs/reference/digits/5fd84fed-s1000/best.safetensors benchmark/models/references/digits.safetensors
    cp runs/reference/digits/5fd84fed-s1000/manifest.json benchmark/models/references/digits.json

and for CIFAR-10, on its JPEG edition, likewise with seed 0 and

    --dataset cifar10-jpeg --set backbone.depth=16 --set backbone.widen=1
    --set train.epochs=5 --set train.warmup_steps=400 --set train.validate_every=5
"""

import hashlib
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmark.models.subject import Subject, from_checkpoint
from methods.backbones import Classifier
from methods.backbones.wide_resnet import WideResNet
from methods.data.images import unit
from methods.errors import InputError

FOLDER = Path(__file__).with_name("references")
_FILES = {"digits": "digits", "cifar10": "cifar10-jpeg", "cifar10-jpeg": "cifar10-jpeg"}
_BATCH = 100


def weights(dataset_name: str) -> Path:
    """Return the weights file of a data set's network, or raise InputError where it has none."""
    if dataset_name not in _FILES:
        raise InputError(f"There is no reference network for {dataset_name} (there is one for {', '.join(_FILES)}).")
    return FOLDER / f"{_FILES[dataset_name]}.safetensors"


def identity(dataset_name: str) -> str | None:
    """Return the SHA-256 of the weights file of a data set's network; None where it has none."""
    return hashlib.sha256(weights(dataset_name).read_bytes()).hexdigest() if dataset_name in _FILES else None


def reference(dataset_name: str, device: torch.device) -> Subject:
    """Load the network of a data set, images in [0, 1] to logits, in eval mode; raise InputError where it has none."""
    return from_checkpoint(weights(dataset_name), device)


@torch.no_grad()
def features(subject: Subject, images: Tensor) -> Tensor:
    """Return the penultimate features, float32 [N,D] on the CPU, of images uint8 [N,C,H,W]."""
    model = cast(Classifier, subject.model)
    batches = (batch.to(subject.device) for batch in images.split(_BATCH))
    return torch.cat([penultimate(model, unit(batch)).cpu() for batch in batches])


def penultimate(model: Classifier, x: Tensor) -> Tensor:
    """Return the pooled features in front of the head, float32 [B,D], of images in [0, 1], [B,C,H,W]."""
    return cast(WideResNet, model.network).features(model.first(x))
