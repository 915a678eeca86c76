"""FID, Inception Score and KID of the images that ``generation`` keeps, by Inception-v3 through torch-fidelity.

One image was generated for each test image, so their number is that of the test images, not the 50,000 of the
convention; the values' passport (:mod:`benchmark.generation.fidelity`) says so, and everything else that a FID depends
on. The weights are looked for, and downloaded, as :func:`benchmark.generation.fidelity.inception_weights` says; without
them the metric fails. Nothing stands in for them: the distance by a network of this project is ``fid_ref``.

``keep`` is the filter of the released EB-JDAT evaluator (jkcjkc/EB-JDAT, eval_jempp.py, cond_fid): of the images that
the model itself assigns to a class it keeps that share, those with the highest probability. A filtered number says
how well the model knows its good samples, not how well it generates; ours: 1, all of them.
"""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from benchmark.evaluation.shards import Shard, Shards
from benchmark.generation import fidelity
from benchmark.generation.fidelity import Split
from benchmark.metrics import generation
from benchmark.metrics.generation import Source
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.data.images import unit

NAME = "fid"
VERSION = 1
NEEDS = (generation.NAME,)


class Config(Strict):
    """Which images are compared."""

    source: Source = "class_gaussian"
    """Where their chains began; buffer: the replay buffer's, as they are."""
    reference: Split = "train"
    """Real images; train: with those that were held out for validation."""
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each class that is kept, the model's most confident images."""


COLUMNS = {
    "fid": Column("fid", "FID of the generated images to real ones, by Inception-v3; its passport is in the entry"),
    "inception_score": Column("inception_score", "Inception Score of the same images, mean over 10 splits"),
    "kid": Column("kid", "KID of the same images, mean over 100 subsets", 4),
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what else decides the outcomes: all that decides the images, the reference, and the extractor."""
    return {
        generation.NAME: generation.conditions(data),
        "validation": generation.whole(data).validation.digest,
        "extractor": fidelity.INCEPTION,
        "library": fidelity.LIBRARY,
    }


def measure(data: Shards) -> Measurement:
    """Measure the distance of the generated images to real ones.

    Values: ``fid``, ``inception_score`` and ``kid``, with the deviation ``_std`` of the latter two over splits and
    subsets, and the passport. Per image: the model's own ``predicted`` class and its ``confidence``, and whether
    the image was ``kept``.

    Raises:
        InputError: the weights cannot be had, or the source gave no images.
    """
    subject, config = data.subject, data.config
    extractor = fidelity.inception(subject.device)
    images = generation.images(data, config.source)

    @torch.no_grad()
    def outcome(shard: Shard) -> Arrays:
        generated = images(shard)
        logits = subject.logits(unit(generated).to(subject.device), data.batch_size)
        confidence, predicted = (found.cpu().numpy() for found in logits.softmax(1).max(1))
        return {"confidence": confidence, "predicted": predicted, **extractor(generated, data.batch_size)}

    arrays = data.map(outcome)
    arrays["kept"] = most_confident(arrays["predicted"], arrays["confidence"], config.keep)
    reference = fidelity.reference_images(generation.whole(data), config.reference)
    real = fidelity.reference_features(extractor, reference, data.store, data.batch_size, data.part)
    kept = {name: arrays[name][arrays["kept"]] for name in ("features", "logits")}
    found = fidelity.compare(extractor, kept, reference, real)
    values: dict[str, Value] = {
        "fid": found.fid,
        "inception_score": found.inception_score,
        "inception_score_std": found.inception_score_std,
        "kid": found.kid,
        "kid_std": found.kid_std,
        **found.passport,
        **images.passport,
        "keep": config.keep,
    }
    return data.finish(
        {name: array for name, array in arrays.items() if name not in kept},
        values,
        [*images.flags, *found.flags],
    )


def most_confident(predicted: np.ndarray, confidence: np.ndarray, keep: float) -> np.ndarray:
    """Return, as bool [N], the share ``keep`` of each predicted class with the highest confidence, rounded down.

    Args:
        predicted: classes [N].
        confidence: [N].
        keep: in (0, 1].
    """
    kept = np.zeros(len(predicted), bool)
    for label in np.unique(predicted):
        members = np.flatnonzero(predicted == label)
        order = np.argsort(-confidence[members], kind="stable")
        kept[members[order[: int(len(members) * keep)]]] = True
    return kept
