"""AWP, adversarial weight perturbation (Wu et al. 2020), around any other method.

    min_theta  max_v  L(theta + v; x_adv),     |v_l| <= gamma |theta_l| for each convolution or linear weight l

    v_l    gamma |theta_l| g_l / |g_l|, g the gradient of L at theta: one step
    L      the loss of the method inside, ``base``;   x_adv  what its inner problem finds at theta

Followed from the code and not the paper: the optimiser steps while the weights are theta + v, so that weight decay sees
these, and the same v is taken off afterwards; v moves no running statistics; x_adv is not sought again at theta + v;
biases and BatchNorm have no v; TRADES-AWP begins only after a share of the training (``warmup``).
Ours: no second network. Theirs takes one step of SGD on a copy and scales it to |v_l|, in which its rate cancels: the
gradient is taken at theta itself. PGD-AT's attack is in train mode for the first batch of an epoch as for the others
(theirs: eval); TRADES inside computes its clean logits once.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from methods.errors import InputError, not_negative
from methods.primitives.modes import fixed_statistics
from methods.primitives.sharpness import perturbed, weight_perturbation
from methods.training.method import Batch, Card, Losses, Update
from methods.training.wrapper import Wrapper, WrapperConfig


@dataclass(frozen=True)
class Config(WrapperConfig):
    gamma: float = 0.01
    """Length of v as a fraction of each weight's; paper: .01 (AT-AWP), .005 (TRADES-AWP)."""
    warmup: float = 0.0
    """Share of the training without v; script: 0 (AT-AWP), the first 9 of 200 epochs (TRADES-AWP)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("options.gamma", self.gamma)
        if not 0 <= self.warmup <= 1:
            raise InputError(f"options.warmup is a share of the training in [0, 1], not {self.warmup}.")


class AWP(Wrapper):
    Config = Config
    several_devices = True
    card = Card(
        title="Adversarial Weight Perturbation Helps Robust Generalization",
        arxiv="2004.05884",
        code="csdongxian/AWP at a7acf5d",
        family="adversarial training",
        fidelity="official",
    )

    def descend(self, model: nn.Module, batch: Batch, update: Update, loss: Callable[[], Losses]) -> Losses:
        if batch.progress < self.config.warmup:
            return self.base.descend(model, batch, update, loss)
        # The method inside may train a network of its own, whose statistics are to move once as well.
        with fixed_statistics(model), fixed_statistics(self.base):
            v = weight_perturbation(loss().total, model, self.config.gamma)
        with perturbed(v):
            return self.base.descend(model, batch, update, loss)
