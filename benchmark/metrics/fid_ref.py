"""``fid_ref``: the Frechet distance of generated images to real ones, by a small network of this project.

It is computed as FID is, by torch-fidelity, from 64 penultimate features of the data set's reference network
(:mod:`benchmark.models.reference`) in the place of Inception's 2,048. It is no FID and compares with none: it is for
data on which Inception says nothing, such as digits of 8x8 pixels, and for machines without Inception's weights.

A value is read between two others: ``fid_ref_real``, of as many test images, is what real images get, and
``fid_ref_start``, of the untouched starts, is what the chains began with. Train images are those that the network was
trained on, which is part of the floor.
"""

from typing import Any

from benchmark.evaluation.shards import Shard, Shards
from benchmark.generation import fidelity
from benchmark.metrics import generation
from benchmark.metrics.generation import Source
from benchmark.models import reference as networks
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import NOTE, Arrays
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict

NAME = "fid_ref"
VERSION = 1
NEEDS = (generation.NAME,)
_KINDS = {"fid_ref": "", "fid_ref_start": "start_", "fid_ref_real": "real_"}
"""Value -> prefix of its arrays."""


class Config(Strict):
    """Which images are compared with the training images."""

    source: Source = "class_gaussian"
    """Where their chains began; buffer: the replay buffer's, as they are."""


COLUMNS = {
    "fid_ref": Column(
        "fid_ref",
        "Frechet distance of generated to training images by this project's own small network: no FID, and comparable "
        "with none",
    )
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what else decides the outcomes: all that decides the images, the reference, and the extractor."""
    dataset = generation.whole(data)
    return {
        generation.NAME: generation.conditions(data),
        "validation": dataset.validation.digest,
        "extractor": networks.identity(dataset.name),
        "library": fidelity.LIBRARY,
    }


def measure(data: Shards) -> Measurement:
    """Measure the distance of the generated images, of their untouched starts, and of the test images.

    Values: ``fid_ref``; ``fid_ref_start``, None for the buffer; ``fid_ref_real``; and the passport.

    Raises:
        InputError: the data set has no reference network, or the source gave no images.
    """
    dataset = generation.whole(data)
    extractor = fidelity.reference_network(dataset.name, data.subject.device)
    images = generation.images(data, data.config.source)

    def outcome(shard: Shard) -> Arrays:
        seen = {"": images(shard), "start_": images.untouched(shard), "real_": shard.x}
        found = {kind: extractor(shown, data.batch_size) for kind, shown in seen.items() if shown is not None}
        return {f"{kind}{name}": array for kind, arrays in found.items() for name, array in arrays.items()}

    arrays = data.map(outcome)
    reference = fidelity.reference_images(dataset, "train")
    real = fidelity.reference_features(extractor, reference, data.store, data.batch_size, data.part)
    values: dict[str, Value] = {}
    for name, kind in _KINDS.items():
        features = arrays.get(f"{kind}features")
        values[name] = None if features is None else fidelity.frechet({"features": features}, real)
    values |= fidelity.passport(extractor, arrays, reference) | images.passport
    notes = {name: array for name, array in arrays.items() if name.startswith(NOTE)}
    return data.finish(notes, values, [*images.flags, *fidelity.doubts(arrays, real)])
