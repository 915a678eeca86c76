"""``masking``: checks for gradient masking. Can the accuracy under attack be believed?

Measured on the first images alone, because what it looks for concerns most images and not a few. The attacks of
``pgd20`` and ``sweep`` are those metrics' own, and shared with them. It adds PGD from further starts, on
rescaled logits and, where the model draws noise, on averaged gradients; random perturbations; Square and a transferred
attack, both on what no white-box attack broke; and the gradient itself. What else can be wrong with a model is asked
of :mod:`benchmark.models.probes`. :mod:`benchmark.attacks.masking_checks` makes checks of the numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmark.attacks import masking_checks
from benchmark.attacks.masking_attacks import STREAM, ShardAttacks
from benchmark.attacks.masking_checks import Count
from benchmark.evaluation.shards import Result, Shard, Shards
from benchmark.metrics import pgd, sweep
from benchmark.models import output_probes, reference
from benchmark.models.input_domain import Domain, candidates, try_domains
from benchmark.models.probes import FEW
from benchmark.models.subject import Subject
from benchmark.results.entry import Check, Measurement
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.threat import ThreatModel

NAME = STREAM
VERSION = 1
NEEDS = (pgd.NAME, sweep.NAME)
_DOMAIN_IMAGES = 300
"""For the input domain, which takes forward passes alone; a wrong one can cost few images."""
_BATCH = 16
"""Images that a batch needs for its own statistics to say something."""


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
    "masking": Column("verdict", 'checks for gradient masking: "clear", or those that failed, which the entry explains')
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what decides the outcomes besides: the network that transferred attacks come from, and the domains."""
    if data.surrogate is not None:
        surrogate = data.surrogate.digest
    else:
        surrogate = None if data.dataset is None else reference.identity(data.dataset.name)
    return {"surrogate": surrogate, "domains": [str(domain) for domain in _domains(data)]}


def measure(data: Shards) -> Measurement:
    """Measure the value ``verdict`` (:func:`masking_checks.verdict`), and its checks; each failed one is a flag.

    Per image, bool: correct when clean and under each attack; whether the gradient vanishes, and whether finite
    differences contradict it.
    """
    few = replace(data, n=min(data.n, data.config.images))
    arrays, checks = outcomes_and_checks(few)
    return few.finish(arrays, masking_checks.summary(checks), masking_checks.flags(checks), checks=checks)


def cross_check(results: Mapping[str, Result]) -> Measurement:
    """Return this metric's measurement with the checks that hold ``autoattack`` against ``pgd20``, where both ran."""
    own = results[NAME].measurement
    if not {"pgd20", "autoattack"} <= results.keys():
        return own
    pgd20, autoattack = (results[name].measurement for name in ("pgd20", "autoattack"))
    accuracies = cast(float, pgd20.values["accuracy"]), cast(float, autoattack.values["accuracy"])
    square = cast(float, autoattack.values["after_fab_t"]) - cast(float, autoattack.values["after_square"])
    return masking_checks.with_checks(own, masking_checks.against_autoattack(*accuracies, autoattack.n, square))


def outcomes_and_checks(data: Shards, stated: ThreatModel | None = None) -> tuple[Arrays, list[Check]]:
    """Return the outcomes per image, and the checks.

    Args:
        data: all its images are used; the subject is frozen and in eval mode.
        stated: the threat model that the attacks are said to have, where that is another than the protocol's.
    """
    subject, model, first = data.subject, data.subject.model, next(iter(data))
    x, y = first.x[:FEW], first.y[:FEW]
    with torch.no_grad():
        subject.logits(x)  # refuses NaN, of which no probe makes sense
    repeated, mixed = output_probes.noise(model, x), output_probes.batch_dependence(model, x)
    reached = _reached(model, x[:1], y[:1])

    attacked: Arrays = {}
    if reached:
        pgd20 = data.of(pgd.NAME).map(pgd.attack_shard(data))
        swept = data.of(sweep.NAME).map(sweep.curves(data))
        attacked = {"pgd": pgd20["correct"], "perturbation": pgd20["perturbation"]}
        attacked |= {name: swept[name] for name in ("correct_eps", "correct_steps", "correct_unbounded")}
    arrays = data.map(_attacks(data, attacked, stochastic=not repeated.fine))

    outcomes = _outcome_checks(arrays, data)
    if not _above_chance(arrays, subject):
        outcomes = [masking_checks.at_chance(check) for check in outcomes]
    threat = stated or data.threat
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
        _domain_check(data),
    ]


def _outcome_checks(arrays: Arrays, data: Shards) -> list[Check]:
    """Return the checks that hold the outcome of one attack against that of another."""
    grid, threat = data.protocol.config(sweep.NAME), data.threat
    cover = 1.0 if threat.norm == "Linf" else math.sqrt(math.prod(data.subject.image_shape))

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


def _domain_check(data: Shards) -> Check:
    """Hold accuracy in [0,1] against that in every other domain."""
    chosen = slice(0, _DOMAIN_IMAGES)
    x, y = data.images.unit(chosen), data.images.labels[chosen]
    given, *others = try_domains(data.subject.model, x, y, _domains(data), data.batch_size)
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


def _attacks(data: Shards, attacked: Arrays, *, stochastic: bool) -> Callable[[Shard], Arrays]:
    """Return the function that measures one shard, given what ``pgd20`` and ``sweep`` found on all of them.

    Its outcome, bool [B]: the images that stay correct under no attack (``clean``), ``pgd``, every white-box attack
    (``white_box``), PGD's other ``restarts``, ``rescaled`` logits, ``eot``, random ``corners``, ``square`` and
    ``transfer``, and that are correct with ``batch_statistics``; images whose gradient is ``vanishing``, or
    ``contradicted``. What does not apply is left out: without ``attacked``, all that needs a gradient, in whose place
    ``pgd`` and ``white_box`` break nothing.
    """
    config, threat, protocol = data.protocol.config(NAME), data.threat, data.protocol
    inside = [multiple <= 1 for multiple in protocol.config(sweep.NAME).eps]
    surrogate = _surrogate(data)
    mine = [index for index in range(len(data)) if data.part is None or index in data.part]

    def outcome(shard: Shard) -> Arrays:
        trial = ShardAttacks(data.subject, threat, shard, data.batch_size)
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
        if any(isinstance(module, _BatchNorm) for module in data.subject.model.modules()):
            found["batch_statistics"] = trial.with_batch_statistics() if len(shard.y) >= _BATCH else clean
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    return outcome
