"""Projected gradient ascent inside a threat model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from methods.errors import InputError, nearest
from methods.primitives.random import normal_like
from methods.primitives.threat import ThreatModel, unit_l2

Objective = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""Images [B, ...] -> the value of each [B], to be raised; or (values, done [B] bool): done images stop."""

Start = Literal["uniform", "normal", "zero"]
Keep = Literal["last", "best"]
Direction = Literal["steepest", "gradient", "normalised"]


class Attack(Protocol):
    """Raises an objective around the images ``x`` inside a threat model; starts come from the generator."""

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent (Madry et al. 2018), x_adv <- project(x_adv + step_size eps steepest(g)).

    One attack for every objective (cross-entropy, TRADES's KL, an energy): an objective takes images to
    values, so the model's mode and frozen parameters are the caller's business
    (:func:`methods.primitives.modes.frozen`). Images that the objective calls done take no more steps; a done
    image outranks every value. A field out of range is an InputError.
    """

    steps: int = 10
    """Gradient steps; at least 1."""
    step_size: float = 0.25
    """Length of a step as a fraction of eps, in the norm of the threat model."""
    start: Start = "uniform"
    """Uniform: in the ball. Normal: x + 0.001 N(0, 1), not clamped before step 1 (TRADES). Zero: x itself."""
    start_scale: float = 1.0
    """Radius of the uniform start as a fraction of eps."""
    restarts: int = 1
    """Independent starts; each image keeps the highest (above 1, one more evaluation each)."""
    keep: Keep = "last"
    """Last iterate, or best: the highest of all iterates, the start included (one more evaluation)."""
    direction: Direction = "steepest"
    """Steepest in the threat model's norm (Linf: the sign), the plain gradient, or it at unit L2 norm."""
    project: bool = True
    """False: only clamp to [0, 1], eps then scales the start and the step alone (EB-JDAT as released)."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"PGD needs at least one step, got steps={self.steps}.")
        if not 0 < self.step_size < math.inf:
            raise InputError(f"PGD's step_size is a positive fraction of eps, got {self.step_size}.")
        if not 0 <= self.start_scale < math.inf:
            raise InputError(f"PGD's start_scale is a fraction of eps, not negative, got {self.start_scale}.")
        if self.restarts < 1 or (self.restarts > 1 and self.start == "zero"):
            raise InputError(
                f'PGD needs one start, or several random ones; got restarts={self.restarts}, "{self.start}".'
            )
        for name, value, choices in (
            ("start", self.start, get_args(Start)),
            ("keep", self.keep, get_args(Keep)),
            ("direction", self.direction, get_args(Direction)),
        ):
            if value not in choices:
                raise InputError(f'PGD\'s {name} is {" or ".join(choices)}, got "{value}".{nearest(value, choices)}')

    def __call__(
        self,
        objective: Objective,
        x: Tensor,
        threat: ThreatModel,
        generator: torch.Generator,
        x_start: Tensor | None = None,
    ) -> Tensor:
        """Attack the images ``x`` [B, ...] in [0, 1].

        Args:
            objective: what to raise; its gradient is taken with respect to the images alone.
            x: clean images, the centres of the balls.
            threat: the ball to stay in.
            generator: draws the starts, on its own device.
            x_start: where the first start begins, in place of a drawn one (a carried or given perturbation).

        Returns:
            x_adv: detached, in the ball around ``x`` (unless ``project`` is False) and in [0, 1].
        """
        x = x.detach()
        kept, highest = x, torch.full(x.shape[:1], -math.inf, device=x.device)
        for restart in range(self.restarts):
            x_adv = self._draw(x, threat, generator) if x_start is None or restart else x_start.detach()
            for _ in range(self.steps):
                gradient, score, done = _gradient(objective, x_adv)
                if self.keep == "best":
                    kept, highest = _higher(kept, highest, x_adv, score)
                if done is not None and bool(done.all()):
                    break
                moved = x_adv + self.step_size * threat.radius * self._ascent(gradient, threat)
                moved = self._confine(moved, x, threat)
                x_adv = moved if done is None else _select(done, x_adv, moved)
            if self.keep == "last" and self.restarts == 1:
                kept = x_adv
            else:
                with torch.no_grad():
                    score, _ = _evaluate(objective, x_adv)
                kept, highest = _higher(kept, highest, x_adv, score)
        # An image done at a normal start has never been confined.
        return self._confine(kept, x, threat)

    def _draw(self, x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        if self.start == "uniform":
            return threat.random_start(x, generator, self.start_scale)
        return x + 0.001 * normal_like(x, generator) if self.start == "normal" else x

    def _ascent(self, gradient: Tensor, threat: ThreatModel) -> Tensor:
        if self.direction == "steepest":
            return threat.steepest(gradient)
        return gradient if self.direction == "gradient" else unit_l2(gradient)

    def _confine(self, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        return threat.project(x_adv, x) if self.project else x_adv.clamp(0, 1)


def _evaluate(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return each image's score (its value; infinite once done) and the done mask, if there is one."""
    value = objective(x)
    if isinstance(value, Tensor):
        return value, None
    value, done = value
    return value.masked_fill(done, math.inf), done


def _gradient(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradient of the scores at ``x`` (0 for done images), the scores and the done mask."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        score, done = _evaluate(objective, leaf)
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
    return gradient, score.detach(), done


def _higher(kept: Tensor, highest: Tensor, x_adv: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Replace, per image, what is kept where ``score`` is strictly higher (never by a NaN)."""
    better = score > highest
    return _select(better, x_adv, kept), torch.where(better, score, highest)


def _select(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Choose whole images by a mask [B]."""
    return torch.where(mask.view(-1, *[1] * (yes.dim() - 1)), yes, no)
