"""Decoding image files."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from methods.errors import InputError

Item = TypeVar("Item")


def decode(file: IO[bytes] | Path, name: str, size: int | None = None) -> np.ndarray:
    """Decode one image file to RGB, uint8 [H,W,3].

    Args:
        file: an open binary file or a path.
        name: what to call the file in the error message.
        size: where given, the largest centred square is resampled (bicubic) to ``size`` x ``size``.

    Raises:
        InputError: Pillow cannot read it.
    """
    # A damaged file makes Pillow raise anything from OSError to SyntaxError, struct.error and its own errors.
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except Exception as error:
        raise InputError(f"{name} is not a readable image.") from error
    if size is not None:
        picture = ImageOps.fit(picture, (size, size))
    return np.asarray(picture)


def stack(pictures: Iterable[np.ndarray], where: str) -> Tensor:
    """Collect pictures [H,W,3] into one tensor [N,3,H,W], with a count on stderr.

    Raises:
        InputError: the pictures differ in size.
    """
    collected: list[np.ndarray] = []
    for picture in _counted(pictures, f"decoding {where}"):
        if collected and picture.shape != collected[0].shape:
            sizes = [f"{width}x{height}" for height, width, _ in (collected[0].shape, picture.shape)]
            raise InputError(f"The images in {where} differ in size ({' and '.join(sizes)}): set data.size.")
        collected.append(picture)
    return torch.from_numpy(np.stack(collected)).permute(0, 3, 1, 2).contiguous()


def _counted(items: Iterable[Item], activity: str) -> Iterator[Item]:
    start = "\r" if sys.stderr.isatty() else ""
    shown = time.monotonic()
    count = 0
    try:
        for count, item in enumerate(items, start=1):
            yield item
            if start and time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                print(f"{start}{activity}: {count:,} images", end="", file=sys.stderr, flush=True)
    finally:
        print(f"{start}{activity}: {count:,} images", file=sys.stderr, flush=True)
