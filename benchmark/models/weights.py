"""Weights files from elsewhere: read without running what they hold, and refused in one sentence."""

import argparse
import codecs
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from methods.errors import InputError, reason

_SCALAR = np.float64().__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int64", "float32", "float64")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    codecs.encode,
]
"""Types that training scripts save beside the weights: arguments and NumPy numbers; making them runs no code."""
_DEAD = "sub_block1."
"""Prefix of weights that TRADES's wide residual network, and those made of it, hold and never use."""
_SHOWN = 4
"""Number of a file's entries that a sentence names."""


def read(path: Path) -> Any:
    """Return the content of a weights file: safetensors, or a torch file of tensors, plain containers and ``HARMLESS``.

    InputError: no such file, an HTML page in its place, pickled code, or no weights file.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {path}.")
    refuse_page(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds {_code(path)}, and is not unpickled.") from error
    except Exception as error:
        raise InputError(f"{path} is truncated or no weights file: {reason(error)}.") from error


def refuse_page(path: Path) -> None:
    """Raise InputError for an HTML page: what Google Drive serves in place of a large or much wanted file."""
    with path.open("rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise InputError(
            f"{path} is an HTML page and no weights file: the download, often of Google Drive, gave a warning or "
            "an error page; download it again in a browser."
        )


def state_dict(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a weights file, at its top or under "state_dict", without a common "module.".

    InputError: what :func:`read` refuses, or no state dict there.
    """
    content = read(path)
    state = content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        state = content["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f'{path} is no state dict, names to tensors at the top or under "state_dict": it holds {contents(content)}.'
        )
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def fill(model: nn.Module, path: Path) -> None:
    """Load a weights file into a model, every key of both; only the dead weights of TRADES's network are left out.

    InputError: what :func:`state_dict` refuses, or keys or shapes that do not fit.
    """
    state, own = state_dict(path), model.state_dict()
    dead = [name for name in state if name.startswith(_DEAD) and name not in own]
    if dead:
        note = f"{len(dead)} weights {_DEAD}* of {path} are left out: TRADES's network holds them and never uses them."
        print(note, file=sys.stderr)
    try:
        unfit = model.load_state_dict({name: state[name] for name in state if name not in dead}, strict=False)
    except RuntimeError as error:
        raise InputError(f"The weights in {path} do not fit the model: {reason(error)}.") from error
    if unfit.missing_keys or unfit.unexpected_keys:
        raise InputError(f"The weights in {path} {_keys(unfit.missing_keys, unfit.unexpected_keys)}.")


def misfit(error: RuntimeError) -> str:
    """Return torch's report on keys that do not fit, which names them all, as part of a sentence."""
    reports = (re.search(rf"{kind} key\(s\) in state_dict: (.*)", str(error)) for kind in ("Missing", "Unexpected"))
    missing, unexpected = (re.findall(r'"([^"]+)"', found[1]) if found else [] for found in reports)
    return f"its weights {_keys(missing, unexpected)}" if missing or unexpected else reason(error)


def contents(content: Any) -> str:
    """Return what a file holds, as part of a sentence."""
    if not isinstance(content, Mapping):
        return _kind(content)
    if content and all(isinstance(value, Tensor) for value in content.values()) and len(content) > _SHOWN:
        return _kind(content)
    shown = [f'"{name}" ({_kind(value)})' for name, value in list(content.items())[:_SHOWN]]
    more = [f"{len(content) - _SHOWN} more"] * (len(content) > _SHOWN)
    return " and ".join(shown + more) or "nothing"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        tensors = all(isinstance(entry, Tensor) for entry in value.values())
        return f"{len(value)} {'tensors' if tensors else 'entries'}"
    return f"an object of type {type(value).__name__}"


def _keys(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    named = (("lack", missing), ("have the unexpected", unexpected))
    return " and ".join(f'{verb} "{keys[0]}" ({len(keys)} such keys)' for verb, keys in named if keys)


def _code(path: Path) -> str:
    """Return what a file that is not unpickled holds, as part of a sentence."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            names = get_unsafe_globals_in_checkpoint(path)
    except Exception:
        names = []
    return f"more than tensors ({', '.join(sorted(names))})" if names else "more than tensors, or is no weights file"
