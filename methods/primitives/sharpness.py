"""Worse weights nearby: the climb of sharpness-aware minimisation, and adversarial weight perturbation."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.ranks import add_up

Perturbation = dict[nn.Parameter, Tensor]
"""What is added to each weight."""


@dataclass(frozen=True)
class SAM:
    """SAM (Foret et al. 2021) and its scale-invariant form ASAM (Kwon et al. 2021).

    w -> w + e with e = rho g / |g|, or adaptively e = rho w^2 g / | |w| g |, norms over all weights together.
    A negative radius is an InputError.
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


def weight_perturbation(total: Tensor, model: nn.Module, gamma: float) -> Perturbation:
    """Return v = gamma |w| g / (|g| + 1e-20) for each convolution or linear weight w, g its gradient of ``total``.

    Wu et al. 2020 (csdongxian/AWP at a7acf5d). As in their code, biases and whatever else has fewer than two
    dimensions, such as BatchNorm's weights, have no v; it is 0 where ``total`` does not depend on a weight.
    """
    weights = [
        weight
        for name, weight in model.named_parameters()
        if name.rpartition(".")[2] == "weight" and weight.dim() > 1 and weight.requires_grad
    ]
    uphill = torch.autograd.grad(total, weights, materialize_grads=True)
    add_up(uphill)
    with torch.no_grad():
        return {w: gamma * w.norm() / (g.norm() + 1e-20) * g for w, g in zip(weights, uphill, strict=True)}


@contextmanager
def perturbed(perturbation: Perturbation) -> Iterator[None]:
    """Hold the weights at w + v; on leaving, the same v is taken off, so that a step taken inside stays."""
    with torch.no_grad():
        for weight, v in perturbation.items():
            weight.add_(v)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, v in perturbation.items():
                weight.sub_(v)
