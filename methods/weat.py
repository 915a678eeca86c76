"""WEAT, weighted energy adversarial training (Mirza et al. 2024): TRADES with energies as weights.

    min_theta  mean w(x) [CE(f(x'), y) + beta KL(p(x) || p(x_adv))],     w(x) = 1 / log(1 + exp |E(x)|)

    x_adv  argmax_{|x' - x| <= eps} KL(p(x) || p(x'))   by PGD-10;   E(x) = -logsumexp f(x), without gradient
    x'     x_adv (WEAT_adv) or x (WEAT_nat)

Followed from the code and not the paper: WEAT_adv with beta 6 (the command line; the function's default is 7); E of the
weight comes from the clean logits in train mode; gradients of KL reach both predictions.
Ours: the clean prediction of the attack and the clean logits of the loss are computed once.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from torch.nn.functional import softplus

from methods.errors import not_negative
from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import trades_attack
from methods.primitives.energy import marginal_energy
from methods.primitives.losses import accuracy, cross_entropy, kl_divergence
from methods.primitives.ranks import mean
from methods.training.method import Batch, Card, Inner, Losses, Method


@dataclass(frozen=True)
class Config:
    variant: Literal["adversarial", "natural"] = "adversarial"
    """Images of the cross-entropy: WEAT_adv (README: the paper's) or WEAT_nat."""
    beta: float = 6.0
    """Weight of KL; command line 6, the function's default 7."""
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=0.25, start="normal"))
    """10 steps of 2/255 at eps 8/255."""

    def __post_init__(self) -> None:
        not_negative("options.beta", self.beta)


class WEAT(Method):
    Config = Config
    any_attack = True
    several_devices = True
    card = Card(
        title="Shedding More Light on Robust Classifiers under the lens of Energy-based Models",
        arxiv="2407.06315",
        code="OmnAI-Lab/Robust-Classifiers-under-the-lens-of-EBM at b58e362",
        family="adversarial training",
        fidelity="official",
    )

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        attack, random = self.config.attack, batch.generator("attack")
        return {"x_adv": trades_attack(attack, model, batch.x, self.task.threat, random)}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        clean, adversarial = model(batch.x), model(inner["x_adv"])
        energy = marginal_energy(clean)
        weight = 1 / softplus(energy.detach().abs())
        classified = adversarial if self.config.variant == "adversarial" else clean
        each = cross_entropy(classified, batch.y) + self.config.beta * kl_divergence(clean, adversarial)
        return Losses(
            mean(weight * each),
            {
                "weight": mean(weight),
                "energy_clean": mean(energy),
                "energy_adv": mean(marginal_energy(adversarial)),
                "clean": mean(cross_entropy(clean, batch.y)),
                "adversarial": mean(cross_entropy(adversarial, batch.y)),
                "accuracy_clean": accuracy(clean, batch.y),
                "accuracy_adv": accuracy(adversarial, batch.y),
            },
        )
