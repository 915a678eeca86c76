"""SCORE, self-consistent robust error (Pang et al. 2022): TRADES or PGD-AT with squared errors of probabilities.

    trades  min_theta  mean D(x, y) + beta * mean D(x_adv, x),     x_adv = argmax ||p(x') - p(x)||^2
    pgd     min_theta  mean D(x_adv, y),                           x_adv = argmax ||p(x') - onehot(y)||^2     by PGD-10

    D(x, y) = ||p(x) - onehot(y)||^2,   D(x_adv, x) = ||p(x_adv) - p(x)||^2;   clipped: relu(. - c^2 - c^2/(K - 1))

Followed from the code and not the paper: gradients flow through p(x) of the robust term. With generated data the clip
is on the robust term (and 0) and the attack sees batch statistics, which it does not move; without, the clip is on the
sum, and the attack sees running statistics (trades) or batch statistics, which it moves (pgd).
Ours: the clip is stated as c, the mass that a prediction may spread over the wrong classes at no cost, in every form
(with generated data the code takes the bound itself). The clean pass is the first (without generated data the code's
last: BatchNorm's running statistics weigh clean images 47 % instead of 53 %). Other distances are left out.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from methods.errors import InputError, not_negative
from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import trades_attack
from methods.primitives.losses import accuracy, squared_error
from methods.primitives.modes import AttackMode, attacked
from methods.primitives.ranks import mean
from methods.primitives.targets import one_hot
from methods.training.method import Batch, Card, Inner, Losses, Method


@dataclass(frozen=True)
class Config:
    form: Literal["trades", "pgd"] = "trades"
    """With generated data: trades. Without: both."""
    beta: float = 4.0
    """Weight of the robust term of the trades form; command: 4, released models: 3, without generated data: 6."""
    clip: float = 0.0
    """c; with generated data 0, without .3 (trades) or .4 (pgd)."""
    clip_on: Literal["robust", "sum"] = "robust"
    """What of the trades form is clipped; with generated data: robust, without: sum."""
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=0.25, start="uniform"))
    """Code: 10 steps of 2/255 at eps 8/255, uniform start; the trades form without generated data: normal."""
    attack_mode: AttackMode = "train-frozen-statistics"
    """BatchNorm during the attack; without generated data: eval (trades) or train (pgd)."""

    def __post_init__(self) -> None:
        not_negative("options.beta", self.beta)
        if not 0 <= self.clip < 1:
            raise InputError(f"options.clip is the mass of the wrong classes, in [0, 1), not {self.clip}.")


class SCORE(Method):
    Config = Config
    any_attack = True
    several_devices = True
    card = Card(
        title="Robustness and Accuracy Could Be Reconcilable by (Proper) Definition",
        arxiv="2202.10103",
        code="P2333/SCORE at e82f442",
        family="adversarial training",
        fidelity="official",
    )

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        config, threat, random = self.config, self.task.threat, batch.generator("attack")
        if config.form == "trades":
            return {"x_adv": trades_attack(config.attack, model, batch.x, threat, random, config.attack_mode, _apart)}
        label = one_hot(batch.y, self.task.num_classes)
        with attacked(model, config.attack_mode):
            x_adv = config.attack(lambda x: squared_error(model(x), label), batch.x, threat, random)
        return {"x_adv": x_adv}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        config, label = self.config, one_hot(batch.y, self.task.num_classes)
        if config.form == "pgd":
            logits = model(inner["x_adv"])
            adversarial = mean(self._clipped(squared_error(logits, label)))
            return Losses(adversarial, {"adversarial": adversarial, "accuracy_adv": accuracy(logits, batch.y)})
        clean, attacked_logits = model(batch.x), model(inner["x_adv"])
        natural, robust = squared_error(clean, label), _apart(clean, attacked_logits)
        if config.clip_on == "robust":
            total = natural + config.beta * self._clipped(robust)
        else:
            total = self._clipped(natural + config.beta * robust)
        return Losses(
            mean(total),
            {
                "clean": mean(natural),
                "robust": mean(robust),
                "accuracy_clean": accuracy(clean, batch.y),
                "accuracy_adv": accuracy(attacked_logits, batch.y),
            },
        )

    def _clipped(self, error: Tensor) -> Tensor:
        """Forgive what a prediction with the mass c spread over the wrong classes would cost."""
        classes = self.task.num_classes
        return F.relu(error - self.config.clip**2 * classes / (classes - 1))


def _apart(clean: Tensor, adversarial: Tensor) -> Tensor:
    return squared_error(adversarial, clean.float().softmax(1))
