"""What a metric is given: the test images in shards of a fixed size, each with random streams of its own.

A shard is the unit of storage, of progress and of randomness. Its outcomes depend on nothing outside it, so
that the order of the shards, a crash between two of them and the number of images asked for change no
outcome.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark import metrics
from benchmark.protocol import Protocol
from benchmark.results import Measurement, Value
from benchmark.store import NOTE, Arrays, Store, key
from benchmark.subject import Subject
from methods.data import ImageSet
from methods.primitives.random import derive, generator


@dataclass(frozen=True)
class Shard:
    """Consecutive test images."""

    index: int
    x: Tensor
    """[B,C,H,W], float32 in [0,1], on the subject's device."""
    y: Tensor
    """[B], int64."""
    root: int
    """The protocol's seed."""

    def seed(self, *names: str | int) -> int:
        """Return the seed of this shard's stream of that name."""
        return derive(self.root, *names, self.index)

    def generator(self, *names: str | int) -> torch.Generator:
        """Return this shard's stream of that name, on the CPU, so that devices share its numbers."""
        return generator(self.root, *names, self.index)


@dataclass(frozen=True)
class Shards:
    """The first ``n`` images of a test split, for one metric on one subject."""

    metric: str
    subject: Subject
    images: ImageSet
    """The whole test split, on the subject's device."""
    digest: str
    """Of the whole test split."""
    protocol: Protocol
    n: int
    store: Store
    split: int | None = None
    """Images a forward pass; None: a whole shard."""
    advance: Callable[[int], object] = lambda completed: None
    """Told the number of shards that are done."""

    def __len__(self) -> int:
        return math.ceil(self.n / self.protocol.shard)

    def __iter__(self) -> Iterator[Shard]:
        return (self._shard(index) for index in range(len(self)))

    @property
    def batch_size(self) -> int:
        """Images a forward pass."""
        return self.protocol.shard if self.split is None else min(self.split, self.protocol.shard)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the outcome of a shard; its hash is the key of the store."""
        needed = getattr(metrics.get(self.metric), "NEEDS", ())
        return {
            "metric": self.metric,
            "settings": {name: self._settings(name) for name in (self.metric, *needed)},
            "weights": self.subject.digest,
            "code": self.subject.code,
            "data": self.digest,
            "threat": self.protocol.threat,
            "shard": self.protocol.shard,
            "seed": self.protocol.seed,
        }

    def of(self, metric: str) -> Shards:
        """Return the same shards for another metric: outcomes are computed, or reused, in its name."""
        return replace(self, metric=metric)

    def map(self, measure: Callable[[Shard], Arrays]) -> Arrays:
        """Run ``measure`` on every shard that is not stored yet, and return all outcomes joined along axis 0.

        ``measure`` returns one item per image, except in arrays whose name begins with ``shard_``.

        Raises:
            SaveError: an outcome cannot be stored.
        """
        identity = self.identity
        outcomes: list[Arrays] = []
        for index in range(len(self)):
            size = self._bounds(index)[1] - self._bounds(index)[0]
            outcome = self.store.load_shard(identity, index, size)
            if outcome is None:
                start = time.perf_counter()
                with self._own_global_stream(index):
                    outcome = measure(self._shard(index))
                outcome[f"{NOTE}seconds"] = np.array([time.perf_counter() - start])
                outcome[f"{NOTE}batch_size"] = np.array([self.batch_size])
                self.store.save_shard(identity, index, size, outcome)
            outcomes.append(outcome)
            self.advance(index + 1)
        return {name: np.concatenate([outcome[name] for outcome in outcomes]) for name in outcomes[0]}

    def finish(self, arrays: Arrays, values: dict[str, Value], flags: Iterable[str] = ()) -> Measurement:
        """Return the finished measurement and keep the outcomes per image beside it."""
        identity = self.identity
        samples = {name: array for name, array in arrays.items() if not name.startswith(NOTE)}
        # Shards that were stored earlier may have been measured with another batch size.
        sizes = sorted(set(arrays[f"{NOTE}batch_size"].tolist()))
        batch_size: Value = sizes[0] if len(sizes) == 1 else ", ".join(map(str, sizes))
        return Measurement(
            metric=self.metric,
            version=metrics.get(self.metric).VERSION,
            status="done",
            n=self.n,
            values=values | {"batch_size": batch_size},
            flags=list(flags),
            seconds=float(arrays[f"{NOTE}seconds"].sum()),
            samples=self.store.save_samples(identity, self.n, {"index": np.arange(self.n)} | samples),
            config=self.protocol.config(self.metric).model_dump(mode="json"),
            key=key(identity | {"n": self.n}),
        )

    @contextmanager
    def _own_global_stream(self, index: int) -> Iterator[None]:
        """Seed the global generators for one shard, for models that draw noise; restore them afterwards."""
        device = self.subject.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.protocol.seed, self.metric, "model", index))
            yield

    def _settings(self, metric: str) -> dict[str, Any]:
        config = self.protocol.config(metric).model_dump(mode="json")
        return {"version": metrics.get(metric).VERSION, "config": config}

    def _bounds(self, index: int) -> tuple[int, int]:
        first = index * self.protocol.shard
        return first, min(first + self.protocol.shard, self.n)

    def _shard(self, index: int) -> Shard:
        chosen = slice(*self._bounds(index))
        return Shard(index, self.images.unit(chosen), self.images.labels[chosen], self.protocol.seed)


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
