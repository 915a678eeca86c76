"""The state of a model during an inner computation, made explicit and given back exactly as it was found."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeVar

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
def mode(model: M, *, training: bool, track_statistics: bool = True) -> Iterator[M]:
    """Put every submodule in train or eval mode; on leaving, give each module its own flags back.

    The three conventions of adversarial training for batch normalisation:

    - ``training=False``: running statistics, nothing updated (TRADES, MART);
    - ``training=True``: batch statistics, running statistics updated (Rice et al.'s PGD-AT);
    - ``training=True, track_statistics=False``: batch statistics, buffers untouched (Gowal et al. 2020).

    Raises:
        DeviceFull: in place of torch's error, with the mode.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = training
        # In eval mode this changes nothing: a BatchNorm that has buffers normalises with them.
        with nullcontext() if track_statistics else fixed_statistics(model):
            yield model
    except DeviceFull:
        raise
    except torch.OutOfMemoryError as error:
        raise DeviceFull(str(error), training) from error
    finally:
        for module, was_training in flags:
            module.training = was_training


@contextmanager
def fixed_statistics(model: M) -> Iterator[M]:
    """Let no forward pass move BatchNorm's running statistics; the modes stay, so batch statistics stay in use."""
    tracked = [(module, module.track_running_stats) for module in model.modules() if isinstance(module, _BatchNorm)]
    try:
        for module, _ in tracked:
            module.track_running_stats = False
        yield model
    finally:
        for module, tracks in tracked:
            module.track_running_stats = tracks


@contextmanager
def first_statistics(model: M) -> Iterator[M]:
    """Let a forward pass in train mode replace BatchNorm's running statistics by the batch's: momentum 1."""
    momenta = [(module, module.momentum) for module in model.modules() if isinstance(module, _BatchNorm)]
    try:
        for module, _ in momenta:
            module.momentum = 1.0
        yield model
    finally:
        for module, momentum in momenta:
            module.momentum = momentum


@contextmanager
def frozen(model: M, *, training: bool = False, track_statistics: bool = True) -> Iterator[M]:
    """Like :func:`mode`, and no parameter asks for a gradient, so input gradients cost no weight gradients.

    A graph recorded before stays valid: back-propagating it afterwards reaches the parameters.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with mode(model, training=training, track_statistics=track_statistics):
        try:
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            yield model
        finally:
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)


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
