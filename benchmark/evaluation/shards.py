"""What a metric is given: the test images in shards of a fixed size, each with random streams of its own.

A shard is the unit of storage, of progress and of randomness. Its outcomes depend on nothing outside it, so
that the order of the shards, a crash between two of them and the number of images asked for change no
outcome.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.evaluation.parts import Part, PartDone
from benchmark.models.subject import Subject
from benchmark.results.entry import Check, Measurement, Value
from benchmark.results.store import NOTE, Arrays, Store, key
from benchmark.specs import registry
from benchmark.specs.protocol import Protocol
from methods.data import Dataset, ImageSet
from methods.primitives.random import derive, generator, normal_like
from methods.primitives.threat import ThreatModel


@dataclass(frozen=True)
class Shard:
    """Consecutive test images."""

    index: int
    x: Tensor
    """[B,C,H,W], float32 in [0,1] (the protocol's noise may leave it), on the subject's device."""
    y: Tensor
    """[B], int64."""
    root: int
    """The protocol's seed."""
    dealt: int | None = None
    """Images that an attack deals its random numbers to at once; None: as many as a forward pass has."""

    def seed(self, *names: str | int) -> int:
        """Return the seed of this shard's stream of that name."""
        return derive(self.root, *names, self.index)

    def generator(self, *names: str | int) -> torch.Generator:
        """Return this shard's stream of that name, on the CPU, so that devices share its numbers."""
        return generator(self.root, *names, self.index)


@dataclass
class _Room:
    """What the device's memory has room for."""

    images: int | None = None
    """In a forward pass; None: not known to be limited."""


@dataclass(frozen=True)
class Shards:
    """The first ``n`` images of a test split, for one metric on one subject."""

    metric: str
    subject: Subject
    images: ImageSet
    """The whole test split, on the subject's device."""
    digest: str
    """SHA-256 of the whole test split."""
    protocol: Protocol
    n: int
    store: Store
    split: int | None = None
    """Images a forward pass; None: a whole shard."""
    advance: Callable[[int], object] = lambda completed: None
    """Told the number of shards that are done."""
    dataset: Dataset | None = None
    """The whole data set, for the metrics that need more of it than test images."""
    surrogate: Subject | None = None
    """Where transfer attacks are made; None: the reference network of the data set."""
    part: Part | None = None
    """The shards that are this process's to measure; None: all."""
    room: _Room = field(default_factory=_Room, repr=False, compare=False)
    """Shared by all that is replaced: the functions given to :meth:`map` ask one of them for the batch size."""

    def __len__(self) -> int:
        return math.ceil(self.n / self.protocol.shard)

    def __iter__(self) -> Iterator[Shard]:
        return (self._shard(index) for index in range(len(self)))

    @property
    def config(self) -> Any:
        """The metric's settings, as an instance of its ``Config``."""
        return self.protocol.config(self.metric)

    @property
    def threat(self) -> ThreatModel:
        """The protocol's threat model."""
        return ThreatModel.parse(self.protocol.threat)

    @property
    def batch_size(self) -> int:
        """Images a forward pass: what was asked for, or less while the device has no room for that."""
        return self._asked if self.room.images is None else min(self.room.images, self._asked)

    @property
    def _asked(self) -> int:
        return self.protocol.shard if self.split is None else min(self.split, self.protocol.shard)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the outcome of a shard; its hash is the key of the store."""
        module = registry.get(self.metric)
        needed = getattr(module, "NEEDS", ())
        identity = {
            "metric": self.metric,
            "settings": {name: self._settings(name) for name in (self.metric, *needed)},
            "weights": self.subject.digest,
            "code": self.subject.code,
            "data": self.digest,
            "threat": self.protocol.threat,
            "shard": self.protocol.shard,
            "seed": self.protocol.seed,
        }
        if self.protocol.noise:
            identity["noise"] = self.protocol.noise
        # Without the keys where there is nothing to say: what was stored before there was stays valid.
        return identity | {"conditions": module.conditions(self)} if hasattr(module, "conditions") else identity

    def of(self, metric: str) -> Shards:
        """Return the same shards for another metric: outcomes are computed, or reused, in its name."""
        return replace(self, metric=metric)

    def map(self, measure: Callable[[Shard], Arrays]) -> Arrays:
        """Run ``measure`` on every shard that is not stored yet, and return all outcomes joined along axis 0.

        ``measure`` returns one item per image, except in arrays whose name begins with ``shard_``. Where the device's
        memory is full, the shard is measured again with half the images a forward pass, down to one, which its record
        says; what an attack draws at random stays the same.

        Raises:
            torch.OutOfMemoryError: there is no room for a single image.
            SaveError: an outcome cannot be stored.
            PartDone: none of the shards is in this process's part.
        """
        identity = self.identity
        outcomes: list[Arrays] = []
        self.room.images = None
        for index in range(len(self)):
            if self.part is not None and index not in self.part:
                continue
            size = self._bounds(index)[1] - self._bounds(index)[0]
            outcome = self.store.load_shard(identity, index, size)
            if outcome is None:
                start = time.perf_counter()
                while (outcome := self._tried(measure, index)) is None:
                    self.room.images = min(self.batch_size, size) // 2
                    gc.collect()  # what failed may be held by a cycle
                    if self.subject.device.type == "cuda":
                        torch.cuda.empty_cache()
                outcome[f"{NOTE}seconds"] = np.array([time.perf_counter() - start])
                outcome[f"{NOTE}batch_size"] = np.array([self.batch_size])
                self.store.save_shard(identity, index, size, outcome)
            outcomes.append(outcome)
            self.advance(index + 1)
        if not outcomes:
            raise PartDone
        return {name: np.concatenate([outcome[name] for outcome in outcomes]) for name in outcomes[0]}

    def finish(
        self,
        arrays: Arrays,
        values: dict[str, Value],
        flags: Iterable[str] = (),
        *,
        checks: Iterable[Check] = (),
        series: Mapping[str, list[float | None]] | None = None,
    ) -> Measurement:
        """Return the finished measurement and keep the outcomes per image beside it.

        Raises:
            PartDone: this process has a part of the shards only.
        """
        if self.part is not None:
            raise PartDone
        identity = self.identity
        samples = {name: array for name, array in arrays.items() if not name.startswith(NOTE)}
        # Shards that were stored earlier may have been measured with another batch size.
        sizes = sorted(set(arrays[f"{NOTE}batch_size"].tolist()))
        batch_size: Value = sizes[0] if len(sizes) == 1 else ", ".join(map(str, sizes))
        return Measurement(
            metric=self.metric,
            version=registry.get(self.metric).VERSION,
            status="done",
            n=self.n,
            values=values | {"batch_size": batch_size},
            flags=list(flags),
            checks=list(checks),
            series=dict(series or {}),
            seconds=float(arrays[f"{NOTE}seconds"].sum()),
            samples=self.store.save_samples(identity, self.n, {"index": np.arange(self.n)} | samples),
            config=self.config.model_dump(mode="json"),
            key=key(identity | {"n": self.n}),
        )

    def _tried(self, measure: Callable[[Shard], Arrays], index: int) -> Arrays | None:
        """Return a shard's outcome; None where the device's memory is full and a pass has more than one image."""
        try:
            with self._own_global_stream(index):
                return measure(self._shard(index))
        except torch.OutOfMemoryError:
            first, end = self._bounds(index)
            if min(self.batch_size, end - first) == 1:
                raise
            return None

    @contextmanager
    def _own_global_stream(self, index: int) -> Iterator[None]:
        """Seed the global generators for one shard, for models that draw noise; restore them afterwards."""
        device = self.subject.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.protocol.seed, self.metric, "model", index))
            yield

    def _settings(self, metric: str) -> dict[str, Any]:
        config = self.protocol.config(metric).model_dump(mode="json")
        return {"version": registry.get(metric).VERSION, "config": config}

    def _bounds(self, index: int) -> tuple[int, int]:
        first = index * self.protocol.shard
        return first, min(first + self.protocol.shard, self.n)

    def _shard(self, index: int) -> Shard:
        chosen = slice(*self._bounds(index))
        x, y = self.images.unit(chosen), self.images.labels[chosen]
        shard = Shard(index, x, y, self.protocol.seed, None if self.room.images is None else self._asked)
        if not self.protocol.noise:
            return shard
        noise = normal_like(shard.x, shard.generator("noise"))
        return replace(shard, x=shard.x + self.protocol.noise * noise)


class Result(NamedTuple):
    """A finished measurement and its outcomes per image, for the metrics that hold their own against it."""

    measurement: Measurement
    samples: Arrays | None
    """None where the store has lost them, or there are none."""


def percent(correct: np.ndarray) -> float:
    """Return the share of true items in percent."""
    return 100.0 * float(np.mean(correct))


def standard_error(correct: np.ndarray) -> float:
    """Return the binomial standard error of :func:`percent`, in points."""
    share = float(np.mean(correct))
    return 100.0 * math.sqrt(share * (1 - share) / len(correct))


def counted(messages: Iterable[str]) -> list[str]:
    """Return each distinct message once, in order of appearance, with its count if it came several times."""
    return [text if count == 1 else f"{text} (x{count})" for text, count in Counter(messages).items()]
