"""Labelled images in memory, and a data set made of three of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from methods.data.catalogue import slug


def unit(images: Tensor) -> Tensor:
    """Return images as float32 in [0,1]: uint8 is divided by 255, floats are in that range already."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(255)
    return images.to(torch.float32)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, uint8 or float32 in [0,1], [N,C,H,W], and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise ValueError(f"Expected images [N,C,H,W] and labels [N], got shapes {shapes}.")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over shape, type and bytes of images and labels, on any device."""
        sha = hashlib.sha256()
        for tensor in (self.images, self.labels):
            sha.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().numpy().data)
        return sha.hexdigest()

    def select(self, index: Tensor | slice) -> Self:
        """Return the images at ``index`` (int64 [M] on any device, or a slice), in that order."""
        here = self._here(index)
        return type(self)(self.images[here], self.labels[here])

    def to(self, device: torch.device | str) -> Self:
        """Return the set with images and labels on ``device``."""
        return type(self)(self.images.to(device), self.labels.to(device))

    def unit(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return the images at ``index`` as float32 in [0,1], [M,C,H,W]."""
        return unit(self.images[self._here(index)])

    def _here(self, index: Tensor | slice) -> Tensor | slice:
        return index if isinstance(index, slice) else index.to(self.images.device)


@dataclass(frozen=True, eq=False)
class Pool:
    """What a reader of one format returns: the official splits, with the validation images still in train."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set ready for training and evaluation.

    ``mean`` and ``std`` (population) are per channel, in [0,1] units, of ``train`` alone: neither validation
    nor test images enter.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    generated: ImageSet | None = None
    """Generated images that training mixes with ``train``; never validated or tested on."""

    @property
    def slug(self) -> str:
        """The name as a folder name: "imagefolder:/data/My pets" becomes "imagefolder-my-pets"."""
        return slug(self.name)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Digest of each split, keyed "train", "validation", "test"; and "generated" where there are such images."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if self.generated is not None:
            splits["generated"] = self.generated
        return MappingProxyType({name: images.digest for name, images in splits.items()})


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation per channel, in [0,1] units, of images [N,C,H,W].

    A constant channel gets the deviation 1, so that dividing by it is harmless.
    """
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    # In pieces: a float64 copy of 50,000 CIFAR images would take 1.2 GB. Sums of bytes are exact in float64.
    for piece in images.split(1000):
        values = piece.to("cpu", torch.float64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 1e-6 * scale, std / scale, 1.0)
    return tuple((mean / scale).tolist()), tuple(std.tolist())
