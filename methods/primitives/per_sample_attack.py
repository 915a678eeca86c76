"""Projected gradient ascent in which every image has its own radius, step and number of steps."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.errors import InputError
from methods.primitives.attacks import Objective
from methods.primitives.random import normal_like
from methods.primitives.threat import ThreatModel


@dataclass(frozen=True)
class Choices:
    """What a strategy is chosen from; radii and steps are multiples of the threat model's eps.

    A field out of range is an InputError.
    """

    eps: tuple[float, ...] = tuple(k / 8 for k in range(3, 16))
    """Radius; LAS-AT: 3/8 .. 15/8."""
    steps: tuple[int, ...] = tuple(range(3, 15))
    """Number of steps; LAS-AT: 3 .. 14."""
    step_size: tuple[float, ...] = tuple(k / 8 for k in range(1, 6))
    """Length of a step; LAS-AT: 1/8 .. 5/8."""
    beta: tuple[float, ...] = ()
    """Weight of TRADES's robust term, nothing to do with the attack; LAS-TRADES: 5 .. 9, else none."""

    def __post_init__(self) -> None:
        for name in ("eps", "steps", "step_size"):
            if not getattr(self, name):
                raise InputError(f"A strategy needs at least one {name} to choose.")
        for name, values in self.named.items():
            if not min(values) > 0:
                raise InputError(f"The {name} of a strategy is positive, not {min(values)}.")

    @property
    def named(self) -> dict[str, tuple[float, ...]]:
        """What is chosen, by name; without beta where there is none."""
        return {name: values for name, values in vars(self).items() if values}

    def values(self, picks: list[Tensor]) -> dict[str, Tensor]:
        """Turn the numbers of the choices, int64 [B] each, into values [B] by name."""
        pairs = zip(self.named.items(), picks, strict=True)
        return {name: torch.tensor(values, device=pick.device)[pick] for (name, values), pick in pairs}


@dataclass(frozen=True)
class PerSamplePGD:
    """Ascent on B images, each by a strategy of its own, called like :class:`methods.primitives.attacks.PGD`.

    As in the code of LAS-AT (jiaxiaojunQAQ/LAS-AT at ee756b7) the start knows no strategy, and the first projection
    brings it into the image's own ball. There are as many passes as the longest strategy has steps; an image that
    has made its own stays where it is.
    """

    eps: Tensor
    """Radii as multiples of the threat model's eps, float32 [B]."""
    step_size: Tensor
    """Lengths of a step as multiples of the threat model's eps, float32 [B]."""
    steps: Tensor
    """Gradient steps, int64 [B]; at least 1."""
    start: Literal["uniform", "normal"] = "uniform"
    """Uniform: in the threat model's ball. Normal: x + 0.001 N(0, 1)."""

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        """Attack the images ``x`` [B, ...] in [0, 1]; the result is detached and in [0, 1]."""
        x = x.detach()
        column = (-1, *[1] * (x.dim() - 1))
        radius, length = (threat.radius * value.view(column) for value in (self.eps, self.step_size))
        uniform = self.start == "uniform"
        x_adv = threat.random_start(x, generator) if uniform else x + 0.001 * normal_like(x, generator)
        for step in range(int(self.steps.max())):
            with torch.enable_grad():
                leaf = x_adv.detach().requires_grad_()
                value = objective(leaf)
                value = value if isinstance(value, Tensor) else value[0]
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            moving = (step < self.steps).view(column)
            x_adv = torch.where(moving, x_adv + length * threat.steepest(gradient), x_adv)
            x_adv = threat.project(x_adv, x, radius)
        return x_adv
