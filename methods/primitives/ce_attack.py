"""The adversary of PGD-AT, which MART, AGR and other successors share."""

from typing import Literal

import torch
from torch import Tensor, nn

from methods.primitives.attacks import Attack
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen
from methods.primitives.threat import ThreatModel

AttackMode = Literal["eval", "train", "train-frozen-statistics"]
"""BatchNorm during an attack: running statistics; the batch's, moving the running ones; the batch's, moving nothing."""


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
    """
    with frozen(model, training=mode != "eval", track_statistics=mode == "train"):
        return attack(lambda x_adv: cross_entropy(model(x_adv), y), x, threat, generator)
