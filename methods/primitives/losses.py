"""Losses per image, [B], never reduced, in float32 whatever the dtype of the logits [B, K]; and the accuracy."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.errors import InputError
from methods.primitives.ranks import mean


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log p(y|x) for labels [B], or -sum_k q_k log p_k for targets q [B, K], probabilities in float32.

    With smoothing s a label's target is 1 - s + s/K on ``y`` and s/K elsewhere (others: ``targets.soft_targets``).
    """
    return F.cross_entropy(logits.float(), y, reduction="none", label_smoothing=label_smoothing)


def kl_divergence(logits_p: Tensor, logits_q: Tensor, floor: float = 0.0) -> Tensor:
    """KL(p || q) of p = softmax(logits_p) and q = softmax(logits_q), with gradients through both.

    ``floor`` is added to q inside its logarithm (MART: 1e-12), which bounds the divergence by -log floor.

    TRADES has the clean prediction as p and the adversarial one as q (Zhang et al. 2019; yaodongyu/TRADES at
    6e8e11b), which a confident p keeps finite: at most log K when q is uniform.
    """
    # Both sides in logs: with p as target, the gradient of p log p is undefined where p underflows to 0.
    log_p, log_q = F.log_softmax(logits_p.float(), 1), F.log_softmax(logits_q.float(), 1)
    if floor:
        log_q = torch.logaddexp(log_q, log_q.new_full((), math.log(floor)))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """||p - q||^2 of p = softmax(logits) and probabilities q [B, K], with gradients through both.

    SCORE's distance (Pang et al. 2022), to one-hot targets or to another prediction: at most 2.
    """
    return (logits.float().softmax(1) - target).square().sum(1)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1 - p_k), k the most probable class that is not y (Wang et al. 2020; MART at 2d83e17).

    With their constants, 1.0001 - p_k + 1e-12: the second term is at most -log 1e-4 = 9.2, and its gradient finite.
    """
    p = logits.float().softmax(1)
    rival = p.detach().scatter(1, y[:, None], -1.0).argmax(1, keepdim=True)
    return cross_entropy(logits, y) - (1.0001 - p.gather(1, rival).squeeze(1) + 1e-12).log()


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y: positive exactly where the image is misclassified (Carlini & Wagner 2017)."""
    z, label = logits.float(), y[:, None]
    return (z.scatter(1, label, -math.inf).amax(1, keepdim=True) - z.gather(1, label)).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{k != y} z_k - z_y) / (z_(1) - z_(3)): invariant to shift and scale.

    Croce & Hein 2020 (AutoAttack), with their 1e-12 in the denominator.

    Raises:
        InputError: there are fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise InputError(f"The DLR loss compares three logits, but the model has {logits.shape[1]} classes.")
    first, _, third = logits.float().topk(3, dim=1).values.unbind(1)
    return margin(logits, y) / (first - third + 1e-12)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Percentage of the batch, over all ranks, whose largest logit is the label's, a scalar."""
    return 100 * mean((logits.argmax(1) == y).float())
