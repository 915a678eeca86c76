"""The other side of a race, in a process of its own: what ours sets for its process must not help it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from benchmarks.timing import synchronise
from methods.training.processes import end_with_parent, ending


class Apart:
    """An object in a fresh process, which waits while it is not called; a context manager that ends it.

    Args:
        make: makes the object there; importable by name, as are its arguments' types.
        arguments: of ``make``.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(
            target=_serve, args=(theirs, torch.get_num_threads(), make, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        self._answer()

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join()

    def call(self, name: str) -> tuple[Any, float]:
        """Call the object's method ``name`` there; return what it returns, and the seconds that it took.

        Raises:
            RuntimeError: the process ended; its own traceback is on stderr.
        """
        self._pipe.send(name)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the other side {ending(self._process.exitcode or 0)}") from None


def _serve(pipe: Connection, threads: int, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    made = make(*arguments)
    pipe.send(None)
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        started = time.perf_counter()
        value = getattr(made, name)()
        synchronise()
        pipe.send((value, time.perf_counter() - started))
