"""TRADES (Zhang et al. 2019).

    min_theta  mean CE(f(x), y) + beta * mean KL(p(x) || p(x_adv)),     x_adv = argmax KL(p(x) || p(x'))   by PGD-10

Followed from the code and not the paper: the attack starts at x + 0.001 N(0, 1) and runs in eval mode; gradients flow
through both p(x) and p(x_adv); the outer passes are clean, then adversarial, in train mode.
Ours: p(x) of the attack is computed once and not at every step, and the clean logits of the loss once and not twice
(same values and gradients; BatchNorm's running statistics weigh clean images 47 % instead of 67 %).
"""

from dataclasses import dataclass, field

from torch import nn

from methods.errors import not_negative
from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import trades_attack
from methods.primitives.losses import accuracy, cross_entropy, kl_divergence
from methods.primitives.ranks import mean
from methods.training.method import Batch, Card, Inner, Losses, Method


@dataclass(frozen=True)
class Config:
    beta: float = 6.0
    """Weight of the robust term, 1/lambda; paper: 6 (MNIST: 1)."""
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=7 / 31, start="normal"))
    """Paper: 10 steps of .007 at eps .031."""

    def __post_init__(self) -> None:
        not_negative("options.beta", self.beta)


class TRADES(Method):
    Config = Config
    any_attack = True
    several_devices = True
    card = Card(
        title="Theoretically Principled Trade-off between Robustness and Accuracy",
        arxiv="1901.08573",
        code="yaodongyu/TRADES at 6e8e11b",
        family="adversarial training",
        fidelity="official",
    )

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        attack, random = self.config.attack, batch.generator("attack")
        return {"x_adv": trades_attack(attack, model, batch.x, self.task.threat, random)}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        clean, adversarial = model(batch.x), model(inner["x_adv"])
        natural = mean(cross_entropy(clean, batch.y))
        divergence = kl_divergence(clean, adversarial)
        robust = mean(divergence)
        # A method around this one may have chosen a beta for each image (LAS-TRADES).
        weighted = mean(inner["beta"] * divergence) if "beta" in inner else self.config.beta * robust
        return Losses(
            natural + weighted,
            {
                "clean": natural,
                "robust": robust,
                "accuracy_clean": accuracy(clean, batch.y),
                "accuracy_adv": accuracy(adversarial, batch.y),
            },
        )
