"""Accuracy as the attack grows: PGD over a grid of radii, without a bound, and over iterations (Carlini et al. 2019).

Everything but the swept number is PGD-20's (:mod:`benchmark.metrics.pgd`), its starts included, and the verdict is
on the last iterate: under the same settings, both curves pass through PGD-20's own accuracy at eps and 20
iterations. The noise of the start is the same for every radius, so that differences between radii are not luck.
The step of the radius curve is a fraction of its radius. A radius beyond what covers [0, 1] is cut to that: Linf 1,
L2 sqrt(CHW) rounded up. That is also the radius of the attack without a bound.

The iteration curve is one run, looked at on the way, with steps of that fraction of eps. It says whether more
iterations are weaker; after a few, a start at the far side of the ball cannot have been left behind yet. The
exception is 1 iteration: FGSM (Goodfellow et al. 2015), one step of eps from the image itself, because a single
short step would be beaten by anything. It is what iterative attacks should beat (Athalye et al. 2018).
"""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from benchmark.evaluation.batching import in_batches
from benchmark.evaluation.shards import Shard, Shards, percent
from benchmark.metrics import pgd
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.threat import ThreatModel

NAME = "sweep"
VERSION = 1
_CORRECT = "correct_"


class Config(Strict):
    """The two grids and the attack."""

    eps: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=2)] = (
        *(0, 0.25, 0.5, 0.75, 1, 1.5),
        *(2, 3, 4, 6, 8),
    )
    """Radii, as multiples of the protocol's eps."""
    steps: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2)] = (1, 2, 5, 10, 20, 50, 100)
    """Iterations at the protocol's eps; 1 is FGSM."""
    radius_steps: Annotated[int, Field(ge=1)] = 20
    """Iterations at every radius, and without a bound."""
    step_size: Annotated[float, Field(gt=0)] = 0.25
    """Fraction of the radius."""

    @field_validator("eps", "steps")
    @classmethod
    def _ascending(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if any(left >= right for left, right in pairwise(grid)):
            raise ValueError("the grid must ascend")
        return grid

    @field_validator("eps")
    @classmethod
    def _anchored(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not {0, 1} <= set(grid):
            raise ValueError("0 and 1 must be among the multiples of eps")
        return grid

    @field_validator("steps")
    @classmethod
    def _compared(cls, grid: tuple[int, ...]) -> tuple[int, ...]:
        if not {1, 20} <= set(grid):
            raise ValueError("1 and 20 must be among the iterations")
        return grid


COLUMNS = {
    "half_radius": Column(
        "half_radius",
        "radius in [0, 1] pixel units at which PGD-20 breaks half of the correctly classified images, interpolated",
        4,
    )
}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    return {
        f"{name.removeprefix(_CORRECT)}_accuracy": correct
        for name, correct in samples.items()
        if name.startswith(_CORRECT)
    }


def measure(data: Shards) -> Measurement:
    """Measure the accuracy in percent at every point of both curves and without a bound.

    Values: ``eps_<multiple>_accuracy``, ``steps_<iterations>_accuracy``, ``unbounded_accuracy``, and
    ``half_radius``, None where the accuracy never falls to half of the clean one. Series: ``eps`` (absolute),
    ``eps_accuracy``, ``steps``, ``steps_accuracy``. Per image: a bool for each accuracy.
    """
    config, threat = data.config, data.threat
    arrays = data.map(curves(data))
    by_eps, by_steps = arrays.pop("correct_eps"), arrays.pop("correct_steps")
    points = {f"{_CORRECT}eps_{multiple:g}": by_eps[:, i] for i, multiple in enumerate(config.eps)}
    points |= {f"{_CORRECT}steps_{steps}": by_steps[:, i] for i, steps in enumerate(config.steps)}
    arrays |= points

    radii = [_ball(threat, data.subject, multiple).radius for multiple in config.eps]
    eps_accuracy = [percent(correct) for correct in by_eps.T]
    values: dict[str, Value] = {name: percent(correct) for name, correct in verdicts(arrays).items()}
    values |= {"half_radius": _crossing(radii, eps_accuracy, eps_accuracy[0] / 2)}
    series: dict[str, list[float | None]] = {
        "eps": [*radii],
        "eps_accuracy": [*eps_accuracy],
        "steps": [float(steps) for steps in config.steps],
        "steps_accuracy": [percent(correct) for correct in by_steps.T],
    }
    return data.finish(arrays, values, series=series)


def curves(data: Shards) -> Callable[[Shard], Arrays]:
    """Return the function that attacks one shard.

    Its outcome, bool: ``correct_eps`` [B,E] and ``correct_steps`` [B,S], along the grids of the settings, and
    ``correct_unbounded`` [B].
    """
    subject, config, threat = data.subject, data.protocol.config(NAME), data.threat

    def outcome(shard: Shard) -> Arrays:
        objective = in_batches(lambda x, y: cross_entropy(subject.logits(x), y), shard.y, data.batch_size)

        def attacked(ball: ThreatModel, steps: int, x_start: Tensor | None = None) -> Tensor:
            if not ball.eps:
                return shard.x
            attack = PGD(steps=steps, step_size=config.step_size)
            return attack(objective, shard.x, ball, shard.generator(pgd.NAME, "start"), x_start)

        @torch.no_grad()
        def correct(x_adv: Tensor) -> np.ndarray:
            return (subject.logits(x_adv, data.batch_size).argmax(1) == shard.y).cpu().numpy()

        by_eps = [correct(attacked(_ball(threat, subject, factor), config.radius_steps)) for factor in config.eps]
        unbounded = correct(attacked(_ball(threat, subject, None), config.radius_steps))
        fgsm = PGD(steps=1, step_size=1.0, start="zero")
        by_steps = [correct(fgsm(objective, shard.x, threat, shard.generator(NAME, "fgsm")))]
        x_adv, taken = None, 0
        for steps in config.steps[1:]:
            x_adv = attacked(threat, steps - taken, x_adv)
            by_steps.append(correct(x_adv))
            taken = steps
        return {
            "correct_eps": np.stack(by_eps, 1),
            "correct_steps": np.stack(by_steps, 1),
            "correct_unbounded": unbounded,
        }

    return outcome


def _ball(threat: ThreatModel, subject: Subject, multiple: float | None) -> ThreatModel:
    """Return the threat model at a multiple of its eps, cut to what covers [0, 1]; None: all of that."""
    cube = Fraction(1 if threat.norm == "Linf" else math.isqrt(math.prod(subject.image_shape) - 1) + 1)
    return ThreatModel(threat.norm, cube if multiple is None else min(threat.eps * Fraction(str(multiple)), cube))


def _crossing(radii: list[float], accuracies: list[float], level: float) -> float | None:
    """Return the first radius at which the accuracy is at most ``level``, interpolated linearly; None: never."""
    for i in range(1, len(radii)):
        if accuracies[i] <= level:
            before, after = accuracies[i - 1], accuracies[i]
            return radii[i - 1] + (radii[i] - radii[i - 1]) * (before - level) / max(before - after, 1e-12)
    return None
