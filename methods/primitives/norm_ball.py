"""Norm and radius of a threat model: read, written and compared without torch."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Self

from methods.errors import InputError

Norm = Literal["Linf", "L2"]

_NORMS: dict[str, Norm] = {"linf": "Linf", "l2": "L2"}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?"
_EPS = re.compile(rf"({_NUMBER})(?:\s*/\s*({_NUMBER}))?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class NormBall:
    """A ball in a norm; ``eps``, its radius, is exact and in the units of [0, 1] images.

    A field out of range is an InputError.
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


def _text(eps: Fraction) -> str:
    """Write ``eps`` exactly: as a short decimal, else in 255ths, else as a fraction."""
    if (eps * 10**6).denominator == 1:
        return f"{float(eps):.6f}".rstrip("0").rstrip(".")
    if (eps * 255).denominator == 1:
        return f"{eps * 255}/255"
    return str(eps)
