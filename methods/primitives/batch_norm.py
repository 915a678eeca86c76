"""Batch normalisation over the images of all ranks.

torch's SyncBatchNorm takes tensors on a GPU alone, and would replace the modules; here a layer stays the layer it is,
with its names in the state dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.errors import InputError
from methods.primitives import ranks


def synchronise(network: nn.Module) -> None:
    """Let every BatchNorm layer of a network, in train mode, take its statistics over the rows of all ranks.

    A single process, a rank :func:`methods.primitives.ranks.apart` and eval mode are as before.

    Raises:
        InputError: the network has batch normalisation of another kind than torch's own.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _Synchronised):
            kind = _KINDS.get(type(module))
            if kind is None:
                raise InputError(
                    f'The layer "{name}" normalises batches in a way of its own ({type(module).__name__}), whose '
                    "statistics cannot be taken over several devices."
                )
            module.__class__ = kind
    # Not where it is defined: the compiler takes seconds to import.
    _Synchronised.across = cast(Any, torch.compiler.disable(_across))


def _across(layer: _Synchronised, x: Tensor) -> Tensor:
    return layer.normalised(x)


class _Synchronised(_BatchNorm):
    across: Callable[..., Tensor] = _across

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or ranks.count() == 1:
            return super().forward(input)
        return self.across(input)

    def normalised(self, x: Tensor) -> Tensor:
        """Return [B, C, ...] normalised by statistics of all ranks, which move the running ones."""
        self._check_input_dim(x)
        mean, var, n = _statistics(x)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), factor)
                self.running_var.lerp_((var * n / (n - 1)).to(self.running_var), factor)
        return _Normalised.apply(x, self.weight, self.bias, mean, var, n, self.eps)


class _BatchNorm1d(_Synchronised, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_Synchronised, nn.BatchNorm2d):
    pass


class _BatchNorm3d(_Synchronised, nn.BatchNorm3d):
    pass


_KINDS: dict[type[nn.Module], type[_Synchronised]] = {
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.BatchNorm3d: _BatchNorm3d,
}


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance [C] of each channel over all ranks, and the number of values behind them.

    They are float32, or float64 where ``x`` is.
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    n = x.numel() // x.shape[1]
    with torch.no_grad():
        own = torch.zeros(2 * x.shape[1] + 1, dtype=torch.float64, device=x.device)
        own[-1] = n
        if n:
            var, mean = torch.var_mean(x.to(_wide(x)), axes, correction=0)
            # In double precision a mean square less a squared mean loses nothing that float32 could show.
            var, mean = var.double(), mean.double()
            own[:-1] = n * torch.cat([mean, var + mean.square()])
        dist.all_reduce(own)
        mean, square = (own[:-1] / own[-1]).chunk(2)
        var = (square - mean.square()).clamp(min=0)
        return mean.to(_wide(x)), var.to(_wide(x)), own[-1].to(_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    """Return the type in which sums over a batch are taken: float32, or float64 where ``x`` is."""
    return torch.promote_types(x.dtype, torch.float32)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        n: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), n)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, n = ctx.saved_tensors
        along = (1, -1, *[1] * (x.dim() - 2))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        normal, gradient = (x - mean.view(along)) * scale.view(along), gradient.to(_wide(gradient))
        own = torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])
        of_x = None
        if ctx.needs_input_grad[0]:
            both = own.clone()
            dist.all_reduce(both)
            shift, tilt = (both / n).unbind()
            of_x = gradient - shift.view(along) - normal * tilt.view(along)
            of_x = (of_x * (scale if weight is None else scale * weight).view(along)).to(x.dtype)
        of_bias, of_weight = own.unbind()
        return of_x, None if weight is None else of_weight, None if weight is None else of_bias, None, None, None, None
