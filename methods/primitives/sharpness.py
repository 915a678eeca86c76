"""Sharpness-aware minimisation: the climb to the worst weights nearby."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.errors import InputError


@dataclass(frozen=True)
class SAM:
    """SAM (Foret et al. 2021) and its scale-invariant form ASAM (Kwon et al. 2021).

    w -> w + e with e = rho g / |g|, or adaptively e = rho w^2 g / | |w| g |, norms over all weights together.

    Raises:
        InputError: a negative radius.
    """

    rho: float = 2.0
    """Radius; 0 leaves the weights where they are."""
    adaptive: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise InputError(f"SAM's rho must be finite and not negative, got {self.rho}.")

    @contextmanager
    def climbed(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Hold the weights at w + e, e along the gradients now in ``.grad``; on leaving they are w again, bit for bit.

        Parameters without a gradient stay.
        """
        moving = [parameter for parameter in parameters if parameter.grad is not None]
        with torch.no_grad():
            kept = [parameter.detach().clone() for parameter in moving]
            gradients = [_gradient(parameter) for parameter in moving]
            scales = [weight.abs() if self.adaptive else torch.ones_like(weight) for weight in kept]
            norm = torch.stack([(s * g).norm() for s, g in zip(scales, gradients, strict=True)]).norm()
            for parameter, scale, gradient in zip(moving, scales, gradients, strict=True):
                parameter.add_(scale.square() * gradient * (self.rho / (norm + 1e-12)))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(moving, kept, strict=True):
                    parameter.copy_(weight)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
