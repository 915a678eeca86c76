"""JEAT, joint energy adversarial training (Zhu et al. 2021): a RECONSTRUCTION. No code, no hyper-parameters were found.

    min_theta  CE(f(x_adv), y) + w_density [E(x_pos) - E(x_q)],     E(x) = -logsumexp f(x),  E(x, y) = -f(x)[y]

    x_adv  argmax_{|x' - x| <= eps} E(x', y)   by 10 sign steps;   x_pos  x_adv (w_density = 1: -log p(x_adv, y)) or x
    x_q    sampler output started from a replay buffer

Followed from the paper's abstract: adversarial training is rewritten with the joint energy E(x, y), and optimises
p(x_adv, y) and not only p(y|x_adv). ``w_density: 0`` changes the attack alone, which is near its "PreJEAT".
Ours: every number below, the sampler (SADA-JEM's, K = 10), the attack's steps, and eval mode while attacking.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from methods.primitives.energy import marginal_energy
from methods.primitives.energy_attack import EnergyAttack
from methods.primitives.losses import accuracy, cross_entropy
from methods.primitives.modes import frozen
from methods.primitives.negatives import Chains
from methods.primitives.ranks import mean
from methods.primitives.samplers import SGLD
from methods.training.density import DensityMethod
from methods.training.method import Batch, Card, Inner, Losses


@dataclass(frozen=True)
class Config:
    w_density: float = 1.0
    """lambda; the paper's value is unknown."""
    positives: Literal["adversarial", "clean"] = "adversarial"
    """Images whose energy is lowered."""
    attack: EnergyAttack = field(default_factory=lambda: EnergyAttack(steps=10))
    """The paper's steps are unknown."""
    negatives: Chains = field(default_factory=lambda: Chains(sampler=SGLD(steps=10, step_size=0.25, clip=2.0)))
    """The paper's sampler is unknown."""


class JEAT(DensityMethod):
    Config = Config
    density = False
    several_devices = True
    card = Card(
        title="Towards Understanding the Generative Capability of Adversarially Robust Classifiers",
        arxiv="2108.09093",
        code="none",
        family="energy-based",
        fidelity="reconstruction",
    )

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        with frozen(model, training=False):
            x_adv = self.config.attack(model, batch.x, batch.y, self.task.threat, batch.generator("attack"))
        return {"x_adv": x_adv, "x_q": self.sample(model, batch, len(batch.x))}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        logits = model(inner["x_adv"])
        adversarial = mean(cross_entropy(logits, batch.y))
        energy_adv = mean(marginal_energy(logits))
        samples = mean(marginal_energy(model(inner["x_q"])))
        positives = energy_adv if self.config.positives == "adversarial" else mean(marginal_energy(model(batch.x)))
        return Losses(
            adversarial + self.config.w_density * (positives - samples),
            {
                "energy_data": positives,
                "energy_samples": samples,
                "energy_adv": energy_adv,
                "adversarial": adversarial,
                "accuracy_adv": accuracy(logits, batch.y),
            },
        )
