"""Generation: an image for each test image, of its class, by fresh chains from each start; and the replay buffer.

For the i-th test image with label y, a chain of SGLD (:class:`methods.primitives.samplers.SGLD`) begins at a
start fitted to the training images and descends the joint energy E(x, y) = -f(x)[y]. Any classifier can do that,
so that every checkpoint gets pictures; the marginal energy -logsumexp f(x) is an option. A checkpoint whose
density is a scalar head of its own (M-EBM) descends the energy of that head, whatever the protocol says, and its
values say so: such an energy knows no class, and the wanted one comes from the start alone.

What is generated is kept, rounded to uint8, and everything is measured on the rounded images. *Agreement* is the share
of images that a classifier trained apart from the subject (:mod:`benchmark.generation.reference_classifier`) assigns to
the wanted class. It says nothing without its control, the agreement on the untouched starts: the informative start
shows the class already. ``frechet_thumbnails`` (:func:`methods.training.pictures.quality`) is no FID; the informative
start has the means and covariances it compares by construction.

BatchNorm: JEM++, SADAJEM and M-EBM sample in train mode, from an informative start, in batches of about 100
(sndnyang/JEMPP, issue 1), because the running statistics are not those of the samples. The mode is the checkpoint's
own, eval where it names none. In train mode the images of a shard share batch statistics, running statistics stay
untouched, and a shard is never split. Energies are in the mode of the chains, the buffer's labels in eval mode.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from benchmark.evaluation.shards import Shard, Shards, percent
from benchmark.generation import reference_classifier
from benchmark.generation.chains import Chains, ChainSettings, Energy
from benchmark.generation.reference_classifier import ReferenceClassifier
from benchmark.results.entry import Measurement, Value
from benchmark.results.store import Arrays
from benchmark.specs.registry import Column
from methods.data import Dataset
from methods.data.images import unit
from methods.errors import InputError
from methods.primitives.modes import frozen
from methods.primitives.random import generator
from methods.primitives.starts import Start, start
from methods.training.pictures import frechet, load_buffer, reference_thumbnails, rounded, thumbnails

NAME = "generation"
VERSION = 1
BUFFER = "buffer"
Source = Literal["class_gaussian", "uniform", "pca", "buffer"]
SOURCES: tuple[str, ...] = get_args(Source)
"""Where images come from, in the order in which they are shown."""
_GOOD_CLASSIFIER = 90
"""Accuracy, in percent, below which the reference classifier itself is in doubt."""
_THUMBNAILS = "thumbnails_start_"
"""Arrays of the untouched starts that are compared, and not kept with the samples."""


class Config(ChainSettings):
    """The chains, and where they begin."""

    starts: Annotated[tuple[Literal["class_gaussian", "uniform", "pca"], ...], Field(min_length=1)] = (
        "class_gaussian",
        "uniform",
        "pca",
    )
    """JEM++'s informative start, noise, WEAT's principal components."""

    @field_validator("starts")
    @classmethod
    def _distinct(cls, starts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(starts)) < len(starts):
            raise ValueError("a start is named twice")
        return starts


COLUMNS = {
    "generation_agreement": Column(
        "class_gaussian_agreement",
        "percent of images generated from the informative start that an independent classifier assigns to the wanted "
        "class",
        1,
    ),
    "generation_agreement_start": Column(
        "class_gaussian_agreement_start", "the same for the untouched informative start, before any step", 1
    ),
}


def conditions(data: Shards) -> dict[str, Any]:
    """Return what else decides the outcomes: training images, reference classifier, buffer and metadata."""
    dataset, subject, config = whole(data), data.subject, data.protocol.config(NAME)
    buffer = subject.buffer
    return {
        "train": dataset.train.digest,
        "judge": reference_classifier.identity(dataset.name),
        "buffer": None if buffer is None else hashlib.sha256(buffer.read_bytes()).hexdigest(),
        **Chains(subject, config).identity,
    }


def measure(data: Shards) -> Measurement:
    """Generate, and measure each source; a start that cannot be fitted becomes a flag.

    Values: ``<source>_agreement`` in percent, ``_energy`` (mean), ``_saturated`` (share of pixel values at 0 or 1)
    and ``_frechet_thumbnails`` to the training images; ``_agreement_start``, ``_energy_start`` and
    ``_frechet_thumbnails_start`` are those of the untouched starts, and ``energy_real`` is the mean energy of the
    test images themselves. The buffer's wanted classes are the model's own argmax; the i-th test image takes a
    slot that depends on i alone. What needs a reference classifier is None where there is none.

    Per image: ``wanted`` (and ``wanted_buffer``), and for each source ``images_`` uint8 [C,H,W], ``judged_`` (class;
    -1 where the chain left the finite numbers) and ``energy_`` (NaN there), with ``judged_start_``, ``energy_start_``.

    Raises:
        InputError: no start can be fitted, and there is no buffer.
        FloatingPointError: the energy of a test image is not finite.
    """
    make, flags = _generator(data)
    dataset, classifier = whole(data), make.classifier
    arrays = data.map(make)
    values: dict[str, Value] = {
        **make.chains.passport,
        "judge": None if classifier is None else classifier.name,
        "judge_accuracy": None if classifier is None else classifier.accuracy(dataset.test),
        "energy_real": _mean(arrays["energy_real"]),
    }
    reference = reference_thumbnails(dataset.train.images)
    for source in make.sources:
        values |= _values(source, arrays, reference)
    flags += _doubts(values, arrays)
    kept = {name: array for name, array in arrays.items() if not name.startswith(_THUMBNAILS)}
    return data.finish(kept, values, flags)


@dataclass(frozen=True)
class Images:
    """The images that this metric keeps from one source, for metrics that measure them."""

    data: Shards
    source: Source
    start: Start | None
    """Where the chains began; None for the buffer."""
    identity: dict[str, Any]
    flags: list[str]
    """Doubts about the source."""

    def __call__(self, shard: Shard) -> Tensor:
        """Return the images of a shard, uint8 [B,C,H,W] on the CPU."""
        stored = self.data.store.load_shard(self.identity, shard.index, len(shard.y))
        if stored is None:
            raise RuntimeError(f"The store has lost the generated images of shard {shard.index}.")
        return torch.from_numpy(stored[f"images_{self.source}"])

    def untouched(self, shard: Shard) -> Tensor | None:
        """Return the starts of a shard's chains as images, uint8 [B,C,H,W]."""
        return None if self.start is None else rounded(self.start.sample(shard.y, shard.generator(NAME, self.source)))

    @property
    def passport(self) -> dict[str, Value]:
        """Where they come from, and how the chains ran; of the buffer's, only that they are its."""
        chains = Chains(self.data.subject, self.data.config)
        return {"start": self.source} | ({} if self.start is None else chains.passport)


