"""The adversary of PGD-AT, which MART, AGR and other successors share."""

import torch
from torch import Tensor, nn

from methods.primitives.attacks import Attack
from methods.primitives.losses import cross_entropy
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
