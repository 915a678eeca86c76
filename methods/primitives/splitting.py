"""Evaluate a function of many rows in pieces, so that no more than a piece of its graph is ever in memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.errors import InputError


def in_pieces(function: Callable[[Tensor], Tensor], rows: int) -> Callable[[Tensor], Tensor]:
    """Return ``function`` evaluated on ``rows`` rows at a time, each piece once more when a gradient reaches it.

    Values and gradients are those of the whole, up to rounding, where ``function`` treats rows independently of each
    other (a network in eval mode), draws no random numbers, and is the same function when the gradient is taken: the
    mode of a network must not change in between. A piece is recomputed in every backward pass, so input gradients cost
    another forward pass; without gradients, and with no more rows than a piece has, nothing is computed twice.

    Args:
        function: [n, ...] -> [n, ...], row by row, for any n.
        rows: of a piece, at least 1 (else InputError); the last one may have fewer.
    """
    if rows < 1:
        raise InputError(f"A piece has at least 1 row, not {rows}.")

    def pieced(x: Tensor) -> Tensor:
        if len(x) <= rows:
            return function(x)
        if not torch.is_grad_enabled():
            return torch.cat([function(piece) for piece in x.split(rows)])
        # Nothing random happens in there, so the generators' states need not be kept.
        pieces = (checkpoint(function, piece, use_reentrant=False, preserve_rng_state=False) for piece in x.split(rows))
        return torch.cat(list(pieces))

    return pieced
