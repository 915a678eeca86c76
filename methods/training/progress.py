"""Progress of long work on stderr: a bar with an ETA on a terminal, and a plain line now and then elsewhere.

A process that works for another one reports there instead: see :func:`reported_to`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

LINE_SECONDS = 30.0
"""Between two plain lines."""
_REPORT_SECONDS = 0.25


@dataclass(frozen=True)
class Report:
    """How far some work is."""

    title: str
    completed: int
    total: int
    status: str = ""


_sink: Callable[[Report], object] | None = None


@contextmanager
def reported_to(sink: Callable[[Report], object]) -> Iterator[None]:
    """Hand what :func:`progress` would show in this process to ``sink``, at most a few times a second."""
    global _sink
    before, _sink = _sink, sink
    try:
        yield
    finally:
        _sink = before


class Advance(Protocol):
    """Report progress: ``completed`` units are done, and ``status`` is shown beside the bar."""

    def __call__(self, completed: int, status: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, completed: int = 0) -> Iterator[Advance]:
    """Show the progress of ``total`` units of work, of which ``completed`` were done before."""
    if _sink is not None:
        yield _reports(_sink, title, total, completed)
    elif sys.stderr.isatty():
        yield from _bar(title, total, completed)
    else:
        yield _lines(title, total, completed)


def _reports(sink: Callable[[Report], object], title: str, total: int, completed: int) -> Advance:
    shown = ""
    due = time.monotonic() + _REPORT_SECONDS
    sink(Report(title, completed, total))

    def advance(completed: int, status: str = "") -> None:
        nonlocal due, shown
        shown = status or shown
        now = time.monotonic()
        if now >= due or completed >= total:
            due = now + _REPORT_SECONDS
            sink(Report(title, completed, total, shown))

    return advance


def _bar(title: str, total: int, completed: int) -> Iterator[Advance]:
    from rich import console, progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[status]}"),
    )
    with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=completed, status="")

        def advance(completed: int, status: str = "") -> None:
            bar.update(task, completed=completed)
            if status:
                bar.update(task, status=status)

        yield advance


def _lines(title: str, total: int, completed: int) -> Advance:
    first, start = completed, time.monotonic()
    due = start + LINE_SECONDS

    def advance(completed: int, status: str = "") -> None:
        nonlocal due
        now = time.monotonic()
        if now < due and completed < total:
            return
        due = now + LINE_SECONDS
        left = (now - start) / max(1, completed - first) * (total - completed)
        print(f"{title}: {completed}/{total}, ETA {left:.0f} s {status}".rstrip(), file=sys.stderr, flush=True)

    return advance
