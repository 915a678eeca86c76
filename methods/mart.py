"""MART, misclassification-aware adversarial training (Wang et al. 2020).

    min_theta  mean BCE(f(x_adv), y) + beta * mean KL(p(x) || p(x_adv)) (1 - p_y(x)),     BCE = -log p_y - log(1 - p_k)

    k      the most probable class that is not y
    x_adv  argmax_{|x' - x| <= eps} CE(f(x'), y)   by PGD-10

Followed from the code and not the paper: the attack starts at x + 0.001 N(0, 1) and runs in eval mode; gradients flow
through p(x) in KL and in its weight 1.0000001 - p_y(x); 1e-12 is added to p(x_adv) inside the logarithm, and BCE has
1.0001 in place of 1; the passes are clean, then adversarial, in train mode.
Ours: nothing.
"""

from dataclasses import dataclass, field

from torch import nn

from methods.errors import not_negative
from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import ce_attack
from methods.primitives.losses import accuracy, boosted_cross_entropy, cross_entropy, kl_divergence
from methods.primitives.ranks import mean
from methods.training.method import Batch, Card, Inner, Losses, Method


@dataclass(frozen=True)
class Config:
    beta: float = 6.0
    """Weight of KL; their script: 6 for WRN-34-10, 5 for ResNet-18."""
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=7 / 31, start="normal"))
    """Their scripts: 10 steps of .007 at eps .031."""

    def __post_init__(self) -> None:
        not_negative("options.beta", self.beta)


class MART(Method):
    Config = Config
    any_attack = True
    several_devices = True
    card = Card(
        title="Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
        arxiv="none (OpenReview rklOg6EFwS)",
        code="YisenWang/MART at 2d83e17",
        family="adversarial training",
        fidelity="official",
    )

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        random = batch.generator("attack")
        return {"x_adv": ce_attack(self.config.attack, model, batch.x, batch.y, self.task.threat, random)}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        clean, adversarial = model(batch.x), model(inner["x_adv"])
        natural = cross_entropy(clean, batch.y)
        # 1 - p_y, of which the cross-entropy is -log p_y.
        missed = 1.0000001 - (-natural).exp()
        boosted = mean(boosted_cross_entropy(adversarial, batch.y))
        robust = mean(kl_divergence(clean, adversarial, floor=1e-12) * missed)
        return Losses(
            boosted + self.config.beta * robust,
            {
                "boosted": boosted,
                "robust": robust,
                "clean": mean(natural),
                "missed": mean(missed),
                "accuracy_clean": accuracy(clean, batch.y),
                "accuracy_adv": accuracy(adversarial, batch.y),
            },
        )
