"""Atomic writing of files: after a crash the old file or the new one is there, never half of one.

Nothing but the standard library is imported, so that what writes tables need not load torch.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from methods.errors import InputError


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a temporary file beside ``path``, and put it in place in one step; make missing folders.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    # torch.save reports a failed write as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise InputError(f"Cannot write {path}: {error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write plain data as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
