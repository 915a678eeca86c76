"""AutoAttack *standard* (Croce & Hein 2020), as published: the `pyautoattack` package, called once per shard.

APGD-CE, targeted APGD-DLR, targeted FAB and Square run in a cascade, each on the images that are still
correct. The package is watched from outside and not changed: every verdict is its own. What is ours is said in
:mod:`benchmark.single_attacks`. Warnings of the package become flags; the one that Square helped is about one
shard, where one image makes 1 %, and is replaced by the same test over all images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyautoattack import AutoAttack
from torch import Tensor

from benchmark import evidence
from benchmark.metrics import Column
from benchmark.protocol import Protocol
from benchmark.results import Measurement, Value
from benchmark.schema import Strict
from benchmark.shards import Shard, Shards, counted, percent, standard_error
from benchmark.single_attacks import adversary, contained, distances
from benchmark.store import Arrays
from benchmark.subject import Subject
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

NAME = "autoattack"
VERSION = 1
ATTACKS = ("apgd_ce", "apgd_t", "fab_t", "square")
"""In the order of the cascade."""
CLEAN_ERROR, ROBUST = -1, 0
"""Values of ``broken_by`` beside 1, 2, ...: the position of the breaking attack in :data:`ATTACKS`."""
_SQUARE_POINTS = 0.2
"""Loss of accuracy to Square, in points, that AutoAttack's authors take as a sign of masked gradients."""


class Config(Strict):
    """Nothing to set: the standard version is defined by having nothing to set."""


