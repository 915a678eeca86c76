"""Labelled images in a NumPy archive: x_train, y_train, x_test, y_test."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from methods.data.images import ImageSet, Pool
from methods.errors import InputError, nearest

_READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def read(path: Path) -> Pool:
    """Read an .npz file; nothing in it is unpickled.

    ``x_train`` and ``x_test`` are uint8, or floats in [0,1] (kept as float32), [N,C,H,W] or [N,H,W,C] with
    one or three channels; where axis 1 as well as axis 3 could be the channels, [N,C,H,W] wins. ``y_train``
    and ``y_test`` are integers [N]; the classes are 0..K-1, each of them in ``y_train``. An optional array
    ``classes`` holds their K names, which are "0", "1", ... otherwise.

    Raises:
        InputError: not an .npz file, a missing array, or one with a wrong shape, type or value.
    """
    with _open(path) as archive:
        x_train, y_train, x_test, y_test = (
            _array(archive, key, path) for key in ("x_train", "y_train", "x_test", "y_test")
        )
        names = _array(archive, "classes", path) if "classes" in archive.files else None
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        kinds = " and ".join(f"{array.dtype} {list(array.shape)}" for array in (x_train, x_test))
        raise InputError(f"x_train and x_test in {path} need one type and one image shape, but are {kinds}.")
    splits: list[ImageSet] = []
    for half, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        images, labels = _images(x, f"x_{half}", path), _labels(y, f"y_{half}", path)
        if len(images) != len(labels):
            lengths = f"{len(images)} images and {len(labels)} labels"
            raise InputError(f"x_{half} and y_{half} in {path} differ in length: {lengths}.")
        splits.append(ImageSet(images, labels))
    train, test = splits
    num_classes = _count_classes(train.labels, test.labels, path)
    if names is None:
        names = np.arange(num_classes).astype(str)
    if names.dtype.kind != "U" or names.shape != (num_classes,):
        raise InputError(f"classes in {path} must be {num_classes} strings, a name per label.")
    return Pool(tuple(names.tolist()), train, test)


def read_generated(path: Path, num_classes: int, image_shape: tuple[int, int, int]) -> ImageSet:
    """Read generated images: ``image`` (uint8 [N,H,W,C] or [N,C,H,W]) and ``label`` (integers [N] in 0..K-1).

    These are the keys of the sets of Rebuffi et al. (2021) and of Wang et al. (2023). Nothing in the file is unpickled.
    ``num_classes`` K and ``image_shape`` (C, H, W) are those of the data set that they join.

    Raises:
        InputError: no such file, a missing array, or one with a wrong shape, type or value.
    """
    if not path.is_file():
        raise InputError(
            f"There is no file {path} of generated images: make one with `python -m benchmark generate`, or download a "
            "published set, and name it with --set data.generated.file=FILE."
        )
    with _open(path) as archive:
        image, label = (_array(archive, key, path) for key in ("image", "label"))
    if image.dtype != np.uint8:
        raise InputError(f"image in {path} must be uint8, not {image.dtype}.")
    images, labels = _images(image, "image", path), _labels(label, "label", path)
    if tuple(images.shape[1:]) != image_shape:
        shapes = " and ".join("x".join(map(str, shape)) for shape in (images.shape[1:], image_shape))
        raise InputError(f"The generated images in {path} and the real ones differ in shape (C,H,W): {shapes}.")
    if len(images) != len(labels):
        raise InputError(f"image and label in {path} differ in length: {len(images)} and {len(labels)}.")
    if int(labels.max()) >= num_classes:
        raise InputError(f"label in {path} reaches {int(labels.max())}, but the data set has {num_classes} classes.")
    return ImageSet(images, labels)


def _open(path: Path) -> NpzFile:
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        archive = np.load(path, allow_pickle=False)
    except _READ_ERRORS as error:
        raise InputError(f"{path} is not a readable .npz file.") from error
    if not isinstance(archive, NpzFile):
        raise InputError(f"{path} is a single array, but npz:FILE needs an archive written by numpy.savez.")
    return archive


def _array(archive: NpzFile, key: str, path: Path) -> np.ndarray:
    if key not in archive.files:
        raise InputError(f'{path} has no array "{key}".{nearest(key, archive.files)}')
    try:
        return archive[key]
    except _READ_ERRORS as error:
        raise InputError(f"{key} in {path} is damaged or holds Python objects.") from error


def _images(x: np.ndarray, key: str, path: Path) -> Tensor:
    if x.ndim != 4 or not x.size or (x.shape[1] not in (1, 3) and x.shape[3] not in (1, 3)):
        shape = list(x.shape)
        raise InputError(f"{key} in {path} must be [N,C,H,W] or [N,H,W,C] with 1 or 3 channels, not {shape}.")
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise InputError(f"{key} in {path} must be uint8, or floats in [0,1], not {x.dtype}.")
        if not (x.min() >= 0 and x.max() <= 1):
            raise InputError(f"{key} in {path} has floats outside [0,1]: divide by 255, or store uint8.")
        x = x.astype(np.float32)
    if x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x))


def _labels(y: np.ndarray, key: str, path: Path) -> Tensor:
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{key} in {path} must be integers [N], not {y.dtype} {list(y.shape)}.")
    labels = torch.from_numpy(y.astype(np.int64))
    if bool((labels < 0).any()):
        raise InputError(f"{key} in {path} holds a negative label.")
    return labels


def _count_classes(train: Tensor, test: Tensor, path: Path) -> int:
    present = set(train.tolist())
    num_classes = max(present) + 1
    if len(present) < num_classes:
        absent = next(label for label in range(num_classes) if label not in present)
        raise InputError(
            f"y_train in {path} reaches {num_classes - 1} but lacks {absent}: labels run from 0 without gaps."
        )
    if num_classes < 2:
        raise InputError(f"y_train in {path} holds a single class, but a classifier needs two.")
    if int(test.max()) >= num_classes:
        raise InputError(f"y_test in {path} holds the label {int(test.max())}, which y_train lacks.")
    return num_classes
