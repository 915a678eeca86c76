"""AGR, adversarial gradients redirected by clean ones (Tong et al. 2024), around any other method.

    theta_l <- theta_l - lr min(1, clip / |g_l|) g_l     for each parameter tensor l, by the base's own optimiser

    g      a - <a, c> c / |c|^2  where cos(a, c) <= 0,  else  cos(a, c) c + (1 - cos(a, c)) a
    a      the gradient of the loss of the method inside, ``base``;   c  that of mean CE(f(x), y)
    x_adv  argmax_{|x' - x| <= eps} CE(f(x'), y)   by PGD-10

Followed from the code and not the paper: cosine, projection and clipping are per tensor; before the share ``start`` of
the training the update is the base's; x_adv attacks cross-entropy in eval mode from a uniform start, around TRADES too;
momentum and weight decay act on what is edited.
Ours: x_adv is clamped to [0, 1] at every step (theirs discards that, so only the last iterate is; 26 of the 768 pixels
in our test then end elsewhere); a clean gradient of 0 edits nothing (theirs divides by it). CE(f(x), y) is the base's
own clean term where it has one, else one more pass, after the base's (theirs before). Around AWP both gradients are
those at theta + v (theirs passes x at theta and goes back through weights that are theta + v by then).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.classifier_attacks import ce_attack
from methods.primitives.gradient_surgery import edited_gradient
from methods.primitives.losses import cross_entropy
from methods.primitives.ranks import add_up, mean
from methods.training.method import Batch, Card, Inner, Losses, Task, Update
from methods.training.wrapper import Wrapper, WrapperConfig


@dataclass(frozen=True)
class Config(WrapperConfig):
    base: str = "trades"
    start: float = 155 / 200
    """Share of the training from which gradients are edited; script: from epoch 155 of 200."""
    clip: float = 0.1
    """Largest norm of each tensor's edited gradient; script: .1."""
    inner: Literal["ce", "base"] = "ce"
    """x_adv by ``attack`` on cross-entropy (code), or as the method inside finds it."""
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=0.25, start="uniform"))
    """Script: 10 steps of 2/255 at eps 8/255 from a uniform start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start <= 1:
            raise InputError(f"options.start is a share of the training in [0, 1], not {self.start}.")
        if not self.clip > 0:
            raise InputError(f"options.clip must be positive, not {self.clip}.")


class Edited:
    """The optimiser as the method inside sees it: its steps go along the edited gradient."""

    def __init__(self, update: Update, model: nn.Module, clean: Callable[[], Tensor], clip: float) -> None:
        self.update, self.clean, self.clip = update, clean, clip
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.others: tuple[Tensor, ...] = ()

    @property
    def lr(self) -> float:
        return self.update.lr

    def __call__(self, total: Tensor) -> None:
        self.gradient(total)
        self.apply()

    def gradient(self, total: Tensor) -> None:
        self.others = torch.autograd.grad(self.clean(), self.weights, retain_graph=True, materialize_grads=True)
        add_up(self.others)
        self.update.gradient(total)

    def apply(self) -> None:
        for weight, other in zip(self.weights, self.others, strict=True):
            if weight.grad is not None:
                weight.grad = edited_gradient(weight.grad, other, self.clip)
        self.update.apply()


class AGR(Wrapper):
    Config = Config
    several_devices = True
    card = Card(
        title="Balancing Generalization and Robustness in Adversarial Training via Steering through Clean and "
        "Adversarial Gradient Directions",
        arxiv="none (OpenReview uBoKLl4ZS1)",
        code="RUIYUN-ML/AGR at 03c6ee1",
        family="adversarial training",
        fidelity="official",
    )

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        if config.inner == "ce":
            self.refuse_other_attacks()

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        if self.config.inner == "base":
            return self.base.inner(model, batch)
        attack, random = self.config.attack, batch.generator("attack")
        return {"x_adv": ce_attack(attack, model, batch.x, batch.y, self.task.threat, random)}

    def descend(self, model: nn.Module, batch: Batch, update: Update, loss: Callable[[], Losses]) -> Losses:
        if batch.progress < self.config.start:
            return self.base.descend(model, batch, update, loss)
        latest = Losses(torch.zeros(()))

        def remembered() -> Losses:
            nonlocal latest
            latest = loss()
            return latest

        def clean() -> Tensor:
            term = latest.terms.get("clean")
            return mean(cross_entropy(model(batch.x), batch.labels)) if term is None else term

        return self.base.descend(model, batch, Edited(update, model, clean, self.config.clip), remembered)
