"""The adversaries of PGD-AT and of TRADES, which their successors share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from methods.primitives.attacks import Attack
from methods.primitives.losses import cross_entropy, kl_divergence
from methods.primitives.modes import AttackMode, attacked
from methods.primitives.threat import ThreatModel


def ce_attack(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
    mode: AttackMode = "eval",
) -> Tensor:
    """x_adv = argmax CE(f(x'), y) over the ball around ``x`` [B, ...], detached (Madry et al. 2018).

    ``model`` (images -> logits) is in ``mode`` meanwhile; gradients reach the images only.

    Args:
        y: labels [B], or probabilities of the classes [B, K].
    """
    with attacked(model, mode):
        return attack(lambda x_adv: cross_entropy(model(x_adv), y), x, threat, generator)


def trades_attack(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
    mode: AttackMode = "eval",
    divergence: Callable[[Tensor, Tensor], Tensor] = kl_divergence,
) -> Tensor:
    """x_adv = argmax KL(p(x) || p(x')) over the ball around ``x`` [B, ...], detached (Zhang et al. 2019).

    As in the code of TRADES (yaodongyu/TRADES at 6e8e11b), ``model`` (images -> logits) is in eval mode meanwhile, if
    nothing else is asked for. Its clean prediction is computed once and not at every step.

    Args:
        divergence: of clean logits and adversarial ones, [B]; SCORE has the squared error of the probabilities.
    """
    with attacked(model, mode):
        with torch.no_grad():
            clean = model(x)
        return attack(lambda x_adv: divergence(clean, model(x_adv)), x, threat, generator)
