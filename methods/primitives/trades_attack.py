"""The adversary of TRADES, which WEAT and other successors share."""

from collections.abc import Callable

import torch
from torch import Tensor

from methods.primitives.attacks import PGD
from methods.primitives.losses import kl_divergence
from methods.primitives.threat import ThreatModel


def trades_attack(
    pgd: PGD, network: Callable[[Tensor], Tensor], x: Tensor, threat: ThreatModel, generator: torch.Generator
) -> Tensor:
    """x_adv = argmax KL(p(x) || p(x')) over the ball around ``x`` [B, ...] (Zhang et al. 2019), detached.

    The clean prediction is computed once and not at every step, as the code of TRADES does. The mode of
    ``network`` (images -> logits) is the caller's business.
    """
    with torch.no_grad():
        clean = network(x)
    return pgd(lambda x_adv: kl_divergence(clean, network(x_adv)), x, threat, generator)
