"""PGD-AT (Madry et al. 2018; early-stopped as by Rice et al. 2020).

    min_theta  mean CE(f(x_adv), y),     x_adv = argmax_{|x' - x| <= eps} CE(f(x'), y)   by PGD-10

Followed from the code and not the paper: clean images do not enter the loss, and the attack runs in train mode, where
each of its passes moves the BatchNorm statistics (``attack_mode: train``, Rice). ``eval`` is the convention of TRADES
and of "Bag of Tricks for Adversarial Training".
Ours: gradients of the attack reach the images only, and no pass is made just for the log.
"""

from dataclasses import dataclass, field

from torch import nn

from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import ce_attack
from methods.primitives.losses import accuracy, cross_entropy
from methods.primitives.modes import AttackMode
from methods.primitives.ranks import mean
from methods.training.method import Batch, Card, Inner, Losses, Method


@dataclass(frozen=True)
class Config:
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=0.25, start="uniform"))
    """Rice et al.: 10 steps of 2/255 at eps 8/255 from a uniform start."""
    attack_mode: AttackMode = "eval"
    """BatchNorm during the attack; Rice et al.: train."""


class PGDAT(Method):
    Config = Config
    any_attack = True
    several_devices = True
    card = Card(
        title="Towards Deep Learning Models Resistant to Adversarial Attacks",
        arxiv="1706.06083",
        code="locuslab/robust_overfitting at c47a25c",
        family="adversarial training",
        fidelity="official",
    )

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        config, random = self.config, batch.generator("attack")
        return {
            "x_adv": ce_attack(config.attack, model, batch.x, batch.y, self.task.threat, random, config.attack_mode)
        }

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        logits = model(inner["x_adv"])
        adversarial = mean(cross_entropy(logits, batch.labels))
        return Losses(adversarial, {"adversarial": adversarial, "accuracy_adv": accuracy(logits, batch.y)})
