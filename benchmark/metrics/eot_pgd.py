"""PGD-20 on the loss averaged over random forward passes: expectation over transformation (Athalye et al. 2018).

For models that draw noise, whose single gradients point anywhere. The attack is the protocol's pgd20, its starts
included; only the loss differs. One lucky forward pass must neither save nor break an image, so that there the verdict
is the majority of ``reevaluations`` fresh passes on the final x_adv: broken where more than half are wrong, and the
share is kept. A model that draws none gets PGD-20's own verdicts: whether it does is asked of the logits and the
loss's gradient at each clean image, twice. No evidence is kept: it would be PGD-20's, or decided by chance.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from benchmark.evaluation.batching import in_batches
from benchmark.evaluation.shards import Shard, Shards, percent, standard_error
from benchmark.metrics import pgd
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy

NAME = "eot_pgd"
VERSION = 1
_NOISE = 1e-4
"""Change of logits or gradient between two passes, relative to the largest, above which it is more than rounding."""
NEEDS = (pgd.NAME,)


class Config(Strict):
    """The averages; the attack is the protocol's pgd20."""

    samples: Annotated[int, Field(ge=1)] = 20
    """Forward passes a gradient is averaged over; as AutoAttack's randomised version."""
    reevaluations: Annotated[int, Field(ge=1)] = 21
    """Forward passes a verdict is the majority of."""


COLUMNS = {"eot_pgd": Column("accuracy", "accuracy under PGD-20 on the loss averaged over forward passes (EOT), %")}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    return {"accuracy": samples["correct"]}


def measure(data: Shards) -> Measurement:
    """Measure accuracy in percent by majority, and what a single forward pass would find on average.

    Per image: ``correct``, ``wrong_share`` of the forward passes, ``noisy`` where the model draws noise.
    """
    subject, config, threat = data.subject, data.config, data.threat
    attack = PGD(**data.protocol.config(pgd.NAME).model_dump())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(subject.logits(x), y)

    def outcome(shard: Shard) -> Arrays:
        x, y = shard.x, shard.y
        once = in_batches(loss, y, data.batch_size)
        noisy = _noisy(subject, once, x, data.batch_size)
        samples, passes = (config.samples, config.reevaluations) if bool(noisy.any()) else (1, 1)
        together = in_batches(loss, y.repeat(samples), data.batch_size)

        def objective(images: Tensor) -> Tensor:
            # The sum: like the mean for the attack, and small gradients of a confident network do not vanish.
            return together(images.repeat(samples, *[1] * (x.dim() - 1))).view(samples, -1).sum(0)

        x_adv = attack(objective, x, threat, shard.generator(pgd.NAME, "start"))
        with torch.no_grad():
            wrong = torch.stack([subject.logits(x_adv, data.batch_size).argmax(1) != y for _ in range(passes)])
        share = wrong.float().mean(0)
        return {
            "correct": (share <= 0.5).cpu().numpy(),
            "wrong_share": share.cpu().numpy(),
            "noisy": noisy.cpu().numpy(),
            "perturbation": threat.distance(x_adv, x).cpu().numpy(),
        }

    arrays = data.map(outcome)
    values: dict[str, Value] = {
        "accuracy": percent(arrays["correct"]),
        "standard_error": standard_error(arrays["correct"]),
        "single_pass_accuracy": percent(1 - arrays["wrong_share"].astype(np.float64)),
        "noisy_images": int(arrays["noisy"].sum()),
        "eps": str(threat).partition(":")[2],
        "max_perturbation": float(arrays["perturbation"].max()),
    }
    flags = [f"the model draws noise: a verdict is the majority of {config.reevaluations} forward passes"]
    return data.finish(arrays, values, flags if arrays["noisy"].any() else ())


def _noisy(subject: Subject, objective: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
    """Return [B]: whether an image's logits, or the gradient of its objective, are others the second time."""

    def gradient() -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(objective(leaf).sum(), leaf)[0].flatten(1)

    @torch.no_grad()
    def logits() -> Tensor:
        return subject.logits(x, batch_size)

    pairs = (logits(), logits()), (gradient(), gradient())
    moved = [(first - second).abs().amax(1) > _NOISE * first.abs().amax(1) for first, second in pairs]
    return moved[0] | moved[1]
