"""Langevin chains and the replay buffer they persist in."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.random import normal_like
from methods.primitives.ranks import gather, mean, share


@dataclass(frozen=True)
class SGLD:
    """Stochastic gradient Langevin dynamics: x <- clamp(x - step_size * clip(grad E(x)) + noise * N(0, 1)).

    Everything is in [0, 1] units. The papers work in u = 2x - 1, where grad_x = 2 grad_u and moving u by d
    moves x by d / 2: a step of 1 on gradients clipped at 1 becomes 0.25 on gradients clipped at 2, and the
    noise halves. JEM (wgrathwohl/JEM at 3d01161): step 1, noise 0.01, no clip and no clamp, hence 0.25 and
    0.005 here. JEM++'s PYLD (Yang & Ji 2021) freezes the gradient at the first layer's output and goes
    ``inner_steps`` N = 5 clipped steps of 0.2 against it. Behind an affine first layer these see one and the
    same gradient and are one clipped step of 0.2 N exactly (moving N times one way, clamped each time, is
    clamping once): that step is the default here, and ``inner_steps=5, step_size=0.05`` is the literal loop.
    A field out of range is an InputError.
    """

    steps: int = 10
    """Chain length; 0 returns the start."""
    step_size: float = 0.25
    """Factor of the gradient (1 in [-1, 1] units)."""
    clip: float | None = 2.0
    """Bound of every entry of the gradient (1 in [-1, 1] units); None: none."""
    noise: float = 0.0
    """Standard deviation of the noise of a step (half of that in [-1, 1] units), added after its inner steps."""
    clamp: bool = True
    """Whether every step ends inside [0, 1]."""
    inner_steps: int = 1
    """Above 1: PYLD's literal inner loop, of so many steps of ``step_size`` per pass through the network."""

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise InputError(f"SGLD needs inner_steps >= 1, got {self.inner_steps}.")
        if self.steps < 0 or not 0 < self.step_size < math.inf:
            raise InputError(f"SGLD needs steps >= 0 and a positive step_size, got {self.steps} and {self.step_size}.")
        if not 0 <= self.noise < math.inf or (self.clip is not None and not self.clip > 0):
            raise InputError(f"SGLD needs noise >= 0 and a positive clip or none, got {self.noise} and {self.clip}.")

    def __call__(
        self,
        energy: Callable[[Tensor], Tensor],
        x: Tensor,
        generator: torch.Generator,
        first_layer: Callable[[Tensor], Tensor] | None = None,
        trace: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Run chains from ``x`` [B, ...] down an energy and return their ends, detached.

        Args:
            energy: images -> [B]; with ``first_layer``, its output -> [B].
            x: starts.
            generator: draws the noise.
            first_layer: images -> what the network's first layer makes of them; for ``inner_steps`` above 1.
            trace: is given ``clip_rate``, the share of gradient entries that were clipped, a scalar.

        Raises:
            InputError: ``inner_steps`` is above 1 and there is no first layer.
        """
        if self.inner_steps > 1 and first_layer is None:
            raise InputError("PYLD's literal inner loop (inner_steps above 1) needs a network with a first layer.")
        x, clipped = x.detach(), torch.zeros((), device=x.device)
        for _ in range(self.steps):
            along = energy
            if first_layer is not None:
                along = _linearised(energy, first_layer, x)
            for inner_step in range(self.inner_steps):
                gradient = _gradient(along, x)
                if self.clip is not None:
                    clipped += (gradient.abs() > self.clip).float().mean() / (self.steps * self.inner_steps)
                    gradient = gradient.clamp(-self.clip, self.clip)
                x = x - self.step_size * gradient
                if self.noise and inner_step == self.inner_steps - 1:
                    x = x + self.noise * normal_like(x, generator)
                if self.clamp:
                    x = x.clamp(0, 1)
        if trace is not None:
            trace["clip_rate"] = clipped
        return x


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of the summed values at ``x``."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return gradient


def _linearised(
    energy: Callable[[Tensor], Tensor], first_layer: Callable[[Tensor], Tensor], x: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return PYLD's inner objective, x' -> <first_layer(x'), p>, with p the energy's gradient behind the layer at x."""
    with torch.no_grad():
        hidden = first_layer(x)
    adjoint = _gradient(energy, hidden)
    return lambda x_new: (first_layer(x_new) * adjoint).flatten(1).sum(1)


class ReplayBuffer(nn.Module):
    """Persistent chains (Tieleman 2008; Du & Mordatch 2019), a part of the state that is checkpointed.

    Every rank has all slots and moves its own :func:`methods.primitives.ranks.share` of them, which alone is up to date
    until they are gathered.

    Args:
        images: the first contents, [size, C, H, W]; copied as float32.
    """

    images: Tensor
    moments: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images.detach().float().clone())
        # Statistics of a step must not cost a pass over all chains: each slot keeps its own.
        self.register_buffer("moments", _moments(self.images))

    def draw(
        self, batch: int, restart_probability: float, fresh: Callable[[int], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw ``batch`` slots uniformly with replacement and, independently, restart some of them.

        ``fresh`` makes n new starts [n, C, H, W]; it is called once, with the number needed, or not at all.

        Returns:
            (index [B] int64 for :meth:`update`, x [B, C, H, W]), on the buffer's device; ``x`` is a copy.
        """
        device = generator.device
        own = share(len(self.images))
        drawn = torch.randint(own.start, own.stop, (batch,), generator=generator, device=device)
        index = drawn.to(self.images.device)
        restart = torch.rand(batch, generator=generator, device=device) < restart_probability
        x = self.images[index]
        restarts = int(restart.sum())
        if restarts:
            x[restart.to(x.device)] = fresh(restarts).to(x)
        return index, x

    def update(self, index: Tensor, x: Tensor) -> None:
        """Write ``x`` [B, C, H, W] to the slots ``index`` [B]; a slot named twice keeps the last image."""
        # Plain assignment leaves the winner among duplicates undefined on CUDA.
        slots, inverse = index.unique(return_inverse=True)
        order = torch.arange(len(index), device=index.device)
        last = torch.zeros_like(slots).scatter_reduce(0, inverse, order, "amax")
        self.images[slots] = x.detach()[last].to(self.images)
        self.moments[slots] = _moments(self.images[slots])

    def statistics(self) -> dict[str, Tensor]:
        """Return ``mean``, ``std`` and ``saturated`` (share at or beyond 0 or 1) of the pixels, as scalars."""
        average, square, saturated = mean(self.moments[share(len(self.moments))].double(), 0).unbind()
        std = (square - average.square()).clamp(min=0).sqrt()
        return {"mean": average.float(), "std": std.float(), "saturated": saturated.float()}

    def gather(self) -> None:
        """Bring every rank's slots up to date with those that the others have moved."""
        for slots in (self.images, self.moments):
            gather(slots)


def _moments(images: Tensor) -> Tensor:
    """Return mean, mean square and saturated share of each image, [N, 3]."""
    flat = images.flatten(1)
    saturated = ((flat <= 0) | (flat >= 1)).float()
    return torch.stack([flat.mean(1), flat.square().mean(1), saturated.mean(1)], dim=1)
