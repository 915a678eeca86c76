"""Accuracy on the unperturbed test images."""

import numpy as np
import torch

from benchmark.evaluation.shards import Shard, Shards, percent, standard_error
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict

VERSION = 1


class Config(Strict):
    """Nothing to set."""


COLUMNS = {"clean": Column("accuracy", "accuracy on the test images, %")}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    return {"accuracy": samples["correct"]}


def measure(data: Shards) -> Measurement:
    """Measure accuracy in percent with its binomial standard error; per image, the predicted class."""

    @torch.no_grad()
    def outcome(shard: Shard) -> Arrays:
        predicted = data.subject.logits(shard.x, data.batch_size).argmax(1)
        return {"predicted": predicted.cpu().numpy(), "correct": (predicted == shard.y).cpu().numpy()}

    arrays = data.map(outcome)
    correct = arrays["correct"]
    return data.finish(arrays, {"accuracy": percent(correct), "standard_error": standard_error(correct)})
