"""M-EBM and M-JEM (Yang et al. 2023): a density on a scalar head, with a bound on the energy's size.

    min_theta  E(x_p) - E(x_q) + l2 [mean E(x_p)^2 + (mean E(x_q))^2] + w_clean CE(f(x), y),     E(x) = -h(x)

    h  a linear head of its own beside the class head f;  w_clean = 0: M-EBM, no classifier;  w_clean = 1: M-JEM
    x_q  K steps down the gradient clipped at 1, in [-1, 1] and clamped there, on chains of a replay buffer, 5 % of them
    restarted from one Gaussian over all classes

Followed from the code and not the paper: the second term squares the mean of the samples' energies, the first takes
the mean of squares; ``head: marginal`` is the code without ``--uncond``, E(x) = -logsumexp f(x).
Ours: M-EBM's x is not forwarded, since nothing of it enters the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from methods.errors import InputError, not_negative
from methods.primitives.energy import marginal_energy
from methods.primitives.losses import accuracy, cross_entropy
from methods.primitives.negatives import Chains
from methods.primitives.ranks import mean
from methods.primitives.samplers import SGLD
from methods.training.density import DensityMethod
from methods.training.method import Batch, Card, Inner, Losses


@dataclass(frozen=True)
class Config:
    head: Literal["scalar", "marginal"] = "scalar"
    """Energy: the scalar head (scripts; needs backbone.energy_head) or the logsumexp of the logits."""
    l2: float = 0.1
    """Bound on the energies; M-EBM script .1, M-JEM script .5."""
    w_clean: float = 0.0
    """Cross-entropy; M-EBM 0, M-JEM 1."""
    negatives: Chains = field(
        default_factory=lambda: Chains(sampler=SGLD(steps=2, step_size=0.25, clip=2.0), start="gaussian")
    )
    """M-EBM script K = 2 without noise; M-JEM K = 5, noise .001 in [-1, 1]."""

    def __post_init__(self) -> None:
        not_negative("options.l2", self.l2)
        if self.head == "scalar" and self.negatives.sampler.inner_steps > 1:
            raise InputError("options.negatives.sampler.inner_steps above 1 needs options.head: marginal.")


class MEBM(DensityMethod):
    Config = Config
    several_devices = True
    card = Card(
        title="M-EBM: Towards Understanding the Manifolds of Energy-Based Models",
        arxiv="2303.04343",
        code="sndnyang/mebm at e3d2d34",
        family="energy-based",
        fidelity="official",
    )

    def energy_of(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        if self.config.head == "marginal":
            return lambda x: marginal_energy(model(x))
        scalar: Any = model.scalar_energy
        return scalar

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        energy = self.energy_of(model)
        data, samples = energy(batch.density), mean(energy(inner["x_q"]))
        total = mean(data) - samples + self.config.l2 * (mean(data.square()) + samples.square())
        terms = {"energy_data": mean(data), "energy_samples": samples}
        if self.config.w_clean:
            logits = model(batch.x)
            terms |= {"clean": mean(cross_entropy(logits, batch.y)), "accuracy_clean": accuracy(logits, batch.y)}
            total = total + self.config.w_clean * terms["clean"]
        return Losses(total, terms)

    @property
    def generation(self) -> dict[str, Any]:
        return super().generation | {"energy": self.config.head}
