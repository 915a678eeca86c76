"""The energy adversary of EB-JDAT: projected ascent of an energy, with every reading of the paper and its code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.errors import InputError, nearest
from methods.primitives.attacks import PGD, Direction, Start
from methods.primitives.energy import joint_energy, marginal_energy
from methods.primitives.losses import cross_entropy
from methods.primitives.threat import ThreatModel

Raised = Literal["joint_energy", "ce", "marginal_energy", "code_literal"]
Scale = Literal["eps-8", "faithful"]
Perceptual = Literal["none", "logit_cos", "lpips"]


@dataclass(frozen=True)
class EnergyAttack:
    """x_adv = argmax over the eps ball of an energy, less a perceptual distance (arXiv 2505.19459, eqs. 11 to 13).

    The released code (jkcjkc/EB-JDAT at 327ea16) differs from the paper in each of these options; it is
    ``objective="code_literal", perceptual="logit_cos", scale="faithful"``. A field out of range is an InputError.
    """

    objective: Raised = "joint_energy"
    """What is raised: E(x', y) (paper), cross-entropy (commented out in the code), E(x'), or f(x')[y] (the code)."""
    steps: int = 5
    scale: Scale = "eps-8"
    """eps-8: start and steps are of eps, projected. faithful: of eps/2 (the code's 8/255 in [-1, 1] units is 4/255),
    not projected."""
    step_size: float | None = None
    """Fraction of eps; the scale's own if null: 1/4 (2/255 of 8/255) for eps-8, 1/8 for faithful."""
    project: bool | None = None
    """Projection to the eps ball; the scale's own if null."""
    start: Start = "uniform"
    direction: Direction = "steepest"
    """Sign step (code), plain gradient (paper, eq. 12), or gradient of unit L2 norm."""
    perceptual: Perceptual = "none"
    """Squared distance of the unit logit vectors, raised (code), or LPIPS distance, lowered (paper)."""
    perceptual_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("objective", Raised), ("scale", Scale), ("perceptual", Perceptual)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise InputError(f'The attack\'s {name} is "{value}".{nearest(value, get_args(choices))}')
        _ = self.pgd

    @property
    def pgd(self) -> PGD:
        """The ascent itself."""
        faithful = self.scale == "faithful"
        own_step_size = 1 / 8 if faithful else 1 / 4
        return PGD(
            steps=self.steps,
            step_size=own_step_size if self.step_size is None else self.step_size,
            start=self.start,
            start_scale=0.5 if faithful else 1.0,
            direction=self.direction,
            project=not faithful if self.project is None else self.project,
        )

    def __call__(
        self,
        network: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        generator: torch.Generator,
        lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Attack images ``x`` [B, ...] in [0, 1] with labels ``y`` [B]; return x_adv, detached.

        The mode of ``network``, images -> logits [B, K], is the caller's business. The perceptual distance "lpips"
        needs ``lpips``, (x_adv, x) -> [B].
        """
        perceptual = self._perceptual(network, x, lpips)

        def objective(x_adv: Tensor) -> Tensor:
            logits = network(x_adv)
            return self._raised(logits, y) + self.perceptual_weight * perceptual(x_adv, logits)

        return self.pgd(objective, x, threat, generator)

    def _raised(self, logits: Tensor, y: Tensor) -> Tensor:
        match self.objective:
            case "joint_energy":
                return joint_energy(logits, y)
            case "ce":
                return cross_entropy(logits, y)
            case "marginal_energy":
                return marginal_energy(logits)
            case "code_literal":
                return -joint_energy(logits, y)

    def _perceptual(
        self, network: Callable[[Tensor], Tensor], x: Tensor, lpips: Callable[[Tensor, Tensor], Tensor] | None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        if self.perceptual == "logit_cos":
            with torch.no_grad():
                clean = F.normalize(network(x))
            return lambda x_adv, logits: (F.normalize(logits) - clean).square().sum(1)
        if self.perceptual == "lpips":
            if lpips is None:
                raise InputError('perceptual "lpips" needs an LPIPS network.')
            return lambda x_adv, logits: -lpips(x_adv, x)
        return lambda x_adv, logits: logits.new_zeros(len(logits))