COLUMNS = {
    "autoattack": Column("accuracy", "accuracy under AutoAttack standard, %"),
    **{
        f"cascade_{name}": Column(f"after_{name}", f"cascade: accuracy after {title} and the attacks before it, %")
        for name, title in zip(ATTACKS, ("APGD-CE", "APGD-T", "FAB-T", "Square"), strict=True)
    },
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what the stored outcomes hold besides verdicts."""
    return {"evidence": evidence.FORMAT}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    broken_by = samples["broken_by"]
    after = [(broken_by == ROBUST) | (broken_by > position) for position in range(len(ATTACKS) + 1)]
    names = ("clean_accuracy", *(f"after_{name}" for name in ATTACKS))
    return {"accuracy": broken_by == ROBUST} | dict(zip(names, after, strict=True))


def check(subject: Subject) -> None:
    """Refuse a subject of fewer than 4 classes, for which the targeted DLR loss is not defined.

    Raises:
        InputError: it has fewer.
    """
    if subject.num_classes < 4:
        raise InputError(
            "AutoAttack standard compares four logits (targeted DLR loss), but there are "
            f"{subject.num_classes} classes; measure without it, such as --metrics clean,pgd20."
        )


def measure(subject: Subject, data: Shards, protocol: Protocol) -> Measurement:
    """Measure accuracy in percent, clean, after each attack of the cascade, and after all.

    Per image: ``broken_by``, -1 where the clean image is misclassified, 0 where it is robust, else the
    position of the first attack that broke it; the size of the perturbation; and the evidence
    (:mod:`benchmark.evidence`) of each image that an attack broke.

    Raises:
        InputError: fewer than 4 classes, for which the targeted DLR loss is not defined.
        RuntimeError: what comes back is outside the threat model, or NaN.
    """
    check(subject)
    threat = ThreatModel.parse(protocol.threat)
    arrays = data.map(lambda shard: _attack(subject, threat, shard, min(data.batch_size, len(shard.y))))

    correct = verdicts(arrays)
    values: dict[str, Value] = {
        **{name: percent(outcome) for name, outcome in correct.items()},
        "standard_error": standard_error(correct["accuracy"]),
        **{f"seconds_{name}": float(arrays[f"shard_seconds_{name}"].sum()) for name in ATTACKS},
        "eps": str(threat).partition(":")[2],
        "max_perturbation": float(arrays["perturbation"].max()),
    }
    flags = counted(str(message) for message in arrays["shard_warnings"])
    if (helped := percent(correct["after_fab_t"]) - percent(correct["accuracy"])) > _SQUARE_POINTS:
        flags.append(f"Square lowered the accuracy by {helped:.2f} points below the gradient attacks (masking?)")
    return data.finish(arrays, values, flags)


def _attack(subject: Subject, threat: ThreatModel, shard: Shard, batch_size: int) -> Arrays:
    x, y = shard.x, shard.y
    with torch.no_grad():
        subject.logits(x, batch_size)  # refuses NaN, which AutoAttack would count as robust or broken by chance
    with contained() as messages:
        attacker = adversary(subject, threat, shard)
        watch = _Watch(attacker, len(y), batch_size)
        x_adv, y_adv = attacker.run_standard_evaluation(x, y, batch_size=batch_size)

    broken_by = watch.broken_by(y.cpu())
    if not torch.equal(broken_by == ROBUST, (y_adv == y).cpu()):
        raise RuntimeError("AutoAttack's verdicts do not agree with the attacks seen; its version may be unsupported")
    return {
        "broken_by": broken_by.numpy(),
        "perturbation": distances(threat, x_adv, x).cpu().numpy(),
        **evidence.encode(subject, threat, x, y, x_adv, (broken_by > ROBUST).to(x.device), batch_size),
        "shard_warnings": np.array(messages, dtype=np.str_),
        **{f"shard_seconds_{name}": np.array([spent]) for name, spent in zip(ATTACKS, watch.seconds, strict=True)},
    }


class _Watch:
    """Notes which attack broke which image, from AutoAttack's own forward passes.

    ``run_standard_evaluation`` judges each batch right after attacking it, by ``get_logits`` on the returned
    images; and right before the first attack it classifies the clean images, batch by batch. Both are
    overheard here.
    """

    def __init__(self, adversary: AutoAttack, images: int, batch_size: int) -> None:
        self.seconds = [0.0] * len(ATTACKS)
        self._images = images
        self._batches = -(-images // batch_size)
        self._batch_size = batch_size
        self._heard: list[Tensor] = []
        """Predictions of the forward passes before the first attack."""
        self._verdicts: list[tuple[int, Tensor]] = []
        """Per attacked batch: the attack's position and the predictions on its images."""
        self._attacking: int | None = None
        parts = (adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square)
        for position, part in enumerate(parts):
            part.perturb = self._timed(part.perturb, position)
        adversary.get_logits = self._overheard(adversary.get_logits)  # pyright: ignore[reportAttributeAccessIssue]

    def _timed(self, perturb: Callable[..., Tensor], position: int) -> Callable[..., Tensor]:
        def timed(x: Tensor, y: Tensor) -> Tensor:
            start = time.perf_counter()
            x_adv = perturb(x, y)
            if x_adv.is_cuda:
                torch.cuda.synchronize(x_adv.device)
            self.seconds[position] += time.perf_counter() - start
            self._attacking = position
            return x_adv

        return timed

    def _overheard(self, get_logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def overheard(x: Tensor) -> Tensor:
            logits = get_logits(x)
            predicted = logits.detach().argmax(1).cpu()
            if self._attacking is not None:
                self._verdicts.append((self._attacking, predicted))
                self._attacking = None
            elif not self._verdicts:
                self._heard.append(predicted)
            return logits

        return overheard

    def broken_by(self, y: Tensor) -> Tensor:
        """Return who broke each image, int64 [B] as in :func:`measure`, given the labels [B] on the CPU."""
        clean = torch.cat(self._heard[-self._batches :])
        result = torch.where(clean == y, ROBUST, CLEAN_ERROR)
        for position in range(len(ATTACKS)):
            predictions = [predicted for attack, predicted in self._verdicts if attack == position]
            if predictions:
                attacked = (result == ROBUST).nonzero().squeeze(1)
                result[attacked[torch.cat(predictions) != y[attacked]]] = position + 1
        return result
