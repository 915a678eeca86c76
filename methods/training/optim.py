"""Optimiser and learning-rate schedule; the rate is a pure function of the step, so it needs no state."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from methods.training.config import TrainConfig


def optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser the configuration names, over all parameters in one group."""
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of one optimiser step.

    * constant: ``lr``.
    * step: ``lr`` times ``decay`` for every milestone (a share of ``total_steps``) already reached.
    * cosine: half a cosine from ``lr`` to 0 over the steps after the warm-up.
    * one-cycle: a cosine rise from ``lr``/25 over ``warmup_steps``, then a cosine fall to ``lr``/250,000
      (the defaults of torch's OneCycleLR, without momentum cycling).

    Except for one-cycle, the first ``warmup_steps`` steps are scaled linearly, step i by i / ``warmup_steps``
    (as in JEM and its successors, whose very first step has rate 0).
    """
    warmup = config.warmup_steps
    share = (step - warmup) / max(1, total_steps - warmup)
    if config.schedule == "one-cycle":
        if step < warmup:
            return _cosine(config.lr / 25, config.lr, step / warmup)
        return _cosine(config.lr, config.lr / 25e4, share)
    lr = config.lr
    if config.schedule == "step":
        lr *= config.decay ** sum(step >= round(at * total_steps) for at in config.milestones)
    if config.schedule == "cosine" and step >= warmup:
        lr = _cosine(lr, 0.0, share)
    return lr * min(1.0, step / warmup) if warmup else lr


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class Updater:
    """The one place that zeroes gradients, clips them and steps the optimiser (see methods.training.method.Update).

    ``gradient_norm`` is the L2 norm of the last gradient that was applied, before it was clipped: a scalar tensor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
        self.optimizer = optimizer
        self.clip = clip
        self.gradient_norm = torch.zeros(())

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def __call__(self, total: Tensor) -> None:
        self.gradient(total)
        self.apply()

    def gradient(self, total: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()

    def apply(self) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.clip is not None:
            self.gradient_norm = nn.utils.clip_grad_norm_(parameters, self.clip)
        else:
            self.gradient_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.optimizer.step()
