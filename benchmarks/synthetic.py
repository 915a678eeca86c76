"""Data sets and trainings that need no download: a recipe of configs/ on random images of any number and size."""

from __future__ import annotations

from typing import Any, get_args

import torch

from benchmark.specs import recipes
from methods.backbones.wide_resnet import Dialect
from methods.data.images import Dataset, ImageSet, channel_statistics
from methods.training.config import Experiment, experiment

BACKBONE = {"depth": 16, "widen": 4}
"""WRN-16-4, in the dialect of the recipe."""
QUICK_BACKBONE = {"depth": 10, "widen": 1}


def dataset(train: int, test: int = 0, *, classes: int = 10, side: int = 32, generated: int = 0) -> Dataset:
    """Return colour images without a validation split, always the same: a mean of each class, and noise around it."""
    random = torch.Generator().manual_seed(0)
    means = torch.rand(classes, 3, side, side, generator=random).mul_(255)

    def images(n: int) -> ImageSet:
        labels = torch.arange(n) % classes
        x = torch.empty(n, 3, side, side, dtype=torch.uint8)
        for part in torch.arange(n).split(1000):
            noise = torch.randn(len(part), 3, side, side, generator=random)
            x[part] = means[labels[part]].add(noise, alpha=32).clamp_(0, 255).to(torch.uint8)
        return ImageSet(x, labels)

    drawn = images(train)
    statistics = channel_statistics(drawn.images)
    names = tuple(map(str, range(classes)))
    more = images(generated) if generated else None
    return Dataset("npz:synthetic.npz", names, drawn, images(0), images(test), *statistics, more)


def training(recipe: str, *changes: dict[str, Any], quick: bool = False, batch_size: int = 64) -> Experiment:
    """Return a recipe on such images, on a WRN-16-4 and uncompiled, with changes laid over it, the last one on top.

    A recipe for a ResNet-18 gets the plain WRN-16-4, the others that of their dialect.

    Nothing is validated or saved before the very end, which none of the benchmarks waits for.
    """
    own: dict[str, Any] = {
        "backbone": QUICK_BACKBONE if quick else BACKBONE,
        "train": {"batch_size": batch_size, "epochs": 10, "milestones": [], "decay": [], "schedule": "constant"},
        "data": {"density_batch": batch_size},
    }
    own["train"] |= {"epoch_schedule": False, "momentum_cycle": None, "ema": None, "ema_warmup": None}
    own["train"] |= {"validate_every": 10, "checkpoint_seconds": 1e9, "compile": False, "drop_last": True}
    for change in changes:
        own = recipes.merge(own, change)
    merged = recipes.settings(recipe, "npz:synthetic.npz", seed=0, changes=own, threat="Linf:8/255")
    if merged["backbone"]["architecture"] not in get_args(Dialect):
        merged["backbone"]["architecture"] = "wrn"
    return experiment(merged)
