"""The threat model: which perturbations of an image an adversary may choose."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.errors import InputError
from methods.primitives.random import normal_like, uniform_like

Norm = Literal["Linf", "L2"]

_NORMS: dict[str, Norm] = {"linf": "Linf", "l2": "L2"}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?"
_EPS = re.compile(rf"({_NUMBER})(?:\s*/\s*({_NUMBER}))?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class ThreatModel:
    """The ball of radius ``eps`` around an image, cut with the image cube [0, 1].

    ``eps`` is exact and in the units of [0, 1] images; 0 is legal and leaves the adversary no choice. Every
    method takes batches [B, ...] and treats the images independently.

    Raises:
        InputError: the norm is unknown, or ``eps`` is negative, or above 1 for Linf.
    """

    norm: Norm
    eps: Fraction

    def __post_init__(self) -> None:
        if self.norm not in _NORMS.values():
            raise InputError(f'Unknown norm "{self.norm}": a threat model is "Linf:EPS" or "L2:EPS".')
        if self.eps < 0:
            raise InputError(f"eps must not be negative, got {_text(self.eps)}.")
        if self.norm == "Linf" and self.eps > 1:
            meant = f" Did you mean {_text(self.eps)}/255?" if self.eps <= 255 else ""
            raise InputError(f"An Linf eps lies between 0 and 1, got {_text(self.eps)}.{meant}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"Linf:8/255"`` or ``"L2:0.5"``; the norm's spelling is case-insensitive.

        Raises:
            InputError: the text is anything else.
        """
        norm, colon, eps = (part.strip() for part in text.partition(":"))
        if not colon or norm.lower() not in _NORMS:
            raise InputError(f'"{text}" is not a threat model; write "Linf:8/255" or "L2:0.5".')
        number = _EPS.fullmatch(eps)
        if number is None or (number[2] and not Fraction(number[2])):
            raise InputError(f'"{eps}" in "{text}" is not an eps; write a fraction like 8/255 or a decimal like 0.5.')
        return cls(_NORMS[norm.lower()], Fraction(number[1]) / Fraction(number[2] or 1))

    def __str__(self) -> str:
        return f"{self.norm}:{_text(self.eps)}"

    @property
    def slug(self) -> str:
        """The name as part of a path, for example ``linf-8_255``."""
        return f"{self.norm.lower()}-{_text(self.eps).replace('/', '_')}"

    @property
    def radius(self) -> float:
        """``eps`` as a float."""
        return float(self.eps)

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


def _text(eps: Fraction) -> str:
    """Write ``eps`` exactly: as a short decimal, else in 255ths, else as a fraction."""
    if (eps * 10**6).denominator == 1:
        return f"{float(eps):.6f}".rstrip("0").rstrip(".")
    if (eps * 255).denominator == 1:
        return f"{eps * 255}/255"
    return str(eps)
