"""The gradient-masking court on one subject: can its accuracy under attack be believed?

Measured on the first images alone, because what it looks for concerns most images and not a few. The attacks of
``pgd20`` and ``sweep`` are those metrics' own, and shared with them. The court adds PGD from further starts, on
rescaled logits and, where the model draws noise, on averaged gradients; random perturbations; Square and a transferred
attack, both on what no white-box attack broke; and the gradient itself. What else can be wrong with a model is asked
of :mod:`benchmark.models.probes`. :mod:`benchmark.attacks.masking_checks` makes checks of the numbers.

Finite differences are taken over steps of eps/50, where attacks move, and not over infinitesimal ones, within which
even k-WTA (Xiao et al. 2020) is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmark.attacks import autoattack, masking_checks
from benchmark.attacks.masking_checks import Count
from benchmark.evaluation.shards import Shard, Shards, in_batches
from benchmark.metrics import pgd, sweep
from benchmark.models import output_probes, reference
from benchmark.models.input_domain import Domain, candidates, try_domains
from benchmark.models.probes import FEW
from benchmark.models.subject import Subject
from benchmark.results.entry import Check, Measurement
from benchmark.results.store import Arrays
from benchmark.specs.protocol import Protocol
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen, mode
from methods.primitives.random import normal_like
from methods.primitives.threat import ThreatModel
from methods.primitives.transfer_attacks import MIFGSM

NAME = "masking"
VERSION = 1
NEEDS = (pgd.NAME, sweep.NAME)
_DIRECTIONS = 4
"""Random ones, along which the gradient is held against finite differences."""
_STEP = 1 / 50
"""Length of the steps along them, each way, as a share of eps."""
_SHORTEST = 1e-4
"""Of those steps: below it, float32 drowns them."""
_CONTRADICTION = 0.5
"""Distance of the two, relative to the larger, from which one contradicts the other."""
_ROUNDING = 1e-6
"""Of float32 logits, relative to the largest."""
_DOMAIN_IMAGES = 300
"""For the input domain, which takes forward passes alone; a wrong one can cost few images."""
_BATCH = 16
"""Images that a batch's own statistics are fairly judged by."""


class Config(Strict):
    """How much is tried."""

    images: Annotated[int, Field(ge=1)] = 100
    """The first so many."""
    restarts: Annotated[int, Field(ge=1)] = 4
    """Random starts of PGD besides the first."""
    corners: Annotated[int, Field(ge=1)] = 20
    """Random perturbations of size eps."""
    queries: Annotated[int, Field(ge=1)] = 1000
    """Square's, for each image."""
    draws: Annotated[int, Field(ge=2)] = 8
    """Gradients that are averaged where the model draws noise."""


