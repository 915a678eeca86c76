"""REINFORCE (Williams 1992): a network that makes categorical choices for every image, learnt from one reward."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen, mode


@dataclass(frozen=True)
class PolicySGD:
    """The optimiser of a policy. A field out of range is an InputError."""

    lr: float = 1e-4
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest L2 norm of the gradient."""
    milestones: tuple[float, ...] = ()
    """Shares of the training at which the rate falls to a tenth."""

    def __post_init__(self) -> None:
        if not (0 <= self.lr < math.inf and 0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise InputError(
                "A policy's rate and weight decay are finite and not negative and its momentum is in [0, 1), not "
                f"{self.lr}, {self.weight_decay} and {self.momentum}."
            )
        if not self.clip > 0:
            raise InputError(f"A policy's gradient clip is positive, not {self.clip}.")
        if any(not 0 < at < 1 for at in self.milestones):
            raise InputError(f"A policy's milestones are shares of the training in (0, 1), not {self.milestones}.")


class Policy(nn.Module):
    """Independent categorical choices for each image, one group of a network's outputs each.

    ``sizes`` are the numbers of alternatives, and the network maps images [B, ...] to logits [B, sum(sizes)]. It asks
    for gradients in :meth:`learn` alone, so that nobody else's optimiser moves it. Everything that a resume needs, the
    momentum included, is in the state dict.
    """

    velocity: Tensor

    def __init__(self, network: nn.Module, sizes: Sequence[int], optimizer: PolicySGD) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.sizes = tuple(sizes)
        self.optimizer = optimizer
        self.register_buffer("velocity", torch.zeros(sum(weight.numel() for weight in network.parameters())))

    def sample(self, x: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Draw every choice, int64 [B] each, with the network in eval mode."""
        with frozen(self.network, training=False), torch.no_grad():
            return self._draw(self._logits(x), generator)

    def learn(
        self, x: Tensor, generator: torch.Generator, reward: Callable[[list[Tensor]], Tensor], progress: float
    ) -> Tensor:
        """Make one step down  -reward * sum over choices of mean_i log pi(choice | x_i);  return that loss.

        The network is in train mode and its running statistics move; there is no baseline, as in LAS-AT. ``reward``
        maps choices, int64 [B] each, to a scalar; ``progress`` is the share of the training already done.
        """
        weights = list(self.network.parameters())
        self.network.requires_grad_(True)
        try:
            with mode(self.network, training=True), torch.enable_grad():
                logits = self._logits(x)
                choices = self._draw([values.detach() for values in logits], generator)
                value = reward(choices)
                surprise = [cross_entropy(*pair).mean() for pair in zip(logits, choices, strict=True)]
                loss = value * torch.stack(surprise).sum()
                gradients = list(torch.autograd.grad(loss, weights))
        finally:
            self.network.requires_grad_(False)
        self._step(weights, gradients, progress)
        return loss.detach()

    def _logits(self, x: Tensor) -> list[Tensor]:
        return list(self.network(x).split(self.sizes, dim=1))

    def _draw(self, logits: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        return [torch.multinomial(values.softmax(1), 1, generator=generator).squeeze(1) for values in logits]

    @torch.no_grad()
    def _step(self, weights: list[nn.Parameter], gradients: list[Tensor], progress: float) -> None:
        settings = self.optimizer
        norm = nn.utils.get_total_norm(gradients)
        scale = (settings.clip / (norm + 1e-6)).clamp_max(1)
        rate = settings.lr * 0.1 ** sum(progress >= at for at in settings.milestones)
        velocities = self.velocity.split([weight.numel() for weight in weights])
        for weight, gradient, velocity in zip(weights, gradients, velocities, strict=True):
            change = scale * gradient + settings.weight_decay * weight
            velocity.mul_(settings.momentum).add_(change.flatten())
            weight.sub_(rate * velocity.view_as(weight))
