"""Standard training: the baseline whose robust accuracy must be about zero.

    min_theta  mean CE(f(x), y)

Followed from the code and not a paper: nothing; the settings are those of the "none" attack of Rice et al. (2020).
"""

from dataclasses import dataclass

from torch import nn

from methods.errors import InputError
from methods.primitives.losses import accuracy, cross_entropy
from methods.primitives.ranks import mean
from methods.training.method import Batch, Card, Inner, Losses, Method


@dataclass(frozen=True)
class Config:
    label_smoothing: float = 0.0
    """Mass spread evenly over all classes; Rice et al.: 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise InputError(f"options.label_smoothing must be in [0, 1], not {self.label_smoothing}.")


class Standard(Method):
    Config = Config
    several_devices = True
    card = Card(
        title="Overfitting in adversarially robust deep learning (its standard training)",
        arxiv="2002.11569",
        code="locuslab/robust_overfitting at c47a25c",
        family="standard",
        fidelity="official",
    )

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        logits = model(batch.x)
        clean = mean(cross_entropy(logits, batch.y, self.config.label_smoothing))
        return Losses(clean, {"clean": clean, "accuracy_clean": accuracy(logits, batch.y)})
