"""Functions of images that hold the graph of one batch at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_batches(function: Callable[[Tensor, Tensor], Tensor], y: Tensor, batch_size: int) -> Callable[[Tensor], Tensor]:
    """Return x -> function(x, y) per image, which holds a graph of at most ``batch_size`` images at a time."""
    if batch_size >= len(y):
        return lambda x: function(x, y)
    return lambda x: _Batched.apply(x, y, function, batch_size)


class _Batched(torch.autograd.Function):
    """Values and gradients together, batch by batch; images are independent, so rows are too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, function: Callable[[Tensor, Tensor], Tensor], batch_size: int
    ) -> Tensor:
        values, gradients = [], []
        for x_batch, y_batch in zip(x.detach().split(batch_size), y.split(batch_size), strict=True):
            with torch.enable_grad():
                value = function(x_batch.requires_grad_(), y_batch)
                gradients.append(torch.autograd.grad(value.sum(), x_batch)[0])
            values.append(value.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0].view(-1, *[1] * (gradient.dim() - 1)) * gradient, None, None, None
