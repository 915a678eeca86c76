"""The adversary of TRADES, which WEAT and other successors share."""

import torch
from torch import Tensor, nn

from methods.primitives.attacks import Attack
from methods.primitives.losses import kl_divergence
from methods.primitives.modes import frozen
from methods.primitives.threat import ThreatModel


def trades_attack(
    attack: Attack, model: nn.Module, x: Tensor, threat: ThreatModel, generator: torch.Generator
) -> Tensor:
    """x_adv = argmax KL(p(x) || p(x')) over the ball around ``x`` [B, ...], detached (Zhang et al. 2019).

    As in the code of TRADES (yaodongyu/TRADES at 6e8e11b), ``model`` (images -> logits) is in eval mode meanwhile. Its
    clean prediction is computed once and not at every step.
    """
    with frozen(model, training=False):
        with torch.no_grad():
            clean = model(x)
        return attack(lambda x_adv: kl_divergence(clean, model(x_adv)), x, threat, generator)
