"""AutoAttack *standard* (Croce & Hein 2020), as published: the `pyautoattack` package, called once per shard.

APGD-CE, targeted APGD-DLR, targeted FAB and Square run in a cascade (:mod:`benchmark.attacks.cascade`), each on the
images that are still correct. Warnings of the package become flags; the one that Square helped is about one shard,
where one image makes 1 %, and is replaced by the same test over all images.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmark.attacks.cascade import CLEAN_ERROR, ROBUST, STANDARD, Cascade
from benchmark.evaluation import evidence
from benchmark.evaluation.shards import Result, Shards, percent
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.errors import InputError

NAME = "autoattack"
VERSION = 1
_CASCADE = Cascade()
_SQUARE_POINTS = 0.2
"""Loss of accuracy to Square, in points, that AutoAttack's authors take as a sign of masked gradients."""


class Config(Strict):
    """Nothing to set: the standard version is defined by having nothing to set."""


COLUMNS = {
    "autoattack": Column("accuracy", "accuracy under AutoAttack standard, %"),
    **{
        f"cascade_{name}": Column(f"after_{name}", f"cascade: accuracy after {title} and the attacks before it, %")
        for name, title in zip(STANDARD, ("APGD-CE", "APGD-T", "FAB-T", "Square"), strict=True)
    },
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what the stored outcomes hold besides verdicts."""
    return {"evidence": evidence.FORMAT}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    return _CASCADE.verdicts(samples)


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


def measure(data: Shards) -> Measurement:
    """Measure accuracy in percent, clean, after each attack of the cascade, and after all.

    Per image: ``broken_by``, -1 where the clean image is misclassified, 0 where it is robust, else the
    position of the first attack that broke it; the size of the perturbation; and the evidence
    (:mod:`benchmark.evaluation.evidence`) of each image that an attack broke.

    Raises:
        InputError: fewer than 4 classes, for which the targeted DLR loss is not defined.
        RuntimeError: what comes back is outside the threat model, or NaN.
    """
    check(data.subject)
    arrays, flags = _CASCADE.over(data)
    correct, values = verdicts(arrays), _CASCADE.values(arrays, data.threat)
    if (helped := percent(correct["after_fab_t"]) - percent(correct["accuracy"])) > _SQUARE_POINTS:
        flags.append(f"Square lowered the accuracy by {helped:.2f} points below the gradient attacks (masking?)")
    return data.finish(arrays, values, flags)


def cross_check(results: Mapping[str, Result]) -> Measurement:
    """Return this metric's measurement with the verdicts of ``pgd20`` and ``clean`` that contradict its own.

    Values: ``pgd20_breaks_autoattack_does_not`` and ``clean_verdicts_that_differ``, numbers of images; each that is not
    0 is a flag.
    """
    own, samples = results[NAME]
    values, flags = dict(own.values), list(own.flags)
    outcomes = {name: result.samples for name, result in results.items()}
    if samples is None:
        return own
    if (pgd20 := outcomes.get("pgd20")) is not None:
        missed = int(((samples["broken_by"] == ROBUST) & ~pgd20["correct"]).sum())
        values["pgd20_breaks_autoattack_does_not"] = missed
        if missed:
            flags.append(f"PGD-20 breaks {missed} images that AutoAttack leaves robust")
    if (clean := outcomes.get("clean")) is not None:
        differing = int(((samples["broken_by"] != CLEAN_ERROR) != clean["correct"]).sum())
        values["clean_verdicts_that_differ"] = differing
        if differing:
            flags.append(f"AutoAttack and the clean metric classify {differing} clean images differently")
    return own.model_copy(update={"values": values, "flags": flags})
