"""Input domain of a model: the units of pixels in which it is clearly most accurate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.models.finding import Finding, undisturbed

ALPHA = 1e-3
"""Level of the sign test by which another input domain must beat [0,1]."""


@dataclass(frozen=True)
class Domain:
    """Units of a network's input: (pixel - mean) / std for pixels in [0,1], one value for all channels or each."""

    name: str
    mean: tuple[Fraction, ...] = (Fraction(0),)
    std: tuple[Fraction, ...] = (Fraction(1),)

    @property
    def identity(self) -> bool:
        """Whether these are the pixels themselves."""
        return set(self.mean) == {Fraction(0)} and set(self.std) == {Fraction(1)}

    @property
    def where(self) -> str:
        """Place of values in this domain, in words: "in [-1,1]", or "after" a normalisation."""
        return f"in {self.name}" if self.name.startswith("[") else f"after {self.name}"

    def __call__(self, x: Tensor) -> Tensor:
        """Convert images [B,C,H,W] in [0,1]."""
        # Times 1/std: 255 is a float and 1/255 is none, and networks that cut to bytes would see 254.
        mean, scale = ([float(value) for value in values] for values in (self.mean, [1 / std for std in self.std]))
        return (x - x.new_tensor(mean).view(-1, 1, 1)) * x.new_tensor(scale).view(-1, 1, 1)

    def before(self, model: nn.Module) -> nn.Module:
        """Return ``model`` behind this conversion, from pixels to logits; its modules are shared."""
        return model if self.identity else _Converted(self, model)


class _Converted(nn.Module):
    def __init__(self, domain: Domain, model: nn.Module) -> None:
        super().__init__()
        self.domain, self.model = domain, model
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        return self.model(self.domain(x))


def _domain(name: str, mean: str, std: str) -> Domain:
    values = (tuple(Fraction(value) for value in text.split()) for text in (mean, std))
    return Domain(name, *values)


PIXELS = Domain("[0,1]")
SYMMETRIC = _domain("[-1,1]", "1/2", "1/2")
BYTES = _domain("[0,255]", "0", "1/255")
NORMALISED = (
    _domain("CIFAR-10 normalisation", "0.4914 0.4822 0.4465", "0.2470 0.2435 0.2616"),
    _domain("CIFAR-100 normalisation", "0.5071 0.4865 0.4409", "0.2673 0.2564 0.2762"),
    _domain("ImageNet normalisation", "0.485 0.456 0.406", "0.229 0.224 0.225"),
)
"""Mean and standard deviation per channel as they are commonly written, of images with three channels."""


def candidates(channels: int) -> tuple[Domain, ...]:
    """Return the domains to try on images of so many channels, [0,1] first."""
    return (PIXELS, SYMMETRIC, BYTES, *(NORMALISED if channels == 3 else ()))


@dataclass(frozen=True, eq=False)
class Trial:
    """Outcome of classifying the same images in one input domain."""

    domain: Domain
    correct: Tensor
    """Whether each image is classified correctly, bool [N]."""

    @property
    def accuracy(self) -> float:
        """Percentage of the images that it classifies correctly."""
        return 100 * self.correct.double().mean().item()

    @property
    def beatable(self) -> bool:
        """Whether any other trial can beat it: it leaves enough images for the sign test."""
        return 2.0 ** -int((~self.correct).sum()) < ALPHA

    def beats(self, other: Trial) -> bool:
        """Whether more images are correct than binomial noise explains: exact one-sided sign test at ALPHA."""
        won, lost = self._duel(other)
        tails = sum(math.comb(won + lost, k) for k in range(won, won + lost + 1))
        return tails < ALPHA * 2 ** (won + lost)

    def leads(self, other: Trial) -> bool:
        """Whether more images are correct by over one standard deviation of that noise."""
        won, lost = self._duel(other)
        return won - lost > math.sqrt(won + lost)

    def _duel(self, other: Trial) -> tuple[int, int]:
        return int((self.correct & ~other.correct).sum()), int((other.correct & ~self.correct).sum())


def try_domains(
    model: nn.Module, x: Tensor, y: Tensor, domains: Sequence[Domain], batch_size: int = 100
) -> list[Trial]:
    """Classify x [N,C,H,W] in [0,1], labels y [N], in every domain; what is not finite or stops the model is wrong."""

    def correct(domain: Domain, run: Callable[[Tensor], Tensor]) -> Tensor:
        try:
            logits = torch.cat([run(domain(batch)) for batch in x.split(batch_size)])
            return (logits.argmax(1) == y) & logits.isfinite().all(1)
        except Exception:
            return torch.zeros_like(y, dtype=torch.bool)

    with undisturbed(model, x) as run, torch.no_grad():
        return [Trial(domain, correct(domain, run).cpu()) for domain in domains]


def expected(trials: Sequence[Trial]) -> Trial:
    """Return the trial in the domain that the model expects.

    That is ``trials[0]``, the one of [0,1], unless the most accurate trial beats it. Then it is the first of those that
    the most accurate one does not lead, which are as good as equal.
    """
    best = max(trials, key=lambda trial: trial.accuracy)
    return next(trial for trial in trials if not best.leads(trial)) if best.beats(trials[0]) else trials[0]


def domain_finding(trials: Sequence[Trial]) -> Finding:
    """Return which domain the model expects, as a finding; ``trials[0]`` is the one of [0,1]."""
    given, best = trials[0], expected(trials)
    if best is given:
        sentence = f"no other input domain suits it better than [0,1], where it is right on {given.accuracy:.1f} %"
        return Finding("input domain", "fine", given.accuracy, best.accuracy, sentence)
    rivals = [trial.domain.name for trial in trials if trial not in (given, best) and not best.beats(trial)]
    alike = f"; these images do not tell it from {', '.join(rivals)}" if rivals else ""
    sentence = (
        f"the model expects inputs {best.domain.where}, not [0,1]: "
        f"it is right on {best.accuracy:.1f} % there and on {given.accuracy:.1f} % in [0,1]{alike}"
    )
    return Finding("input domain", "problem", given.accuracy, best.accuracy, sentence)
