"""Frozen batch normalisation: a network rewritten for the attacks, the same function up to rounding, and faster.

Batch normalisation in eval mode is a fixed factor and shift for each channel, and autograd's derivative of it computes
far more than that factor (on a CPU, for 64 channels of 32x32 pixels, it takes six times as long). Attacks take that
derivative thousands of times. Their verdicts come from the network itself.
"""

import copy

import torch
from torch import Tensor, nn


class FrozenBatchNorm(nn.Module):
    """Batch normalisation in eval mode as a factor and a shift for each channel.

    Torchvision's ``FrozenBatchNorm2d`` is the same function, rounded otherwise: it computes the factor in float32 in
    every pass, where this module computes it once, in float64, and rounds it to float32. Its rounding is part of what
    was measured, so that torchvision's cannot take its place.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            factor = (norm.running_var.double() + norm.eps).rsqrt()
            factor = factor if norm.weight is None else factor * norm.weight
            shift = -norm.running_mean * factor
            shift = shift if norm.bias is None else shift + norm.bias
            self.register_buffer("factor", factor.float().view(1, -1, 1, 1))
            self.register_buffer("shift", shift.float().view(1, -1, 1, 1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,C,H,W] to [B,C,H,W]."""
        return torch.addcmul(self.shift.to(x.dtype), x, self.factor.to(x.dtype))


def with_frozen_batchnorm(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode that has :class:`FrozenBatchNorm` and shares the model's parameters.

    The model itself is returned where there is nothing to rewrite, or where it cannot be copied.
    """
    found = [name for name, module in model.named_modules() if _is_frozen(module)]
    if not found:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        made = copy.deepcopy(model, shared)
    except Exception:  # a model from elsewhere may hold anything
        return model
    for name in found:
        norm = made.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        parent, _, own = name.rpartition(".")
        setattr(made.get_submodule(parent), own, FrozenBatchNorm(norm))
    return made


def _is_frozen(module: nn.Module) -> bool:
    """Tell whether a module is batch normalisation of PyTorch that normalises with fixed statistics."""
    hooked = bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    return type(module) is nn.BatchNorm2d and not module.training and module.running_mean is not None and not hooked
