"""Attacks made to transfer to networks they have not seen: iterative sign steps on an accumulated gradient.

All begin at the image and take ``steps`` steps of length eps / ``steps``, so that only [0, 1] ever cuts them. Like
:class:`methods.primitives.attacks.PGD` they take an objective, so that the model's business is the caller's.

Followed from the code and not the papers (JHL-HUST/VT at 45d4b9b): a gradient is divided by its *mean* absolute value
where the papers have the L1 norm, which alone makes VNI-FGSM's look-ahead longer than rounding; neighbours are those
of the iterate, and the gradient they are compared with is that at the look-ahead. Ours: the L2 threat model for the
variance-tuned attacks, with neighbours on the sphere, where nearly all of a ball is; the authors have Linf alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.errors import InputError
from methods.primitives.random import normal_like, uniform_like
from methods.primitives.threat import ThreatModel

Objective = Callable[[Tensor], Tensor]
"""Images [B, ...] -> the value of each [B], to be raised; images are independent."""


@dataclass(frozen=True)
class MIFGSM:
    """MI-FGSM (Dong et al. 2018, Algorithm 1): momentum.

        g <- decay g + grad / |grad|_1  (eq. 6),     x_adv <- x_adv + eps / steps steepest(g)  (eq. 7; L2: section 3.3)

    With ``decay`` 0 it is I-FGSM (Kurakin et al. 2017), with one step FGSM. A field out of range is an InputError.
    """

    steps: int = 10
    """Gradient steps; paper: 10."""
    decay: float = 1.0
    """What is kept of the accumulated gradient at each step; paper: 1."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"A transfer attack needs at least one step, got steps={self.steps}.")
        if not 0 <= self.decay < math.inf:
            raise InputError(f"A transfer attack's decay must not be negative, got {self.decay}.")

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        """Attack the images ``x`` [B, ...] in [0, 1], raising the objective on the surrogate.

        The generator draws the neighbours, if any. Return x_adv, detached, in the ball around ``x`` and in [0, 1].
        """
        x_adv = x = x.detach()
        step = threat.radius / self.steps
        momentum = variance = torch.zeros_like(x)
        for _ in range(self.steps):
            gradient = _gradient(objective, self._ahead(x_adv, momentum, step))
            momentum = self.decay * momentum + _unit_mean(gradient + variance)
            variance = self._variance(objective, x_adv, gradient, threat, generator)
            x_adv = threat.project(x_adv + step * threat.steepest(momentum), x)
        return x_adv

    def _ahead(self, x_adv: Tensor, momentum: Tensor, step: float) -> Tensor:
        """Return where the gradient is taken."""
        return x_adv

    def _variance(
        self, objective: Objective, x_adv: Tensor, gradient: Tensor, threat: ThreatModel, generator: torch.Generator
    ) -> Tensor:
        """Return what the next gradient is corrected by."""
        return torch.zeros_like(x_adv)


@dataclass(frozen=True)
class VMIFGSM(MIFGSM):
    """VMI-FGSM (Wang & He 2021, Algorithm 1): momentum, with the last step's gradient variance (Definition 1).

        v <- mean_i grad(x_adv + r_i) - grad(x_adv),     r_i ~ U[-bound eps, bound eps],

    and grad + v takes the place of grad in the next step. Neighbours may leave [0, 1], as in the authors' code.
    """

    neighbours: int = 20
    """How many are drawn at each step; paper: 20. 0: MI-FGSM."""
    bound: float = 1.5
    """How far they are, as a multiple of eps; the paper's beta: 1.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 0:
            raise InputError(f"The number of neighbours must not be negative, got {self.neighbours}.")
        if not 0 <= self.bound < math.inf:
            raise InputError(f"The bound of the neighbours is a multiple of eps, not negative, got {self.bound}.")

    def _variance(
        self, objective: Objective, x_adv: Tensor, gradient: Tensor, threat: ThreatModel, generator: torch.Generator
    ) -> Tensor:
        variance = torch.zeros_like(x_adv)
        for _ in range(self.neighbours):
            if threat.norm == "Linf":
                offset = 2 * uniform_like(x_adv, generator) - 1
            else:
                offset = threat.steepest(normal_like(x_adv, generator))
            # Differences, not the difference of means: without a neighbourhood nothing is left but an exact 0.
            near = _gradient(objective, x_adv + self.bound * threat.radius * offset)
            variance = variance + (near - gradient) / self.neighbours
        return variance


@dataclass(frozen=True)
class VNIFGSM(VMIFGSM):
    """VNI-FGSM (Wang & He 2021): VMI-FGSM with Nesterov's look-ahead (NI-FGSM, Lin et al. 2020).

    The gradient is taken at x_adv + eps / steps decay g, which may leave the ball. With ``neighbours`` 0 it is NI-FGSM.
    """

    def _ahead(self, x_adv: Tensor, momentum: Tensor, step: float) -> Tensor:
        return x_adv + step * self.decay * momentum


def _gradient(objective: Objective, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(objective(leaf).sum(), leaf)[0]


def _unit_mean(gradient: Tensor) -> Tensor:
    """Scale each image's gradient to a mean absolute value of 1; one that is 0 stays 0."""
    flat = gradient.flatten(1)
    size = flat.abs().mean(1, keepdim=True)
    return (flat / size.clamp_min(torch.finfo(flat.dtype).tiny)).view_as(gradient)
