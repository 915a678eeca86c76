"""PGD-20: accuracy under 20 steps of projected gradient ascent on the cross-entropy (Madry et al. 2018).

"PGD-20" is not one number in the literature: eps, step and start differ between papers. The measurement
therefore names its (eps, alpha, K, restarts). As in the field, the verdict is on the last iterate, and an
image that was wrong when clean is attacked like any other.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from benchmark.evaluation import evidence
from benchmark.evaluation.batching import in_batches
from benchmark.evaluation.shards import Shard, Shards, percent, standard_error
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.primitives.attacks import PGD
from methods.primitives.energy import joint_energy, marginal_energy
from methods.primitives.losses import cross_entropy
from methods.primitives.threat import ThreatModel

NAME = "pgd20"
VERSION = 1


class Config(Strict):
    """The attack."""

    steps: Annotated[int, Field(ge=1)] = 20
    step_size: Annotated[float, Field(gt=0)] = 0.25
    """Fraction of eps: 2/255 at eps 8/255, as Rice et al. 2020."""
    start: Literal["uniform", "normal", "zero"] = "uniform"
    restarts: Annotated[int, Field(ge=1)] = 1
    keep: Literal["last", "best"] = "last"
    """The iterate that is classified."""


COLUMNS = {"pgd20": Column("accuracy", "accuracy under PGD-20, %")}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what the stored outcomes hold besides verdicts."""
    return {"evidence": evidence.FORMAT}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    return {"accuracy": samples["correct"]}


def measure(data: Shards) -> Measurement:
    """Measure accuracy in percent on the attacked images.

    Per image: if correct, the size of the perturbation, the energies :func:`attack_shard` keeps, and the evidence
    (:mod:`benchmark.evaluation.evidence`) of each wrong verdict.
    """
    config, threat = data.config, data.threat
    arrays = data.map(attack_shard(data))
    correct = arrays["correct"]
    step = ThreatModel(threat.norm, threat.eps * Fraction(str(config.step_size)))
    return data.finish(
        arrays,
        {
            "accuracy": percent(correct),
            "standard_error": standard_error(correct),
            "eps": str(threat).partition(":")[2],
            "alpha": str(step).partition(":")[2],
            "steps": config.steps,
            "restarts": config.restarts,
            "max_perturbation": float(arrays["perturbation"].max()),
        },
    )


def attack_shard(data: Shards) -> Callable[[Shard], Arrays]:
    """Return the function that attacks one shard.

    Its outcome also holds both energies of the clean and the attacked images, which the logits at hand give
    for nothing: the energy metric reads them from here, so the two metrics never attack twice nor differ in
    x_adv.
    """
    subject, threat = data.subject, data.threat
    attack = PGD(**data.protocol.config(NAME).model_dump())

    def outcome(shard: Shard) -> Arrays:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(subject.logits(x), y)

        objective = in_batches(loss, shard.y, data.batch_size)
        x_adv = attack(objective, shard.x, threat, shard.generator(NAME, "start"))
        with torch.no_grad():
            logits, logits_adv = (subject.logits(x, data.batch_size) for x in (shard.x, x_adv))
        correct = logits_adv.argmax(1) == shard.y
        tensors = {
            "correct": correct,
            "perturbation": threat.distance(x_adv, shard.x.clamp(0, 1)),
            "joint_energy": joint_energy(logits, shard.y),
            "joint_energy_adv": joint_energy(logits_adv, shard.y),
            "marginal_energy": marginal_energy(logits),
            "marginal_energy_adv": marginal_energy(logits_adv),
        }
        kept = evidence.encode(subject, threat, shard.x, shard.y, x_adv, ~correct, data.batch_size)
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()} | kept

    return outcome
