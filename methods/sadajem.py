"""SADA-JEM (Yang et al. 2023): sharpness-aware JEM whose density path sees images without augmentation.

    min_theta  max_{|e| <= rho}  L(theta + e),     L = w_density [E(x_p) - E(x_q)] + w_clean CE(f(x), y)

    e    rho w^2 g / | |w| g |  (adaptive, ASAM);  x_p  images as they are;  x  cropped and flipped (recipe)
    x_q  K = 5 steps down the gradient clipped at 1, in [-1, 1] and clamped there, on chains of a replay buffer, 5 % of
    them restarted from a Gaussian per class

The loss is :class:`methods.training.density.DensityMethod`'s.
Followed from the code and not the paper: both passes use the same x_p, x_q and x; the second moves no running
statistics; the climb is adaptive (the code's rule from rho = 0.5 on); chains run in train mode without noise.
Ours: the second pass weighs its terms as the first does (the code forgets w_density there; it is 1).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from methods.primitives.modes import fixed_statistics
from methods.primitives.negatives import Chains
from methods.primitives.samplers import SGLD
from methods.primitives.sharpness import SAM
from methods.training.density import DensityMethod
from methods.training.method import Batch, Card, Losses, Update


@dataclass(frozen=True)
class Config:
    w_density: float = 1.0
    """log p(x); paper: 1."""
    w_clean: float = 1.0
    """log p(y|x); paper: 1."""
    negatives: Chains = field(default_factory=lambda: Chains(sampler=SGLD(steps=5, step_size=0.25, clip=2.0)))
    """Script: K = 5; the paper's best model: K = 10."""
    sam: SAM = field(default_factory=SAM)
    """Script: rho 2, adaptive."""


class SADAJEM(DensityMethod):
    Config = Config
    several_devices = True
    card = Card(
        title="Towards Bridging the Performance Gaps of Joint Energy-based Models",
        arxiv="2209.07959",
        code="sndnyang/SADAJEM at 9d8f3c7",
        family="energy-based",
        fidelity="official",
    )

    def descend(self, model: nn.Module, batch: Batch, update: Update, loss: Callable[[], Losses]) -> Losses:
        losses = loss()
        update.gradient(losses.total)
        with self.config.sam.climbed(model.parameters()), fixed_statistics(model):
            update.gradient(loss().total)
        update.apply()
        return losses
