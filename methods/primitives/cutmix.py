"""CutMix (Yun et al. 2019): a window of each image replaced by another image's."""

from typing import NamedTuple

import torch
from torch import Tensor

from methods.primitives.random import uniform_like


class Box(NamedTuple):
    """Pixels [top, top + height) by [left, left + width)."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, window: float | None, generator: torch.Generator) -> Box:
    """Draw a window around a uniform centre, cut off at the image's edges.

    Args:
        window: its side as a share of the image's (Rebuffi et al. 2021: 20 of 32 pixels); None draws its share of the
            image's area from U(0, 1), that is Beta(1, 1), as the re-implementation does (imrahulr at 6df6a8f).
    """
    area, y, x = uniform_like(torch.empty(3, dtype=torch.float64), generator).tolist()
    share = area**0.5 if window is None else window
    (top, bottom), (left, right) = (
        (max(0, int(at * side) - int(share * side) // 2), min(side, int(at * side) + int(share * side) // 2))
        for at, side in ((y, height), (x, width))
    )
    return Box(top, left, bottom - top, right - left)


def paste(x: Tensor, target: Tensor, box: Box, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Put the box of image ``partner[i]`` into image i, and mix their targets [B, K] by area."""
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    mixed = x.clone()
    mixed[:, :, rows, columns] = x[partner][:, :, rows, columns]
    share = box.height * box.width / (x.shape[2] * x.shape[3])
    return mixed, (1 - share) * target + share * target[partner]


def cutmix(x: Tensor, target: Tensor, window: float | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix the images ``x`` [B, C, H, W] and their targets [B, K] with each other, all in one random box."""
    box = random_box(x.shape[2], x.shape[3], window, generator)
    partner = torch.randperm(len(x), generator=generator, device=generator.device)
    return paste(x, target, box, partner.to(x.device))
