"""Optimiser and learning-rate schedule; the rate is a pure function of the step, so it needs no state."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from methods.primitives.ranks import add_up
from methods.training.config import TrainConfig


def normalisation(module: nn.Module) -> list[str]:
    """Return the names of the parameters of a module that belong to its normalisation layers."""
    return [
        f"{name}.{parameter}" if name else parameter
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm | nn.GroupNorm | nn.LayerNorm)
        for parameter, _ in layer.named_parameters(recurse=False)
    ]


def optimizer(
    parameters: Iterable[nn.Parameter], config: TrainConfig, undecayed: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the optimiser the configuration names; ``undecayed`` parameters, in a group of their own, do not decay."""
    apart = {id(parameter) for parameter in undecayed}
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for parameter in parameters:
        groups[id(parameter) in apart]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
    )


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of one optimiser step.

    * constant: ``lr``.
    * step: ``lr`` times ``decay`` for every milestone (a share of ``total_steps``) already reached.
    * cosine: half a cosine from ``lr`` to 0 over the steps after the warm-up.
    * one-cycle: a cosine rise from ``lr``/25 over ``warmup_steps``, then a cosine fall to ``lr``/250,000
      (the defaults of torch's OneCycleLR; :func:`momentum` cycles the momentum).

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
        for at, factor in zip(config.milestones, config.decays, strict=True):
            lr *= factor if step >= round(at * total_steps) else 1
    if config.schedule == "cosine" and step >= warmup:
        lr = _cosine(lr, 0.0, share)
    return lr * min(1.0, step / warmup) if warmup else lr


def momentum(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the momentum of one optimiser step: ``momentum``, or what ``momentum_cycle`` makes of it.

    The cycle falls from its greatest to its least value while the rate rises, and rises while that falls.
    """
    if config.momentum_cycle is None:
        return config.momentum
    least, greatest = config.momentum_cycle
    if step < config.warmup_steps:
        return _cosine(greatest, least, step / config.warmup_steps)
    return _cosine(least, greatest, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))


class Schedule:
    """Learning rate and momentum of every step of a training."""

    def __init__(self, config: TrainConfig, total_steps: int, steps_per_epoch: int) -> None:
        self.config, self.total_steps, self.unit = config, total_steps, 1
        if config.epoch_schedule:
            # A scheduler stepped once an epoch is at its peak, and at its end, in an epoch and not behind one.
            one_cycle = config.schedule == "one-cycle"
            warmup = config.warmup_steps // steps_per_epoch - one_cycle
            self.config = replace(config, warmup_steps=max(0, warmup))
            self.total_steps, self.unit = total_steps // steps_per_epoch - one_cycle, steps_per_epoch

    def set(self, optimizer: torch.optim.Optimizer, step: int, factor: float = 1.0) -> float:
        """Set rate, times ``factor``, and momentum of ``step`` in every group; return the rate."""
        place = step // self.unit
        lr = factor * learning_rate(place, self.total_steps, self.config)
        for group in optimizer.param_groups:
            group["lr"] = lr
            if self.config.momentum_cycle is not None:
                value = momentum(place, self.total_steps, self.config)
                group.update({"betas": (value, group["betas"][1])} if "betas" in group else {"momentum": value})
        return lr


def average(config: TrainConfig, total_steps: int) -> Callable[..., None]:
    """Return how torch's AveragedModel is to move: by ``ema``, or by what ``ema_warmup`` makes of it.

    With a warm-up it follows imrahulr/adversarial_robustness_pytorch at 6df6a8f: a copy until that share of the steps,
    then a decay of min(ema, (1 + n)/(10 + n)) after n further steps.
    """
    assert config.ema is not None
    ema = config.ema
    if config.ema_warmup is None:
        return get_ema_multi_avg_fn(ema)
    warmup = config.ema_warmup * total_steps

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        # ``count`` steps are averaged already; this is the next one.
        n = int(count) + 1 - warmup
        decay = min(ema, (1 + n) / (10 + n)) if n >= 0 else 0.0
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    return update


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class Updater:
    """The one place that zeroes gradients, clips them and steps the optimiser (see methods.training.method.Update).

    Gradients are added up over the ranks, of which each has that of its own images.

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
        add_up([parameter.grad for parameter in self._parameters() if parameter.grad is not None])

    def apply(self) -> None:
        parameters = self._parameters()
        if self.clip is not None:
            self.gradient_norm = nn.utils.clip_grad_norm_(parameters, self.clip)
        else:
            self.gradient_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.optimizer.step()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
