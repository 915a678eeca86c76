"""A gradient edited by another one, so that a step down it does not raise the loss of the other."""

import torch
from torch import Tensor


def edited_gradient(gradient: Tensor, other: Tensor, clip: float) -> Tensor:
    """Return ``gradient`` [...] of one parameter without its conflict with ``other``, at most ``clip`` long.

    c = cos(gradient, other) <= 0: what of the gradient is orthogonal to the other; c > 0: c other + (1 - c) gradient
    (Tong et al. 2024; RUIYUN-ML/AGR at 03c6ee1). An ``other`` of 0 edits nothing.
    """
    direction = _unit(other)
    cosine = (_unit(gradient) * direction).sum()
    orthogonal = gradient - (gradient * direction).sum() * direction
    edited = torch.where(cosine > 0, cosine * other + (1 - cosine) * gradient, orthogonal)
    return edited * (clip / edited.norm()).clamp_max(1)


def _unit(gradient: Tensor) -> Tensor:
    """Scale a tensor to L2 norm 1; one that is 0 stays 0."""
    # Squares of a confident network's gradients underflow in float32: bring the largest entry to 1 first.
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / gradient.abs().amax().clamp_min(tiny)
    return scaled / scaled.norm().clamp_min(tiny)