COLUMNS = {
    "masking": Column("verdict", 'gradient-masking court: "clear", or the checks that failed, which the entry explains')
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what decides the outcomes besides: the network that transferred attacks come from, and the domains."""
    if data.surrogate is not None:
        surrogate = data.surrogate.digest
    else:
        surrogate = None if data.dataset is None else reference.identity(data.dataset.name)
    return {"surrogate": surrogate, "domains": [str(domain) for domain in _domains(data)]}


def measure(subject: Subject, data: Shards, protocol: Protocol) -> Measurement:
    """Measure the value ``verdict`` (:func:`masking_checks.verdict`), and its checks; each failed one is a flag.

    Per image, bool: correct when clean and under each attack; whether the gradient vanishes, and whether finite
    differences contradict it.
    """
    few = replace(data, n=min(data.n, protocol.config(NAME).images))
    arrays, checks = run_checks(subject, few, protocol)
    return few.finish(arrays, masking_checks.summary(checks), masking_checks.flags(checks), checks=checks)


def run_checks(
    subject: Subject, data: Shards, protocol: Protocol, stated: ThreatModel | None = None
) -> tuple[Arrays, list[Check]]:
    """Return the outcomes per image, and the checks.

    Args:
        subject: frozen and in eval mode.
        data: all its images are used.
        protocol: the attacks', its threat model included.
        stated: the threat model that the attacks are said to have, where that is another.
    """
    model, first = subject.model, next(iter(data))
    x, y = first.x[:FEW], first.y[:FEW]
    with torch.no_grad():
        subject.logits(x)  # refuses NaN, of which no probe makes sense
    repeated, mixed = output_probes.noise(model, x), output_probes.batch_dependence(model, x)
    reached = _reached(model, x[:1], y[:1])

    attacked: Arrays = {}
    if reached:
        pgd20 = data.of(pgd.NAME).map(pgd.attack_shard(subject, data, protocol))
        swept = data.of(sweep.NAME).map(sweep.curves(subject, data, protocol))
        attacked = {"pgd": pgd20["correct"], "perturbation": pgd20["perturbation"]}
        attacked |= {name: swept[name] for name in ("correct_eps", "correct_steps", "correct_unbounded")}
    arrays = data.map(_tried(subject, data, protocol, attacked, stochastic=not repeated.fine))

    outcomes = _outcome_checks(arrays, subject, protocol)
    if not _above_chance(arrays, subject):
        outcomes = [masking_checks.at_chance(check) for check in outcomes]
    threat = stated or ThreatModel.parse(protocol.threat)
    return arrays, [
        *outcomes,
        masking_checks.budget(float(arrays["perturbation"].max()) if reached else None, threat.radius),
        masking_checks.gradient(reached),
        masking_checks.zero_gradients(_count(arrays.get("vanishing"))),
        masking_checks.finite_differences(_count(arrays.get("contradicted"))),
        masking_checks.determinism(repeated.measured or 0.0, repeated.bound or 0.0),
        masking_checks.batch_dependence(mixed.measured or 0.0, mixed.bound or 0.0),
        masking_checks.batch_norm_mode(_broken(arrays, "clean", "batch_statistics")),
        masking_checks.state(output_probes.state(model, x).measured or 0.0),
        masking_checks.probabilities(output_probes.probabilities(model, x).severity == "problem"),
        _domain_check(subject, data),
    ]


def _outcome_checks(arrays: Arrays, subject: Subject, protocol: Protocol) -> list[Check]:
    """Return the checks that hold the outcome of one attack against that of another."""
    grid, threat = protocol.config(sweep.NAME), ThreatModel.parse(protocol.threat)
    cover = 1.0 if threat.norm == "Linf" else math.sqrt(math.prod(subject.image_shape))

    def curve(name: str) -> list[Count]:
        return [Count(int(correct.sum()), len(correct)) for correct in arrays[name].T] if name in arrays else []

    radii, steps = curve("correct_eps"), dict(zip(grid.steps, curve("correct_steps"), strict=False))
    longer = [correct for taken, correct in steps.items() if taken > 20]
    return [
        masking_checks.unbounded(_count(arrays.get("correct_unbounded"))),
        masking_checks.large_radius(radii[-1] if radii else None, grid.eps[-1] * threat.radius / cover),
        masking_checks.monotone(radii),
        masking_checks.one_step(steps.get(20), steps.get(1)),
        masking_checks.iterations(max(longer, key=lambda correct: correct.images, default=None), steps.get(20)),
        masking_checks.eot(_count(arrays.get("eot")), _count(arrays["pgd"])),
        masking_checks.eot_gain(_broken(arrays, "eot", "pgd")),
        masking_checks.restarts(_broken(arrays, "restarts", "pgd")),
        masking_checks.logit_scale(_broken(arrays, "rescaled", "pgd")),
        masking_checks.random_noise(_broken(arrays, "corners", "pgd")),
        masking_checks.square(_broken(arrays, "square", "white_box")),
        masking_checks.transfer(_broken(arrays, "transfer", "white_box")),
    ]


def _domain_check(subject: Subject, data: Shards) -> Check:
    """Hold accuracy in [0,1] against that in every other domain."""
    chosen = slice(0, _DOMAIN_IMAGES)
    x, y = data.images.unit(chosen), data.images.labels[chosen]
    given, *others = try_domains(subject.model, x, y, _domains(data), data.batch_size)
    rival = max(others, key=lambda trial: trial.accuracy)
    return masking_checks.input_domain(given.accuracy, rival.accuracy, rival.domain.name, rival.beats(given))


def _domains(data: Shards) -> tuple[Domain, ...]:
    """Return the domains to try, [0,1] first; the data set's own normalisation among them."""
    if data.dataset is None:
        return candidates(data.subject.image_shape[0])
    mean, std = (_rounded(values) for values in (data.dataset.mean, data.dataset.std))
    return *candidates(len(mean)), Domain("the data set's normalisation", mean, std)


def _rounded(values: Sequence[float]) -> tuple[Fraction, ...]:
    return tuple(Fraction(f"{value:.4f}") for value in values)


def _above_chance(arrays: Arrays, subject: Subject) -> bool:
    """Tell whether the model is good enough on clean images for attacks to show anything."""
    clean = arrays["clean"]
    return masking_checks.above_chance(Count(int(clean.sum()), len(clean)), subject.num_classes)


def _count(holds: np.ndarray | None) -> Count | None:
    return None if holds is None else Count(int(holds.sum()), len(holds))


def _broken(arrays: Arrays, by: str, spared_by: str) -> Count | None:
    """Count the images that one attack breaks and another does not; None where one of them does not apply."""
    return _count(arrays[spared_by] & ~arrays[by]) if {by, spared_by} <= set(arrays) else None


def _reached(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Tell whether autograd leads from the logits to the images."""
    leaf = x.clone().requires_grad_()
    try:
        loss = cross_entropy(model(leaf), y).sum()
        return loss.requires_grad and torch.autograd.grad(loss, leaf, allow_unused=True)[0] is not None
    except RuntimeError:  # a graph that is cut by force, such as by .numpy()
        return False


def _surrogate(data: Shards) -> Subject | None:
    """Return the network that transferred attacks are made on; None where there is none for these images."""
    found = data.surrogate
    if found is None and data.dataset is not None:
        with suppress(InputError):
            found = reference.reference(data.dataset.name, data.subject.device)
    own = data.subject.num_classes, data.subject.image_shape
    return found if found is not None and (found.num_classes, found.image_shape) == own else None


def _tried(
    subject: Subject, data: Shards, protocol: Protocol, attacked: Arrays, *, stochastic: bool
) -> Callable[[Shard], Arrays]:
    """Return the function that measures one shard, given what ``pgd20`` and ``sweep`` found on all of them.

    Its outcome, bool [B]: the images that stay correct under no attack (``clean``), ``pgd``, every white-box attack
    (``white_box``), PGD's other ``restarts``, ``rescaled`` logits, ``eot``, random ``corners``, ``square`` and
    ``transfer``, and that are correct with ``batch_statistics``; images whose gradient is ``vanishing``, or
    ``contradicted``. What does not apply is left out: without ``attacked``, all that needs a gradient, in whose place
    ``pgd`` and ``white_box`` break nothing.
    """
    config, threat = protocol.config(NAME), ThreatModel.parse(protocol.threat)
    inside = [multiple <= 1 for multiple in protocol.config(sweep.NAME).eps]
    surrogate = _surrogate(data)
    mine = [index for index in range(len(data)) if data.part is None or index in data.part]

    def outcome(shard: Shard) -> Arrays:
        trial = _Trial(subject, threat, shard, data.batch_size)
        clean = pgd20 = white_box = trial.correct(shard.x)
        found: dict[str, Tensor] = {}
        if attacked:
            begin = mine.index(shard.index) * protocol.shard
            rows = slice(begin, begin + len(shard.y))
            found = {name: torch.from_numpy(array[rows]).to(clean.device) for name, array in attacked.items()}
            pgd20 = found["pgd"]
            attack = replace(PGD(**protocol.config(pgd.NAME).model_dump()), restarts=1)
            found["restarts"] = trial.restarted(attack, pgd20, config.restarts)
            found["rescaled"] = trial.rescaled(attack)
            if stochastic:
                found["eot"] = trial.averaged(attack, config.draws)
            found["vanishing"], found["contradicted"] = trial.vanishing(), trial.contradicted()
            white_box = pgd20 & found["correct_eps"][:, inside].all(1) & found["correct_steps"].all(1)
            white_box = white_box & found["restarts"] & found["rescaled"]
        found |= {"clean": clean, "pgd": pgd20, "white_box": white_box, "corners": trial.cornered(config.corners)}
        found["square"] = trial.squared(white_box, config.queries)
        if surrogate is not None:
            found["transfer"] = trial.transferred(white_box, surrogate)
        if any(isinstance(module, _BatchNorm) for module in subject.model.modules()):
            found["batch_statistics"] = trial.with_batch_statistics() if len(shard.y) >= _BATCH else clean
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    return outcome


@dataclass(frozen=True)
class _Trial:
    """The court's own attacks and measurements on one shard; each returns bool [B]."""

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
                correct[left] = self._attacked(attack, left, NAME, "restart", restart)
        return correct

    def rescaled(self, attack: PGD) -> Tensor:
        """Attack logits that are divided by their spread, from PGD-20's own start."""
        with torch.no_grad():
            spread = self.subject.logits(self.shard.x, self.batch_size).std().clamp(min=_ROUNDING)
        return self._attacked(attack, slice(None), pgd.NAME, "start", logits=lambda x: self.subject.logits(x) / spread)

    def averaged(self, attack: PGD, draws: int) -> Tensor:
        """Attack the mean loss over ``draws`` forward passes (Athalye et al. 2018, EOT), from PGD-20's own start."""

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return torch.stack([cross_entropy(self.subject.logits(x), y) for _ in range(draws)]).mean(0)

        objective = in_batches(loss, self.shard.y, self.batch_size)
        start = self.shard.generator(pgd.NAME, "start")
        return self.correct(attack(objective, self.shard.x, self.threat, start))

    def cornered(self, corners: int) -> Tensor:
        """Try random perturbations of size eps."""
        generator, x = self.shard.generator(NAME, "corners"), self.shard.x
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
            _, seen, _ = autoattack.attack_and_classify(
                "square", self.subject, self.threat, shard, self.batch_size, queries=queries
            )
            correct[left] = seen.to(shard.y) == shard.y
        return correct

    def transferred(self, correct: Tensor, surrogate: Subject) -> Tensor:
        """Attack another network with MI-FGSM, and see which of the images that others left ``correct`` stay so."""
        correct, left = correct.clone(), correct.nonzero().squeeze(1)
        if len(left):
            with frozen(surrogate.model):
                correct[left] = self._attacked(MIFGSM(), left, NAME, "transfer", logits=surrogate.logits)
        return correct

    def with_batch_statistics(self) -> Tensor:
        """Classify with the statistics of each batch, and leave the running ones as they are."""
        with mode(self.subject.model, training=True, track_statistics=False):
            return self.correct(self.shard.x)

    def vanishing(self) -> Tensor:
        """Tell where the cross-entropy's gradient is exactly zero or not finite, on the image or beside it."""
        beside = self.threat.random_start(self.shard.x, self.shard.generator(NAME, "beside"))
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
        generator, y = self.shard.generator(NAME, "differences"), self.shard.y
        step = max(_STEP * self.threat.radius, _SHORTEST)
        # From here no step leaves [0, 1].
        near = (1 - 2 * step) * self.threat.random_start(self.shard.x, generator) + step
        with torch.no_grad():
            logits = self.subject.logits(near, self.batch_size)
        rival = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
        pair = torch.stack([y, rival], 1)

        def margin(x: Tensor, pair: Tensor) -> Tensor:
            torch.manual_seed(self.shard.seed(NAME, "noise"))  # the same draw in each pass, where the model draws
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
