"""Data sets by name. The catalogue of names needs no torch; everything else is imported when it is used."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.data.catalogue import NAMES
from methods.errors import InputError, nearest

if TYPE_CHECKING:
    from methods.data.images import Dataset, ImageSet, Pool
    from methods.data.streams import Augment, Stream

__all__ = ["NAMES", "Augment", "Dataset", "ImageSet", "Stream", "load"]

_HOMES = {"Augment": "streams", "Dataset": "images", "ImageSet": "images", "Stream": "streams"}

DIGITS_VALIDATION = 100
VALIDATION = 1000


def __getattr__(name: str) -> Any:
    # PEP 562: `benchmark list` reads the catalogue through this package and must not wait for torch.
    if name in _HOMES:
        return getattr(import_module(f"methods.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(
    name: str,
    *,
    root: Path = Path("data"),
    validation: int | None = None,
    size: int | None = None,
    generated: Path | None = None,
) -> "Dataset":
    """Load a data set and carve a validation split out of its training images.

    The split is stratified and depends on the data alone, never on a seed (``splits.hold_out``).

    Args:
        name: a name of ``NAMES``, for example "digits", "imagefolder:PATH", "npz:FILE".
        root: folder for downloads and caches; made where one is needed.
        validation: number of validation images, less than the training images; by default 100 for digits, and
            elsewhere 1000, or a tenth of the training images where that is fewer.
        size: side in pixels to which the images of an image folder are resized; no other data set is.
        generated: .npz file of generated images to train on beside the real ones (``arrays.read_generated``).

    Raises:
        InputError: an unknown name, missing or malformed data, or an impossible ``validation`` or ``size``.
    """
    from methods.data.images import Dataset, channel_statistics
    from methods.data.splits import hold_out

    kind, colon, location = name.partition(":")
    kind = kind.lower()
    pool = _read(kind, location if colon else None, name, root, size)
    count = len(pool.train)
    if validation is None:
        validation = DIGITS_VALIDATION if kind == "digits" else min(VALIDATION, count // 10)
    if not 0 <= validation < count:
        raise InputError(f"data.validation for {name} is between 0 and {count - 1} images, not {validation}.")
    if size is not None and kind != "imagefolder" and tuple(pool.train.images.shape[2:]) != (size, size):
        height, width = pool.train.images.shape[2:]
        raise InputError(f"data.size is for imagefolder:PATH only; images of {name} are {height}x{width}.")
    kept, held_out = hold_out(pool.train.labels, validation)
    train, held = pool.train.select(kept), pool.train.select(held_out)
    mean, std = channel_statistics(train.images)
    more = None
    if generated is not None:
        from methods.data.arrays import read_generated

        channels, height, width = train.images.shape[1:]
        more = read_generated(generated, len(pool.classes), (channels, height, width))
    return Dataset(kind + colon + location, pool.classes, train, held, pool.test, mean, std, more)


def _read(kind: str, location: str | None, name: str, root: Path, size: int | None) -> "Pool":
    if location:
        path = Path(location).expanduser()
        if kind == "imagefolder":
            from methods.data import folder

            return folder.read(path, size)
        if kind == "npz":
            from methods.data import arrays

            return arrays.read(path)
    elif location is None:
        if kind == "digits":
            from methods.data import digits

            return digits.read()
        if kind in ("cifar10", "cifar100"):
            from methods.data import cifar

            return cifar.read(kind, root)
        if kind == "cifar10-jpeg":
            from methods.data import cifar_jpeg

            return cifar_jpeg.read(root)
    raise InputError(f'No data set is called "{name}" (known: {", ".join(NAMES)}).{nearest(kind, NAMES)}')
