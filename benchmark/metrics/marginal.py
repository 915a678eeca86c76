"""Each attack of AutoAttack alone, on every correctly classified image; and untargeted APGD-DLR.

AutoAttack's cascade says what an attack adds to those before it; these *marginal* accuracies say what each can do,
so that they can be compared: black box with white box, one loss with another. Settings and seeds are AutoAttack's
(:mod:`benchmark.attacks.autoattack`). The worst case is per image, never an average: an image is robust where no attack
breaks it.
"""

import time
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from benchmark.attacks import autoattack
from benchmark.evaluation import evidence
from benchmark.evaluation.shards import Shard, Shards, counted, percent, standard_error
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import NOTE, Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict

NAME = "marginal"
VERSION = 1
_CORRECT = "correct_"
_TITLES = dict(zip(autoattack.NAMES, ("APGD-CE", "APGD-DLR", "APGD-T", "FAB-T", "Square"), strict=True))


class Config(Strict):
    """The attacks, in the order in which evidence is taken."""

    attacks: Annotated[tuple[Literal["apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square"], ...], Field(min_length=1)] = (
        "apgd_ce",
        "apgd_dlr",
        "apgd_t",
        "fab_t",
        "square",
    )

    @field_validator("attacks")
    @classmethod
    def _distinct(cls, attacks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(attacks)) < len(attacks):
            raise ValueError("an attack is named twice")
        return attacks


COLUMNS = {
    **{
        f"marginal_{name}": Column(f"{name}_accuracy", f"marginal: accuracy under {title} alone, %")
        for name, title in _TITLES.items()
    },
    "marginal_worst": Column("worst_accuracy", "marginal: share of images that none of these attacks breaks, %"),
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what the stored outcomes hold besides verdicts."""
    return {"evidence": evidence.FORMAT}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    correct = {
        f"{name.removeprefix(_CORRECT)}_accuracy": outcome
        for name, outcome in samples.items()
        if name.startswith(_CORRECT)
    }
    return correct | {"worst_accuracy": np.logical_and.reduce(list(correct.values()))}


def check(subject: Subject) -> None:
    """Refuse a subject of fewer than 4 classes.

    Raises:
        InputError: it has fewer.
    """
    autoattack.check(subject, autoattack.NAMES)


def measure(data: Shards) -> Measurement:
    """Measure accuracy in percent under each attack alone, and in the worst case of each image.

    Per image: ``correct_<attack>``, false where the clean image is misclassified too; ``correct_clean``; and the
    evidence (:mod:`benchmark.evaluation.evidence`) of the first attack that broke it.

    Raises:
        InputError: an attack is not defined for so few classes.
        RuntimeError: what comes back is outside the threat model, or NaN.
    """
    subject, attacks, threat = data.subject, data.config.attacks, data.threat
    autoattack.check(subject, attacks)

    def outcome(shard: Shard) -> Arrays:
        x, y = shard.x, shard.y
        with torch.no_grad():
            clean = subject.logits(x, data.batch_size).argmax(1) == y
        arrays: Arrays = {f"{_CORRECT}clean": clean.cpu().numpy()}
        robust, kept, heard = clean, x, []
        for name in attacks:
            start = time.perf_counter()
            x_adv, y_adv, messages = autoattack.attack_and_classify(name, subject, threat, shard, data.batch_size)
            correct = y_adv == y
            arrays |= {
                f"{_CORRECT}{name}": correct.cpu().numpy(),
                f"{NOTE}seconds_{name}": np.array([time.perf_counter() - start]),
            }
            heard += [f"{name}: {message}" for message in messages]
            kept = torch.where((robust & ~correct).view(-1, *[1] * (x.dim() - 1)), x_adv, kept)
            robust = robust & correct
        kept = evidence.encode(subject, threat, x, y, kept, clean & ~robust, data.batch_size)
        return arrays | kept | {f"{NOTE}warnings": np.array(heard, dtype=np.str_)}

    arrays = data.map(outcome)
    correct = verdicts(arrays)
    values: dict[str, Value] = {
        **{name: percent(verdict) for name, verdict in correct.items()},
        "standard_error": standard_error(correct["worst_accuracy"]),
        **{f"seconds_{name}": float(arrays[f"{NOTE}seconds_{name}"].sum()) for name in attacks},
        "eps": str(threat).partition(":")[2],
    }
    return data.finish(arrays, values, counted(str(message) for message in arrays[f"{NOTE}warnings"]))
