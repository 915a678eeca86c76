"""Transfer attacks: images made to break a surrogate, classified by the subject.

They need none of the subject's gradients, so that an image they break although PGD on the subject itself fails says
that its gradients mislead. The surrogate is the one that was given, else the reference network of the data set
(:mod:`benchmark.models.reference`). An image that is wrong when clean is not attacked and counts as wrong. The worst
case is per image, never an average.
"""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from benchmark.evaluation import evidence
from benchmark.evaluation.batching import in_batches
from benchmark.evaluation.shards import Shard, Shards, percent, standard_error
from benchmark.models import reference
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen
from methods.primitives.transfer_attacks import MIFGSM, VMIFGSM, VNIFGSM

NAME = "transfer"
VERSION = 1
_CORRECT, _SURROGATE = "correct_", "surrogate_correct_"


class Config(Strict):
    """The attacks; steps of all but PGD have length eps / ``steps``."""

    attacks: Annotated[tuple[Literal["pgd", "mi_fgsm", "vmi_fgsm", "vni_fgsm"], ...], Field(min_length=1)] = (
        "pgd",
        "mi_fgsm",
        "vmi_fgsm",
        "vni_fgsm",
    )
    """In the order in which evidence is taken."""
    pgd_steps: Annotated[int, Field(ge=1)] = 20
    pgd_step_size: Annotated[float, Field(gt=0)] = 0.25
    """Fraction of eps."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Papers: 10."""
    decay: Annotated[float, Field(ge=0)] = 1.0
    """Decay factor of the momentum; papers: 1."""
    neighbours: Annotated[int, Field(ge=0)] = 20
    """For the variance; paper: 20."""
    bound: Annotated[float, Field(ge=0)] = 1.5
    """Distance of neighbours, as a multiple of eps; the paper's beta: 1.5."""

    @field_validator("attacks")
    @classmethod
    def _distinct(cls, attacks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(attacks)) < len(attacks):
            raise ValueError("an attack is named twice")
        return attacks


COLUMNS = {
    "transfer": Column("worst_accuracy", "share of images that no transfer attack (PGD, MI-, VMI-, VNI-FGSM) breaks, %")
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return which surrogate made the images, and what the stored outcomes hold besides verdicts."""
    given, name = data.surrogate, "" if data.dataset is None else data.dataset.name
    weights = reference.identity(name) if given is None else [given.digest, given.code]
    return {"evidence": evidence.FORMAT, "surrogate": weights}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    correct = {name.removeprefix(_CORRECT): outcome for name, outcome in samples.items() if name.startswith(_CORRECT)}
    worst = np.logical_and.reduce(list(correct.values()))
    return {f"{name}_accuracy": outcome for name, outcome in correct.items()} | {"worst_accuracy": worst}


def measure(data: Shards) -> Measurement:
    """Measure accuracy in percent under each attack, and in the worst case of each image.

    Beside it, ``surrogate_<attack>_accuracy`` is the surrogate's own. Per image: ``correct_<attack>``,
    ``surrogate_correct_<attack>``, both with ``clean``, and the evidence (:mod:`benchmark.evaluation.evidence`) of the
    first attack that broke it.

    Raises:
        InputError: there is no surrogate, or it takes other images or knows other classes.
    """
    subject, config, threat = data.subject, data.config, data.threat
    surrogate = _surrogate(data)
    attacks = {name: _attack(name, config) for name in config.attacks}

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(surrogate.logits(x), y)

    def outcome(shard: Shard) -> Arrays:
        x, y = shard.x, shard.y
        objective = in_batches(loss, y, data.batch_size)

        @torch.no_grad()
        def correct(network: Subject, x_adv: Tensor) -> Tensor:
            return network.logits(x_adv, data.batch_size).argmax(1) == y

        robust = clean = correct(subject, x)
        fooled = correct(surrogate, x)
        tensors, kept = {f"{_CORRECT}clean": clean, f"{_SURROGATE}clean": fooled}, x
        for name, attack in attacks.items():
            x_adv = attack(objective, x, threat, shard.generator(NAME, name))
            unbroken = clean & correct(subject, x_adv)
            tensors |= {f"{_CORRECT}{name}": unbroken, f"{_SURROGATE}{name}": fooled & correct(surrogate, x_adv)}
            kept = torch.where((robust & ~unbroken).view(-1, *[1] * (x.dim() - 1)), x_adv, kept)
            robust = robust & unbroken
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        return arrays | evidence.encode(subject, threat, x, y, kept, clean & ~robust, data.batch_size)

    with frozen(surrogate.model):
        arrays = data.map(outcome)
    found = verdicts(arrays)
    own = {name: percent(arrays[f"{_SURROGATE}{name}"]) for name in ("clean", *attacks)}
    values: dict[str, Value] = {
        **{name: percent(outcome) for name, outcome in found.items()},
        "standard_error": standard_error(found["worst_accuracy"]),
        **{f"surrogate_{name}_accuracy": accuracy for name, accuracy in own.items()},
        "surrogate": surrogate.name,
        "surrogate_digest": surrogate.digest,
        "eps": str(threat).partition(":")[2],
    }
    flags = []
    if (surrogate.digest, surrogate.code) == (subject.digest, subject.code):
        flags.append("the surrogate is the subject itself: these are no transfer attacks")
    if (least := min(own[name] for name in attacks)) > own["clean"] / 2:
        flags.append(f"the attacks leave the surrogate itself {least:.2f} % accuracy: that they fail says little")
    return data.finish(arrays, values, flags)


def _surrogate(data: Shards) -> Subject:
    surrogate, subject = data.surrogate, data.subject
    if surrogate is None:
        if data.dataset is None:
            raise InputError("Transfer attacks need a surrogate, or a data set that has a reference network.")
        surrogate = reference.reference(data.dataset.name, subject.device)
    if (surrogate.num_classes, surrogate.image_shape) != (subject.num_classes, subject.image_shape):
        raise InputError(
            f"The surrogate {surrogate.name} takes images {list(surrogate.image_shape)} of {surrogate.num_classes} "
            f"classes, but {subject.name} takes {list(subject.image_shape)} of {subject.num_classes}."
        )
    return surrogate


def _attack(name: str, config: Config) -> PGD | MIFGSM:
    if name == "pgd":
        return PGD(steps=config.pgd_steps, step_size=config.pgd_step_size)
    if name == "mi_fgsm":
        return MIFGSM(config.steps, config.decay)
    kind = VMIFGSM if name == "vmi_fgsm" else VNIFGSM
    return kind(config.steps, config.decay, config.neighbours, config.bound)
