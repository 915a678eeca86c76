"""What is measured: which of a protocol's metrics, on how many images, in batches of which size."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.specs import registry
from benchmark.specs.protocol import Protocol
from benchmark.specs.recipes import canonical
from methods.errors import InputError


@dataclass(frozen=True)
class Selection:
    """A part of what a protocol measures; by default all of it."""

    metrics: Sequence[str] | None = None
    """Some of the protocol's metrics; None: all."""
    limit: int | None = None
    """Measure only the first so many test images; None: all."""
    batch_size: int | None = None
    """Images a forward pass; None: a whole shard. It may move single verdicts by rounding."""

    def check(self, protocol: Protocol, dataset: str) -> None:
        """Refuse a protocol for another data set, metrics that it does not define, and impossible numbers.

        Raises:
            InputError: the sentence says what does not fit.
        """
        if protocol.dataset not in (None, canonical(dataset)):
            raise InputError(f'The protocol "{protocol.id}" is for {protocol.dataset}, not for {dataset}.')
        for metric in self.metrics or ():
            registry.get(metric)
            protocol.config(metric)
        for name, value in (("limit", self.limit), ("batch size", self.batch_size)):
            if value is not None and value < 1:
                raise InputError(f"The {name} must be at least 1, not {value}.")

    def names(self, protocol: Protocol) -> list[str]:
        """Return the metrics to measure, in the order in which they run."""
        wanted = protocol.metrics if self.metrics is None else self.metrics
        return [name for name in registry.names() if name in wanted]

    def images(self, available: int) -> int:
        """Return the number of test images to measure, of those that are available."""
        return available if self.limit is None else min(self.limit, available)


WHOLE = Selection()
"""All of a protocol, on all images."""
