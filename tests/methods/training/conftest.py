"""Data whose test split nobody may look at, and a training that crashes where a test says."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from methods.data import Dataset, ImageSet
from methods.training import trainer


class Poisoned(ImageSet):
    """Images that only their digest may be asked for: the test split during training."""

    def select(self, index: Any) -> Any:
        raise AssertionError("training selected test images")

    def unit(self, index: Any = None) -> Any:
        raise AssertionError("training looked at test images")

    def to(self, device: Any) -> Any:
        raise AssertionError("training moved test images")


@pytest.fixture
def data(digits: Dataset) -> Dataset:
    """Return the digits with a test split that nobody may look at."""
    return replace(digits, test=Poisoned(digits.test.images, digits.test.labels))


class Interrupted(Exception):
    """Stands for a crash inside a process."""


@pytest.fixture
def crash_before() -> Callable[[int], AbstractContextManager[None]]:
    """Let a training crash before an optimiser step, counted from 0, and expect it to."""

    @contextmanager
    def crashing(step: int) -> Iterator[None]:
        original = trainer._Training._step

        def interrupted(self: Any, number: int) -> Any:
            if number == step:
                raise Interrupted
            return original(self, number)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(trainer._Training, "_step", interrupted)
            yield

    return crashing
