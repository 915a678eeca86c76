"""The other side of a race without a process of its own."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest


class Beside:
    """What :class:`benchmarks.apart.Apart` is, in this process; what crosses over is pickled."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        there, given = pickle.loads(pickle.dumps((make, arguments)))
        self._made = there(*given)

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *error: object) -> None: ...

    def call(self, name: str) -> tuple[Any, float]:
        started = time.perf_counter()
        value = getattr(self._made, name)()
        return pickle.loads(pickle.dumps(value)), time.perf_counter() - started


@pytest.fixture(params=["here", pytest.param("apart", marks=pytest.mark.slow)])
def other_side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let races have their other side in this process, since starting one takes seconds; or in one of its own."""
    if request.param == "here":
        for module in ("evaluation", "training"):
            monkeypatch.setattr(f"benchmarks.{module}.Apart", Beside)
