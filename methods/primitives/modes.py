"""The state of a model during an inner computation, made explicit and given back exactly as it was found."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)

AttackMode = Literal["eval", "train", "train-frozen-statistics"]
"""Batch normalisation during an attack: the three conventions of :func:`mode`."""


class DeviceFull(torch.OutOfMemoryError):
    """The device had no memory left for a pass; ``training`` tells its mode, and so whether it can be taken apart."""

    def __init__(self, message: str, training: bool) -> None:
        super().__init__(message)
        self.training = training


@contextmanager
def held(parts: Iterable[object], attribute: str, value: Any) -> Iterator[None]:
    """Set an attribute of each part; on leaving, give each its own value back."""
    before = [(part, getattr(part, attribute)) for part in parts]
    try:
        for part, _ in before:
            setattr(part, attribute, value)
        yield
    finally:
        for part, own in before:
            setattr(part, attribute, own)


@contextmanager
def mode(model: M, *, training: bool, track_statistics: bool = True) -> Iterator[M]:
    """Put every submodule in train or eval mode; on leaving, give each module its own flags back.

    The three conventions of adversarial training for batch normalisation:

    - ``training=False``: running statistics, nothing updated (TRADES, MART);
    - ``training=True``: batch statistics, running statistics updated (Rice et al.'s PGD-AT);
    - ``training=True, track_statistics=False``: batch statistics, buffers untouched (Gowal et al. 2020).

    Raises:
        DeviceFull: in place of torch's error, with the mode.
    """
    try:
        # In eval mode fixed statistics change nothing: a BatchNorm that has buffers normalises with them.
        with (
            held(model.modules(), "training", training),
            nullcontext() if track_statistics else fixed_statistics(model),
        ):
            yield model
    except DeviceFull:
        raise
    except torch.OutOfMemoryError as error:
        raise DeviceFull(str(error), training) from error


@contextmanager
def fixed_statistics(model: M) -> Iterator[M]:
    """Let no forward pass move BatchNorm's running statistics; the modes stay, so batch statistics stay in use."""
    with held(_norms(model), "track_running_stats", False):
        yield model


@contextmanager
def first_statistics(model: M) -> Iterator[M]:
    """Let a forward pass in train mode replace BatchNorm's running statistics by the batch's: momentum 1."""
    with held(_norms(model), "momentum", 1.0):
        yield model


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def frozen(model: M, *, training: bool = False, track_statistics: bool = True) -> Iterator[M]:
    """Like :func:`mode`, and no parameter asks for a gradient, so input gradients cost no weight gradients.

    A graph recorded before stays valid: back-propagating it afterwards reaches the parameters.
    """
    with (
        mode(model, training=training, track_statistics=track_statistics),
        held(model.parameters(), "requires_grad", False),
    ):
        yield model


def attacked(model: M, attack_mode: AttackMode) -> AbstractContextManager[M]:
    """Return :func:`frozen` in the convention that an option calls ``attack_mode``."""
    return frozen(model, training=attack_mode != "eval", track_statistics=attack_mode == "train")


@contextmanager
def restored(model: M) -> Iterator[M]:
    """Let the block train the model; on leaving, weights and buffers are as before, bit for bit, without gradients."""
    with torch.no_grad():
        values = [*model.parameters(), *model.buffers()]
        kept = [value.detach().clone() for value in values]
    try:
        yield model
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for value, before in zip(values, kept, strict=True):
                value.copy_(before)