def images(data: Shards, source: Source) -> Images:
    """Generate what the store does not hold yet, in this metric's name, and return the images of a source.

    Raises:
        InputError: the source gave none.
    """
    own = data.of(NAME)
    make, flags = _generator(own)
    doubts = [flag for flag in flags if flag.startswith(f"{source}: ")]
    if source not in make.sources:
        reason = doubts[0] if doubts else f"{source}: the protocol has no such start, or the checkpoint no buffer."
        raise InputError(f"No images to measure. {reason}")
    own.map(make)
    return Images(own, source, make.starts.get(source), own.identity, doubts)


def _generator(data: Shards) -> tuple[_Generator, list[str]]:
    config, dataset = data.protocol.config(NAME), whole(data)
    flags: list[str] = []
    classifier = _classifier(dataset, data.subject.device, flags)
    starts, buffer = _starts(config, dataset, data.subject.device, flags), _buffer(data, flags)
    if not starts and buffer is None:
        raise InputError(f"Nothing can be generated: {flags[-1]}")
    return _Generator(data, Chains(data.subject, config), starts, buffer, classifier), flags


@dataclass(frozen=True)
class _Generator:
    """Makes the outcome of one shard."""

    data: Shards
    chains: Chains
    starts: dict[str, Start]
    buffer: Tensor | None
    classifier: ReferenceClassifier | None

    @property
    def sources(self) -> tuple[str, ...]:
        return (*self.starts, *(() if self.buffer is None else (BUFFER,)))

    def __call__(self, shard: Shard) -> Arrays:
        subject, chains = self.data.subject, self.chains
        training, sampler = chains.mode == "train", chains.sampler
        y, found = shard.y, {"wanted": shard.y}
        kept = None if self.buffer is None else self._slots(shard, self.buffer)
        with frozen(subject.model, training=training, track_statistics=False):
            # Images that share batch statistics cannot be split without changing their energies.
            energy = chains.energy(len(y) if training else self.data.batch_size)
            found["energy_real"] = _valued(energy, shard.x, y)
            if not bool(found["energy_real"].isfinite().all()):
                raise FloatingPointError("the model's energies are not finite (NaN or infinite)")
            for name, fitted in self.starts.items():
                stream = shard.generator(NAME, name)
                x = fitted.sample(y, stream)
                images = rounded(x)
                found |= self._seen(f"start_{name}", x, images, y, energy) | {_THUMBNAILS + name: thumbnails(images)}
                x = sampler(lambda x: energy(x, y), x, stream)
                images = rounded(x)
                found |= self._seen(name, x, images, y, energy) | {f"images_{name}": images}
            if kept is not None:
                images, labels = kept
                found |= self._seen(BUFFER, unit(images), images, labels, energy)
                found |= {f"images_{BUFFER}": images, f"wanted_{BUFFER}": labels}
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def _slots(self, shard: Shard, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Return the buffer's images for a shard, and the classes that the model gives them."""
        order = torch.randperm(len(buffer), generator=generator(shard.root, NAME, BUFFER))
        first = shard.index * self.data.protocol.shard
        images = buffer[order[torch.arange(first, first + len(shard.y)) % len(buffer)]].to(shard.x.device)
        with torch.no_grad():
            return images, self.data.subject.logits(unit(images), self.data.batch_size).argmax(1)

    def _seen(self, suffix: str, x: Tensor, images: Tensor, y: Tensor, energy: Energy) -> dict[str, Tensor]:
        """Return energy and verdict on the rounded images of ``x``."""
        finite = x.isfinite().flatten(1).all(1)
        seen = {f"energy_{suffix}": _valued(energy, unit(images), y).where(finite, torch.nan)}
        if self.classifier is not None:
            seen[f"judged_{suffix}"] = self.classifier.classify(images).where(finite.cpu(), -1)
        return seen


def whole(data: Shards) -> Dataset:
    """Return the whole data set: starts are fitted to its training split."""
    if data.dataset is None:
        raise RuntimeError("Generation needs the whole data set: its starts are fitted to the training split.")
    return data.dataset


@torch.no_grad()
def _valued(energy: Energy, x: Tensor, y: Tensor) -> Tensor:
    return energy(x, y)


def _classifier(dataset: Dataset, device: torch.device, flags: list[str]) -> ReferenceClassifier | None:
    try:
        return reference_classifier.reference_classifier(dataset, device)
    except InputError as error:
        flags.append(str(error))
        return None


def _starts(config: Config, dataset: Dataset, device: torch.device, flags: list[str]) -> dict[str, Start]:
    train = dataset.train.to(device)
    fitted: dict[str, Start] = {}
    for name in config.starts:
        try:
            fitted[name] = start(name, train.images, train.labels, dataset.num_classes)
        except InputError as error:
            flags.append(f"{name}: {error}")
    return fitted


def _buffer(data: Shards, flags: list[str]) -> Tensor | None:
    if data.subject.buffer is None:
        return None
    try:
        images = load_buffer(data.subject.buffer)
    except InputError as error:
        flags.append(f"{BUFFER}: {error}")
        return None
    if tuple(images.shape[1:]) != tuple(data.subject.image_shape) or not len(images):
        flags.append(f"{BUFFER}: its images are {list(images.shape)}, not {['N', *data.subject.image_shape]}.")
        return None
    if len(images) < data.n:
        flags.append(f"{BUFFER}: {data.n} images are taken from {len(images)} chains, some more than once.")
    return images


def _values(source: str, arrays: Arrays, reference: Tensor) -> dict[str, Value]:
    """Return the values of one source, and of its untouched starts where it has them."""
    images = torch.from_numpy(arrays[f"images_{source}"])
    values: dict[str, Value] = {
        f"{source}_agreement": _agreement(source, arrays),
        f"{source}_energy": _mean(arrays[f"energy_{source}"]),
        f"{source}_saturated": ((images == 0) | (images == 255)).double().mean().item(),
        f"{source}_frechet_thumbnails": frechet(thumbnails(images), reference),
    }
    if source != BUFFER:
        values |= {
            f"{source}_agreement_start": _agreement(f"start_{source}", arrays),
            f"{source}_energy_start": _mean(arrays[f"energy_start_{source}"]),
            f"{source}_frechet_thumbnails_start": frechet(torch.from_numpy(arrays[_THUMBNAILS + source]), reference),
        }
    return values


def _agreement(suffix: str, arrays: Arrays) -> float | None:
    judged = arrays.get(f"judged_{suffix}")
    wanted = arrays[f"wanted_{BUFFER}" if suffix == BUFFER else "wanted"]
    return None if judged is None else percent(judged == wanted)


def _mean(energies: np.ndarray) -> float | None:
    """Return the mean of the finite energies; None where there is none."""
    finite = energies[np.isfinite(energies)]
    return float(finite.mean(dtype=np.float64)) if len(finite) else None


def _doubts(values: dict[str, Value], arrays: Arrays) -> list[str]:
    doubts = []
    accuracy = values["judge_accuracy"]
    if isinstance(accuracy, float) and accuracy < _GOOD_CLASSIFIER:
        doubts.append(
            f"The reference classifier is right on {accuracy:.1f} % of the test images, which bounds the agreement."
        )
    if values["energy"] != "joint":
        doubts.append(f"The {values['energy']} energy knows no class: the wanted one comes from the start alone.")
    if values["mode"] == "train":
        doubts.append("Chains ran with batch statistics: images of a shard depend on each other.")
    for source in SOURCES:
        lost = int((~np.isfinite(arrays.get(f"energy_{source}", np.zeros(0)))).sum())
        if lost:
            doubts.append(f"{source}: {lost} images are not finite (NaN or infinite).")
    return doubts
