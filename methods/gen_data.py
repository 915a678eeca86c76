"""Adversarial training with generated data (Gowal et al. 2020, 2021; Rebuffi et al. 2021; Wang et al. 2023).

    min_theta  mean CE(f(x), q) + beta * mean KL(p(x) || p(x_adv)),     x_adv = argmax KL(p(x) || p(x'))   by PGD-10

    q  1 - s + s/K on the label and s/K elsewhere;  with CutMix: both labels by area, and x_adv = argmax CE(f(x'), q)

This is TRADES as these papers train it; which images a batch holds (70 % generated ones), the averaged weights and the
schedule are the recipe's. Papers differ in beta, the generator and the budget: recipes gowal_generated,
rebuffi_cutmix, better_dm.
Followed from the code and not the papers: the attack starts uniformly in the ball and sees batch statistics, which it
does not move; with CutMix it raises the loss of the mixed label and not the KL, and labels are not smoothed. The
authors of the first three papers released no training code: it is imrahulr's, and that of Wang et al.
Ours: CutMix mixes a batch once (the code: a quarter of its images four times), and its CE is not the KL from q, which
differs by a constant. The consistency term in Wang et al.'s code, off by default, is left out.
"""

from dataclasses import dataclass, field

from torch import nn

from methods.errors import InputError, not_negative
from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import ce_attack, trades_attack
from methods.primitives.cutmix import cutmix
from methods.primitives.losses import accuracy, cross_entropy, kl_divergence
from methods.primitives.modes import AttackMode
from methods.primitives.ranks import mean
from methods.primitives.targets import one_hot, soft_targets
from methods.training.method import Batch, Card, Inner, Losses, Method


@dataclass(frozen=True)
class Config:
    beta: float = 5.0
    """Weight of the robust term; Wang et al.: 5, Gowal et al. and Rebuffi et al.: 6."""
    label_smoothing: float = 0.1
    """s; code: .1."""
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=0.25, start="uniform"))
    """Code: 10 steps of 2/255 at eps 8/255 from a uniform start."""
    attack_mode: AttackMode = "train-frozen-statistics"
    """BatchNorm during the attack."""
    cutmix: bool = False
    """Whether images are mixed; Rebuffi et al.: yes."""
    window: float | None = 0.625
    """Side of CutMix's window as a share of the image's; Rebuffi et al.: 20 of 32 pixels. Null: random, as coded."""

    def __post_init__(self) -> None:
        not_negative("options.beta", self.beta)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"options.label_smoothing must be in [0, 1), not {self.label_smoothing}.")
        if self.window is not None and not 0 < self.window <= 1:
            raise InputError(f"options.window is a share of the side, in (0, 1], or null, not {self.window}.")


class GenData(Method):
    Config = Config
    card = Card(
        title="Better Diffusion Models Further Improve Adversarial Training",
        arxiv="2302.04638",
        code="wzekai99/DM-Improves-AT at b390f25",
        family="adversarial training",
        fidelity="official",
    )

    @property
    def any_attack(self) -> bool:
        return not self.config.cutmix

    @property
    def several_devices(self) -> bool:
        # CutMix mixes each image with any other of the batch.
        return not self.config.cutmix

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        config, threat, random = self.config, self.task.threat, batch.generator("attack")
        if not config.cutmix:
            return {"x_adv": trades_attack(config.attack, model, batch.x, threat, random, config.attack_mode)}
        labels = one_hot(batch.y, self.task.num_classes)
        x, target = cutmix(batch.x, labels, config.window, batch.generator("cutmix"))
        x_adv = ce_attack(config.attack, model, x, target, threat, random, config.attack_mode)
        return {"x": x, "target": target, "x_adv": x_adv}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        smoothed = soft_targets(batch.y, self.task.num_classes, 1 - self.config.label_smoothing, "all")
        target = inner.get("target", smoothed)
        clean, adversarial = model(inner.get("x", batch.x)), model(inner["x_adv"])
        natural = mean(cross_entropy(clean, target))
        robust = mean(kl_divergence(clean, adversarial))
        label = target.argmax(1)
        return Losses(
            natural + self.config.beta * robust,
            {
                "clean": natural,
                "robust": robust,
                "accuracy_clean": accuracy(clean, label),
                "accuracy_adv": accuracy(adversarial, label),
            },
        )
