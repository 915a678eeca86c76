"""Attacks that only the masking checks need, on one shard: what they break, no sound white-box attack leaves standing.

Finite differences are taken over steps of eps/50, where attacks move, and not over infinitesimal ones, within which
even k-WTA (Xiao et al. 2020) is smooth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmark.attacks.autoattack import attack_and_classify
from benchmark.evaluation.batching import in_batches
from benchmark.evaluation.shards import Shard
from benchmark.models.subject import Subject
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen, mode
from methods.primitives.random import normal_like
from methods.primitives.threat import ThreatModel
from methods.primitives.transfer_attacks import MIFGSM

STREAM, _PGD20 = "masking", "pgd20"
"""Names of random streams: the metric's own, and that of PGD-20, whose random start is shared."""
_DIRECTIONS = 4
"""Random directions along which the gradient is held against finite differences."""
_STEP = 1 / 50
"""Length of a step along such a direction, each way, as a share of eps."""
_SHORTEST = 1e-4
"""Shortest step, in [0, 1] pixel units: below it, float32 drowns the difference."""
_CONTRADICTION = 0.5
"""Distance of the two vectors of slopes, relative to the larger one, from which one contradicts the other."""
_ROUNDING = 1e-6
"""Rounding error of float32 logits, relative to the largest."""


@dataclass(frozen=True)
class ShardAttacks:
    """Attacks and measurements on one shard of the images that only the masking checks need; each returns bool [B]."""

    subject: Subject
    threat: ThreatModel
    shard: Shard
    batch_size: int

    @torch.no_grad()
    def correct(self, x_adv: Tensor, which: Tensor | slice = slice(None)) -> Tensor:
        """Tell which images are classified correctly; ``x_adv`` are those at ``which``."""
        return self.subject.logits(x_adv, self.batch_size).argmax(1) == self.shard.y[which]

    def _attacked(
        self,
        attack: PGD | MIFGSM,
        which: Tensor | slice,
        *stream: str | int,
        logits: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return whether the images at ``which`` stay correct when the cross-entropy of ``logits`` is raised."""
        target = logits or self.subject.logits
        x, y = self.shard.x[which], self.shard.y[which]
        objective = in_batches(lambda x, y: cross_entropy(target(x), y), y, self.batch_size)
        return self.correct(attack(objective, x, self.threat, self.shard.generator(*stream)), which)

    def restarted(self, attack: PGD, correct: Tensor, restarts: int) -> Tensor:
        """Attack what an attack left ``correct`` again, from other random starts."""
        correct, attack = correct.clone(), replace(attack, start="uniform")
        for restart in range(restarts):
            left = correct.nonzero().squeeze(1)
            if len(left):
                correct[left] = self._attacked(attack, left, STREAM, "restart", restart)
        return correct

    def rescaled(self, attack: PGD) -> Tensor:
        """Attack logits that are divided by their spread, from PGD-20's own start."""
        with torch.no_grad():
            spread = self.subject.logits(self.shard.x, self.batch_size).std().clamp(min=_ROUNDING)
        return self._attacked(attack, slice(None), _PGD20, "start", logits=lambda x: self.subject.logits(x) / spread)

    def averaged(self, attack: PGD, draws: int) -> Tensor:
        """Attack the mean loss over ``draws`` forward passes (Athalye et al. 2018, EOT), from PGD-20's own start."""

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return torch.stack([cross_entropy(self.subject.logits(x), y) for _ in range(draws)]).mean(0)

        objective = in_batches(loss, self.shard.y, self.batch_size)
        start = self.shard.generator(_PGD20, "start")
        return self.correct(attack(objective, self.shard.x, self.threat, start))

    def cornered(self, corners: int) -> Tensor:
        """Try random perturbations of size eps."""
        generator, x = self.shard.generator(STREAM, "corners"), self.shard.x
        correct = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(corners):
            delta = self.threat.radius * self.threat.steepest(normal_like(x, generator))
            correct &= self.correct(self.threat.project(x + delta, x))
        return correct

    def squared(self, correct: Tensor, queries: int) -> Tensor:
        """Attack what others left ``correct`` with Square."""
        correct, left = correct.clone(), correct.nonzero().squeeze(1)
        if len(left):
            shard = replace(self.shard, x=self.shard.x[left], y=self.shard.y[left])
            _, seen, _ = attack_and_classify(
                "square", self.subject, self.threat, shard, self.batch_size, queries=queries
            )
            correct[left] = seen.to(shard.y) == shard.y
        return correct

    def transferred(self, correct: Tensor, surrogate: Subject) -> Tensor:
        """Attack another network with MI-FGSM, and see which of the images that others left ``correct`` stay so."""
        correct, left = correct.clone(), correct.nonzero().squeeze(1)
        if len(left):
            with frozen(surrogate.model):
                correct[left] = self._attacked(MIFGSM(), left, STREAM, "transfer", logits=surrogate.logits)
        return correct

    def with_batch_statistics(self) -> Tensor:
        """Classify with the statistics of each batch, and leave the running ones as they are."""
        with mode(self.subject.model, training=True, track_statistics=False):
            return self.correct(self.shard.x)

    def vanishing(self) -> Tensor:
        """Tell where the cross-entropy's gradient is exactly zero or not finite, on the image or beside it."""
        beside = self.threat.random_start(self.shard.x, self.shard.generator(STREAM, "beside"))
        zero = torch.zeros_like(self.shard.y, dtype=torch.bool)
        for x in (self.shard.x, beside):
            leaf = x.clone().requires_grad_()
            loss = in_batches(lambda x, y: cross_entropy(self.subject.logits(x), y), self.shard.y, self.batch_size)
            (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
            largest = gradient.flatten(1).abs().amax(1)
            zero |= (largest == 0) | ~largest.isfinite()
        return zero

    def contradicted(self) -> Tensor:
        """Tell where finite differences contradict autograd, about the label's logit minus its strongest rival's.

        Both are vectors of slopes along random directions, at a point beside the image, where quantised images do not
        all lie at the same distance from a quantiser's jumps.
        """
        generator, y = self.shard.generator(STREAM, "differences"), self.shard.y
        step = max(_STEP * self.threat.radius, _SHORTEST)
        # From here no step leaves [0, 1].
        near = (1 - 2 * step) * self.threat.random_start(self.shard.x, generator) + step
        with torch.no_grad():
            logits = self.subject.logits(near, self.batch_size)
        rival = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
        pair = torch.stack([y, rival], 1)

        def margin(x: Tensor, pair: Tensor) -> Tensor:
            torch.manual_seed(self.shard.seed(STREAM, "noise"))  # the same draw in each pass, where the model draws
            label, other = self.subject.logits(x).gather(1, pair).unbind(1)
            return label - other

        value = in_batches(margin, pair, self.batch_size)
        leaf = near.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf)
        promised, seen = [], []
        for _ in range(_DIRECTIONS):
            direction = self.threat.steepest(normal_like(near, generator))
            promised.append((gradient * direction).flatten(1).sum(1))
            ends = [value(near + side * step * direction).detach() for side in (1, -1)]
            seen.append((ends[0] - ends[1]) / (2 * step))
        slopes = torch.stack(promised, 1), torch.stack(seen, 1)
        apart, first, second = (torch.linalg.vector_norm(v, dim=1) for v in (slopes[0] - slopes[1], *slopes))
        rounding = _ROUNDING * float(logits.abs().max()) / step * math.sqrt(_DIRECTIONS)
        return ~(apart <= _CONTRADICTION * torch.maximum(first, second) + rounding)
