"""The adversary of TRADES, which WEAT and other successors share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from methods.primitives.attacks import PGD
from methods.primitives.losses import kl_divergence
from methods.primitives.modes import AttackMode, attacked
from methods.primitives.threat import ThreatModel


def trades_attack(
    pgd: PGD,
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
        return pgd(lambda x_adv: divergence(clean, model(x_adv)), x, threat, generator)
