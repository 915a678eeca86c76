"""CIFAR-10 and CIFAR-100 as torchvision downloads them."""

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from methods.data.images import ImageSet, Pool
from methods.errors import InputError


def read(name: str, root: Path) -> Pool:
    """Return "cifar10" or "cifar100" as uint8 [N,3,32,32] in the official order; downloads to ``root`` once.

    Raises:
        InputError: the archive is neither under ``root`` nor to be had from the network.
    """
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    # A failed download is a URLError (an OSError) or a RuntimeError, depending on where it failed.
    try:
        train, test = (source(root, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        remedy = f"place {source.filename} in {root} (source: {source.url})"
        raise InputError(f"{name} could not be downloaded ({reason}): {remedy}.") from error
    images = (torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous() for half in (train, test))
    labels = (torch.tensor(half.targets) for half in (train, test))
    return Pool(tuple(train.classes), *map(ImageSet, images, labels))
