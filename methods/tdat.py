"""TDAT, taxonomy-driven fast adversarial training (Tong et al. 2024): one step, from the batch before.

    min_theta  mean CE(f(x_adv), q_out) + penalty * mean ||f(x_ref) - f(x_adv)||^2 tanh(1 - p(x_ref)_y)

    x_adv  one step of eps up CE(f(.), q_in) from x_0 = x + delta_0;   delta_0 <- what the batch before was perturbed by
    q_in   gamma on the label, (1 - gamma)/(K - 1) elsewhere;   q_out  gamma + (1 - gamma)/K, (1 - gamma)/K elsewhere
    gamma  max(gamma_min, gamma_scale tan(1 - epoch/epochs))

Followed from the code and not the paper: x_ref is x_0 (paper: x); the average of perturbations is overwritten by the
last one (``momentum: 0``; paper: .75); tan (paper: tanh). Both logits carry a gradient, as does the weight. Train mode.
Ours: delta_0 is clamped to the bounds of the images it meets, so that x_0 is an image (the code: of those before); a
smaller batch uses its first rows. As in the code, one pass of x_0 serves the attack and the loss (:meth:`TDAT.step`);
inside a wrapper, whose loss is a function of its own, x_0 passes twice, and only the second moves the statistics.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.errors import InputError, not_negative
from methods.primitives.attacks import PGD
from methods.primitives.losses import accuracy, cross_entropy
from methods.primitives.modes import AttackMode, attacked
from methods.primitives.random import generator, uniform_like
from methods.primitives.targets import soft_targets
from methods.training.method import Batch, Card, Inner, Losses, Method, Task, Update, observed

_SCHEDULES = {"tan": math.tan, "tanh": math.tanh}


@dataclass(frozen=True)
class Config:
    penalty: float = 0.6
    """Weight of the logits' distance, lambda; CIFAR-10's command: .6."""
    gamma_min: float = 0.15
    """Least mass of the label; CIFAR-10: .15."""
    gamma_scale: float = 0.6
    """Code: .6."""
    gamma_schedule: Literal["tan", "tanh"] = "tan"
    reference: Literal["start", "clean"] = "start"
    """x_ref: x_0 or x."""
    momentum: float = 0.0
    """Share of delta_0 that is carried on beside the perturbation it led to."""
    attack: PGD = field(default_factory=lambda: PGD(steps=1, step_size=1.0))
    """Code: one step of eps; its start is delta_0."""
    attack_mode: AttackMode = "train-frozen-statistics"
    """BatchNorm during the attack."""

    def __post_init__(self) -> None:
        not_negative("options.penalty", self.penalty)
        if not 0 <= self.momentum < 1:
            raise InputError(f"options.momentum must be in [0, 1), not {self.momentum}.")
        first = self.gamma_scale * _SCHEDULES[self.gamma_schedule](1)
        if not (0 <= self.gamma_min <= 1 and 0 <= first <= 1):
            raise InputError(f"The label's mass gamma leaves [0, 1]: from {first:g} to {self.gamma_min:g}.")


class TDAT(Method):
    Config = Config
    card = Card(
        title="Taxonomy Driven Fast Adversarial Training",
        arxiv="none",
        code="bookman233/TDAT at 1cf68b7",
        family="adversarial training",
        fidelity="official",
    )
    delta: Tensor
    """delta_0 of the next batch, by position in the batch: float32 [batch size, C, H, W]."""

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        shape = (task.batch_size, *task.image_shape)
        sides = 2 * uniform_like(torch.empty(shape), generator(task.seed, "delta")) - 1
        self.register_buffer("delta", task.threat.radius * task.threat.steepest(sides))

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        config, threat, random = self.config, self.task.threat, batch.generator("attack")
        x_start, target = self._start(batch), self._target(batch, "others")
        with attacked(model, config.attack_mode):
            x_adv = config.attack(lambda x: cross_entropy(model(x), target), batch.x, threat, random, x_start)
        self._carry(batch, x_adv)
        return {"x_adv": x_adv, "x_start": x_start}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        reference = model(inner["x_start"] if self.config.reference == "start" else batch.x)
        return self._losses(batch, reference, model(inner["x_adv"]))

    def step(self, model: nn.Module, batch: Batch, update: Update) -> Losses:
        config, threat = self.config, self.task.threat
        if not (config.reference == "start" and config.attack.steps == 1 and config.attack_mode != "eval"):
            return super().step(model, batch, update)
        x_start = self._start(batch).requires_grad_()
        reference = model(x_start)
        raised = cross_entropy(reference, self._target(batch, "others")).sum()
        (gradient,) = torch.autograd.grad(raised, x_start, retain_graph=True)
        length = config.attack.step_size * threat.radius
        x_adv = threat.project(x_start.detach() + length * threat.steepest(gradient), batch.x)
        self._carry(batch, x_adv)
        losses = self._losses(batch, reference, model(x_adv))
        update(losses.total)
        return Losses(losses.total, losses.terms | observed(batch, {"x_adv": x_adv}))

    def _losses(self, batch: Batch, reference: Tensor, logits: Tensor) -> Losses:
        adversarial = cross_entropy(logits, self._target(batch, "all")).mean()
        confidence = reference.float().softmax(1).gather(1, batch.y[:, None]).squeeze(1)
        distance = (reference.float() - logits.float()).square().sum(1)
        robust = (distance * torch.tanh(1.0000001 - confidence)).mean()
        terms = {"adversarial": adversarial, "robust": robust, "accuracy_adv": accuracy(logits, batch.y)}
        return Losses(adversarial + self.config.penalty * robust, terms)

    def _start(self, batch: Batch) -> Tensor:
        return self.task.threat.project(batch.x + self.delta[: len(batch.x)], batch.x)

    def _carry(self, batch: Batch, x_adv: Tensor) -> None:
        share = self.config.momentum
        self.delta[: len(batch.x)].mul_(share).add_(x_adv - batch.x, alpha=1 - share)

    def _target(self, batch: Batch, over: Literal["all", "others"]) -> Tensor:
        return soft_targets(batch.y, self.task.num_classes, self._gamma(batch), over)

    def _gamma(self, batch: Batch) -> float:
        config, epochs = self.config, self.task.epochs
        # The share of a whole number of epochs may be a rounding error short of it.
        epoch = math.floor(batch.progress * epochs + 1e-6)
        return max(config.gamma_min, config.gamma_scale * _SCHEDULES[config.gamma_schedule](1 - epoch / epochs))
