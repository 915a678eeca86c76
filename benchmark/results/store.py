"""The store of measurements: what was computed once is read back, and a crash loses one shard."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from benchmark.results.entry import Measurement
from methods.errors import InputError
from methods.files import write, write_json, write_text

Arrays = dict[str, np.ndarray]

NOTE = "shard_"
"""Arrays whose name begins so speak of the shard as a whole; all others hold one item per image."""


class SaveError(InputError):
    """A result could not be written, for example because the disk is full; never swallowed."""


def key(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an identity: plain data that holds everything that can change the numbers."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """Measurements under a folder; each identity has its own, shared by runs over more or fewer images.

    Writes are atomic and raise :class:`SaveError`. What cannot be read back counts as not computed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, identity: Mapping[str, Any]) -> Path:
        """Return the folder of an identity."""
        return self.root / f"{identity['metric']}-{key(identity)[:32]}"

    def load_shard(self, identity: Mapping[str, Any], index: int, size: int) -> Arrays | None:
        """Return the outcomes of a shard of ``size`` images, or None."""
        arrays = _load(self.folder(identity) / _shard_name(index, size))
        if arrays is None or any(len(array) != size for name, array in arrays.items() if not name.startswith(NOTE)):
            return None
        return arrays

    def save_shard(self, identity: Mapping[str, Any], index: int, size: int, arrays: Arrays) -> None:
        """Keep the outcomes of a shard of ``size`` images."""
        _save(self.folder(identity) / _shard_name(index, size), arrays)

    def load_measurement(self, identity: Mapping[str, Any], n: int) -> Measurement | None:
        """Return the finished measurement over the first ``n`` images, or None."""
        try:
            text = (self.folder(identity) / f"measurement-{n}.json").read_text(encoding="utf-8")
            measurement = Measurement.model_validate_json(text)
        except (OSError, ValueError, ValidationError):
            return None
        same = measurement.key == key({**identity, "n": n})
        return measurement if same and self.samples(measurement) is not None else None

    def save_measurement(self, identity: Mapping[str, Any], measurement: Measurement) -> None:
        """Keep a finished measurement, and beside it, for people, what its key was made of."""
        folder = self.folder(identity)
        try:
            write_json(folder / "identity.json", dict(identity))
            write_text(folder / f"measurement-{measurement.n}.json", measurement.model_dump_json(indent=2) + "\n")
        except InputError as error:
            raise SaveError(str(error)) from error

    def save_samples(self, identity: Mapping[str, Any], n: int, arrays: Arrays) -> str:
        """Keep the outcomes per image of a measurement; return the file's path relative to the root."""
        path = self.folder(identity) / f"samples-{n}.npz"
        _save(path, arrays)
        return str(path.relative_to(self.root))

    def samples(self, measurement: Measurement) -> Arrays | None:
        """Return the outcomes per image of a measurement, or None where they are lost or there are none."""
        return None if measurement.samples is None else _load(self.root / measurement.samples)


def _shard_name(index: int, size: int) -> str:
    # The size keeps the cut last shard of a limited run apart from the whole shard of a full one.
    return f"shard-{index:04d}-{size}.npz"


def _save(path: Path, arrays: Arrays) -> None:
    def save(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            np.savez_compressed(handle, allow_pickle=False, **arrays)

    try:
        write(path, save)
    except InputError as error:
        raise SaveError(str(error)) from error


def _load(path: Path) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
