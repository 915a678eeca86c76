"""Named random streams: each consumer has a generator of its own, so one more draw never shifts another's."""

import hashlib
import json
from collections.abc import Callable

import torch
from torch import Tensor


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on ``seed`` and every name, and on nothing else (stable for ever).

    >>> derive(0, "attack", 3) == derive(0, "attack", 3) != derive(0, "attack", "3")
    True
    """
    # JSON keeps ("a", "bc") apart from ("ab", "c") and 1 apart from "1".
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of one named stream.

    CPU and CUDA generators produce different numbers; a CPU stream reproduces on every device.
    """
    return torch.Generator(device).manual_seed(derive(seed, *names))


class RowsGenerator(torch.Generator):
    """A generator of which a process that holds some rows of a batch gets the numbers of these rows.

    :func:`normal_like` and :func:`uniform_like` draw for the whole batch, of ``of`` rows, and keep ``rows``, those of
    the process; nothing else may draw.
    """

    rows: slice
    of: int


def rows_generator(seed: int, *names: str | int, device: torch.device | str, rows: slice, of: int) -> RowsGenerator:
    """Return the generator of one named stream for the rows ``rows`` of a batch of ``of``."""
    drawn = RowsGenerator(device)
    drawn.manual_seed(derive(seed, *names))
    drawn.rows, drawn.of = rows, of
    return drawn


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw N(0, 1) with the shape, dtype and device of ``x``, whatever device the generator lives on."""
    return _like(x, torch.randn, generator)


def uniform_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw U[0, 1) with the shape, dtype and device of ``x``, whatever device the generator lives on."""
    return _like(x, torch.rand, generator)


def _like(x: Tensor, draw: Callable[..., Tensor], generator: torch.Generator) -> Tensor:
    if not isinstance(generator, RowsGenerator):
        return draw(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
    drawn = draw((generator.of, *x.shape[1:]), generator=generator, device=generator.device, dtype=x.dtype)
    if len(drawn[generator.rows]) != len(x):
        raise RuntimeError(f"{len(x)} rows were asked for of a generator of {len(drawn[generator.rows])}.")
    return drawn[generator.rows].to(x.device)
