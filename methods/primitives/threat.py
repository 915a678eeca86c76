"""The threat model: which perturbations of an image an adversary may choose."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.primitives.norm_ball import NormBall
from methods.primitives.random import normal_like, uniform_like


@dataclass(frozen=True)
class ThreatModel(NormBall):
    """The ball of radius ``eps`` around an image, cut with the image cube [0, 1].

    ``eps`` is exact and in the units of [0, 1] images; 0 is legal and leaves the adversary no choice. Every
    method takes batches [B, ...] and treats the images independently.
    """

    def project(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        """Move ``x_adv`` [B, ...] onto the ball around ``x``, then to [0, 1], which only brings it nearer.

        ``radius`` [B, 1, ...], in the units of the images, gives each image a ball of its own.
        """
        if self.norm == "Linf":
            reach = self.radius if radius is None else radius
            x_adv = x_adv.clamp(x - reach, x + reach)
        elif radius is not None:
            length = self.distance(x_adv, x).view_as(radius).clamp_min(torch.finfo(x.dtype).tiny)
            x_adv = x + (x_adv - x) * (radius / length).clamp_max(1)
        else:
            x_adv = x + (x_adv - x).renorm(p=2, dim=0, maxnorm=self.radius)
        return x_adv.clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return, per image, the unit-norm direction in which the objective rises fastest; 0 where flat."""
        return gradient.sign() if self.norm == "Linf" else unit_l2(gradient)

    def random_start(self, x: Tensor, generator: torch.Generator, scale: float = 1.0) -> Tensor:
        """Draw a point around each image of ``x``, within ``scale`` times eps, and clamp it to [0, 1].

        Linf: uniform in the ball. L2: a uniform direction times a length uniform in [0, scale * eps], which
        is denser near ``x`` than uniform in the ball (Rice et al. 2020; locuslab/robust_overfitting at
        c47a25c).
        """
        if self.norm == "Linf":
            delta = 2 * uniform_like(x, generator) - 1
        else:
            direction = self.steepest(normal_like(x, generator))
            delta = direction * uniform_like(x.flatten(1)[:, 0], generator).view(-1, *[1] * (x.dim() - 1))
        return (x + self.radius * scale * delta).clamp(0, 1)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the distance between each image of ``x_adv`` and its image of ``x``, in this norm, [B]."""
        order = float("inf") if self.norm == "Linf" else 2
        return torch.linalg.vector_norm((x_adv - x).flatten(1), ord=order, dim=1)


def unit_l2(gradient: Tensor) -> Tensor:
    """Scale each image's gradient [B, ...] to L2 norm 1; one that is 0 stays 0."""
    flat = gradient.flatten(1)
    # Squares of a confident network's gradients underflow in float32: bring the largest entry to 1 first.
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return F.normalize(flat).view_as(gradient)
