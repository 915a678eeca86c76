"""AutoAttack for a first look: the standard cascade, searching in bfloat16 and believing float32 alone.

The attacks' own forward and backward passes run under autocast to bfloat16, the last layer excepted, which takes half
the time and memory where the device has it. Each misclassification they find is put to the float32 network at once:
where that one still classifies the image correctly, the attack goes on (:mod:`benchmark.attacks.early_stopping`). So
every image counted as broken is broken, as under :mod:`benchmark.metrics.autoattack`. What can be missed is an
adversarial image that only a search in float32 finds: the accuracy can be too high.
"""

import numpy as np

from benchmark.attacks.cascade import Cascade
from benchmark.evaluation.shards import Shards
from benchmark.metrics.autoattack import check, conditions
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict

__all__ = ["COLUMNS", "NAME", "VERSION", "Config", "check", "conditions", "measure", "verdicts"]

NAME = "autoattack_fast"
VERSION = 1
_CASCADE = Cascade(precision="bfloat16")
_FLAG = (
    "not AutoAttack standard: it searches in bfloat16, so the accuracy can be too high; "
    "each image counted as broken is broken in float32"
)


class Config(Strict):
    """Nothing to set, as for the standard version."""


COLUMNS = {
    "autoattack_fast": Column("accuracy", "accuracy under AutoAttack searching in bfloat16, %; an upper bound only"),
}


def verdicts(samples: Arrays) -> dict[str, np.ndarray]:
    """Return the outcome per image behind each accuracy."""
    return _CASCADE.verdicts(samples)


def measure(data: Shards) -> Measurement:
    """Measure accuracy in percent, clean, after each attack of the cascade, and after all.

    Values besides: ``refuted``, the number of images for which bfloat16 claimed a misclassification that float32
    denied. Per image as :mod:`benchmark.metrics.autoattack`, and if ``refuted``.

    Raises:
        InputError: fewer than 4 classes, for which the targeted DLR loss is not defined.
        RuntimeError: what comes back is outside the threat model, or NaN.
    """
    check(data.subject)
    arrays, flags = _CASCADE.over(data)
    values = _CASCADE.values(arrays, data.threat) | {"refuted": int(arrays["refuted"].sum())}
    return data.finish(arrays, values, [_FLAG, *flags])
