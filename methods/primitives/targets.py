"""Label targets that are not one-hot, as probabilities [B, K]."""

from typing import Literal, get_args

import torch
from torch import Tensor

from methods.errors import InputError, nearest

Over = Literal["others", "all"]


def soft_targets(y: Tensor, num_classes: int, true_mass: float, over: Over) -> Tensor:
    """Give ``true_mass`` to the labels ``y`` [B] and spread the rest evenly over the classes; float32 [B, K].

    Repositories smooth labels in three parametrisations, and the same number means different targets in each:

    - ``over="others"``: f on the label, (1 - f)/(K - 1) elsewhere. LAS-AT's factor f; TDAT's inner gamma.
    - ``over="all"``: the label has a share of the rest too. Gowal's smoothing s is true_mass 1 - s, hence
      1 - s + s/K on the label and s/K elsewhere; ``label_smoothing`` of torch is the same.
    - ``over="all"`` with TDAT's outer gamma as true_mass: gamma + (1 - gamma)/K on the label, so that one gamma of
      .15 is .15 inside and .235 outside for K = 10.

    Raises:
        InputError: the mass is outside [0, 1], or ``over`` is something else.
    """
    if not 0 <= true_mass <= 1:
        raise InputError(f"A label's share of the target lies in [0, 1], got {true_mass}.")
    if over not in get_args(Over):
        raise InputError(f'Targets are spread over "others" or "all", not "{over}".{nearest(over, get_args(Over))}')
    spread = (1 - true_mass) / (num_classes - 1 if over == "others" else num_classes)
    on_label = true_mass if over == "others" else true_mass + spread
    target = torch.full((len(y), num_classes), spread, device=y.device)
    return target.scatter_(1, y[:, None], on_label)


def one_hot(y: Tensor, num_classes: int) -> Tensor:
    """Return the labels ``y`` [B] as targets, float32 [B, K]."""
    return soft_targets(y, num_classes, 1.0, "others")
