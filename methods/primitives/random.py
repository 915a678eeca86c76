"""Named random streams: each consumer has a generator of its own, so one more draw never shifts another's."""

import hashlib
import json

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


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw N(0, 1) with the shape, dtype and device of ``x``, whatever device the generator lives on."""
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)


def uniform_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw U[0, 1) with the shape, dtype and device of ``x``, whatever device the generator lives on."""
    return torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
