"""Image files: decoding them, and a folder of them, train/<class>/... and test/<class>/..."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from methods.data.images import ImageSet, Pool
from methods.data.splits import interleaved
from methods.errors import InputError

Item = TypeVar("Item")

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read(path: Path, size: int | None) -> Pool:
    """Read a folder of images as RGB, uint8 [N,3,H,W]; greyscale files get three equal channels.

    Classes are the sorted names of the folders in ``train``; inside them, image files are found at any depth;
    hidden files and other files are passed over. Images are ordered by (position within the class, class), so
    that the first N are balanced, which ``--limit N`` relies on. With a ``size``, the largest centred square of each
    image is resampled to ``size`` x ``size``; without it, all images need one size.

    Raises:
        InputError: a missing or empty folder, fewer than two classes, classes of train and test that differ,
            a file that cannot be read, or images of several sizes without ``size``.
    """
    if size is not None and size < 1:
        raise InputError(f"data.size is a number of pixels from 1, not {size}.")
    classes, test_classes = _classes(path / "train"), _classes(path / "test")
    if len(classes) < 2:
        raise InputError(f"{path / 'train'} needs a folder for each of at least two classes.")
    if test_classes != classes:
        odd = min(set(classes) ^ set(test_classes))
        raise InputError(f'train and test in {path} need the same classes, but only one of them has "{odd}".')
    train, test = (_read_split(path / split, classes, size) for split in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(f"The images of train and test in {path} differ in size: set data.size.")
    return Pool(classes, train, test)


def _classes(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise InputError(f"imagefolder:PATH needs folders PATH/train and PATH/test, but there is no {split}.")
    return tuple(sorted(entry.name for entry in split.iterdir() if entry.is_dir() and entry.name[0] != "."))


def _read_split(split: Path, classes: tuple[str, ...], size: int | None) -> ImageSet:
    files = interleaved([_files(split / name) for name in classes])
    images = stack((decode(file, str(file), size) for file, _ in files), str(split))
    return ImageSet(images, torch.tensor([label for _, label in files]))


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
    if not files:
        raise InputError(f"{folder} holds no images.")
    return files


def decode(file: IO[bytes] | Path, name: str, size: int | None = None) -> np.ndarray:
    """Decode one image file, ``name`` in errors, to RGB, uint8 [H,W,3].

    With a ``size``, the largest centred square is resampled (bicubic) to ``size`` x ``size``.

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
