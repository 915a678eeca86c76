"""Augmentation as batched tensor functions; they keep data type and device.

Random numbers are drawn on the generator's device and then moved, so that a CPU generator gives the same
augmentation wherever the images live.
"""

from typing import Literal

import torch
from torch import Tensor

from methods.errors import InputError

PaddingMode = Literal["zero", "reflect"]


def crop(images: Tensor, padding: int, mode: PaddingMode, generator: torch.Generator) -> Tensor:
    """Pad each image by ``padding`` pixels on every side and cut out a window of the old size at random.

    Zero padding: TRADES, MART; reflection: Rice et al. and the JEM family (adversarial-training practice with
    ``padding=4`` at 32x32). Each image of [B,C,H,W] draws its two offsets uniformly from 0..2*padding. Reflection is
    about the edge pixel, and its padding less than H and W.
    """
    batch, _, height, width = images.shape
    if mode == "reflect" and padding >= min(height, width):
        raise InputError(f"Reflect padding by {padding} pixels needs larger images than {height}x{width}.")
    offsets = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator, device=generator.device)
    offsets = offsets.to(images.device) - padding
    rows = torch.arange(height, device=images.device) + offsets[0]
    columns = torch.arange(width, device=images.device) + offsets[1]
    if mode == "reflect":
        return _gather(images, _reflect(rows, height), _reflect(columns, width))
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return _gather(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1)) * inside[:, None]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image [B,C,H,W] left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Set a square of each image [B,C,H,W] to 0 (DeVries and Taylor 2017, arXiv 1708.04552; 16 at 32x32).

    Its centre is uniform over the pixels, so that a part of the square, ``side`` pixels wide, may lie outside.
    """
    inside = []
    for size in images.shape[2:]:
        centre = torch.randint(size, (len(images), 1), generator=generator, device=generator.device).to(images.device)
        first = centre - side // 2
        place = torch.arange(size, device=images.device)
        inside.append((place >= first) & (place < first + side))
    hidden = inside[0][:, :, None] & inside[1][:, None, :]
    return images * ~hidden[:, None]


def _reflect(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick rows [B,H] and columns [B,W] of each image [B,C,H,W]."""
    batch, channels = images.shape[:2]
    image = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
