"""Negatives for an energy-based model: persistent chains that begin at a start and are restarted now and then."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from methods.errors import InputError, nearest
from methods.primitives.modes import frozen
from methods.primitives.ranks import apart, mean
from methods.primitives.samplers import SGLD, ReplayBuffer
from methods.primitives.starts import Start, StartName


@dataclass(frozen=True)
class Chains:
    """How negatives are sampled: the settings that tell JEM, JEM++ and SADAJEM apart.

    A field out of range is an InputError.
    """

    sampler: SGLD = field(default_factory=SGLD)
    mode: Literal["train", "eval"] = "train"
    """BatchNorm while sampling; train moves its running statistics (JEM++, SADAJEM), eval does not (JEM)."""
    start: StartName = "class_gaussian"
    """Start of new chains: a Gaussian per class, one Gaussian, uniform noise, or principal components."""
    buffer_size: int = 10_000
    """Chains that persist."""
    restart_probability: float = 0.05
    """Share of chains that begin anew at each draw."""

    def __post_init__(self) -> None:
        if self.start not in get_args(StartName):
            hint = nearest(self.start, get_args(StartName))
            raise InputError(f'negatives.start is one of {", ".join(get_args(StartName))}, not "{self.start}".{hint}')
        if self.buffer_size < 1:
            raise InputError(f"negatives.buffer_size must be at least 1, not {self.buffer_size}.")
        if not 0 <= self.restart_probability <= 1:
            raise InputError(f"negatives.restart_probability must be in [0, 1], not {self.restart_probability}.")

    def check(self, batch: int) -> None:
        """Refuse a buffer that holds fewer chains than a step draws."""
        if self.buffer_size < batch:
            raise InputError(f"negatives.buffer_size is {self.buffer_size}, fewer than the {batch} chains of a step.")


class Negatives(nn.Module):
    """The chains themselves; their buffer is the part of a method's state that is checkpointed.

    The generator draws its first contents, equally many of each class.
    """

    def __init__(self, chains: Chains, start: Start, generator: torch.Generator) -> None:
        super().__init__()
        self.chains = chains
        self.start = start
        labels = torch.arange(chains.buffer_size, device=start.device) % start.num_classes
        self.buffer = ReplayBuffer(start.sample(labels, generator))
        self.trace: dict[str, Tensor] = {}

    def sample(
        self,
        model: nn.Module,
        energy: Callable[[Tensor], Tensor],
        n: int,
        generator: torch.Generator,
        first_layer: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Continue ``n`` chains and write them back; return their ends, [n, C, H, W], detached.

        Each rank has chains, and batch statistics while sampling, of its own. Chains are drawn with replacement; the
        weights of ``model`` are held fixed, in the mode of the settings. The generator, on the device of the model,
        draws chains, restarts and noise. ``energy`` and ``first_layer`` are those of :meth:`SGLD.__call__`.
        """
        chains = self.chains
        index, x = self.buffer.draw(
            n, chains.restart_probability, lambda new: self.start.sample_any(new, generator), generator
        )
        with apart(model), frozen(model, training=chains.mode == "train"):
            # A rank without chains has no batch whose statistics it could take.
            x_q, self.trace = x.to(generator.device), {"clip_rate": torch.zeros(0, device=generator.device)}
            if n:
                x_q = chains.sampler(energy, x_q, generator, first_layer, self.trace)
        self.buffer.update(index, x_q)
        return x_q

    def report(self) -> dict[str, Tensor]:
        """Return what the log shows of the buffer and of the last chains, as scalars."""
        seen = {f"buffer_{name}": value for name, value in self.buffer.statistics().items()}
        return seen | {name: mean(value.flatten()) for name, value in self.trace.items()}
