"""Progress of all workers on stderr: live lines on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmark.engines.jobs import Job
from methods.training.progress import LINE_SECONDS, Report

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass
class Running:
    """A job in progress."""

    job: Job
    began: float
    first: float | None = None
    """Share that was done before this worker began, in [0, 1]: a training may resume; None: not reported yet."""
    report: Report | None = None

    @property
    def share(self) -> float:
        """Share of the job that is done, in [0, 1]."""
        return 0.0 if self.report is None else self.report.completed / max(1, self.report.total)

    def update(self, report: Report) -> None:
        """Store a report of the worker."""
        self.report = report
        if self.first is None:
            self.first = self.share

    def left(self, now: float) -> float | None:
        """Return the seconds left at the speed so far; None where there is no progress to tell it from."""
        gained = self.share - (self.first or 0.0)
        return None if gained <= 0 else (now - self.began) / gained * (1 - self.share)


@dataclass
class Forecast:
    """Forecast of the time left, from the jobs that are done and the shares of those in progress."""

    workers: int
    waiting: Counter[str] = field(default_factory=Counter)
    """Kind of job -> number of jobs that wait."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Kind of job -> seconds that each of the finished ones took."""

    def left(self, running: Iterable[Running], now: float) -> tuple[float, bool]:
        """Return the seconds left, and whether they are an estimate: with a kind unknown, they are a lower bound."""
        known = {kind: sum(took) / len(took) for kind, took in self.seconds.items() if took}
        rest: list[float] = []
        open_kinds = set()
        for one in running:
            left = one.left(now)
            if left is not None:
                known.setdefault(one.job.kind, now - one.began + left)
            elif one.job.kind in known:
                left = max(0.0, known[one.job.kind] - (now - one.began))
            else:
                open_kinds.add(one.job.kind)
            rest.append(left or 0.0)
        waiting = {kind: count for kind, count in self.waiting.items() if count > 0}
        total = sum(rest) + sum(count * known.get(kind, 0.0) for kind, count in waiting.items())
        sure = set(waiting) <= set(known) and not open_kinds
        return max([total / self.workers, *rest]), sure


class View:
    """Display of what each worker does, and of how much of everything is done.

    It is a context manager: on a terminal, its lines are live while it is open, and other output goes above them.
    """

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._total, self._done = len(jobs), 0
        self._running: dict[int, Running] = {}
        self._forecast = Forecast(workers, Counter(job.kind for job in jobs))
        self._due = time.monotonic() + LINE_SECONDS
        self._live = _live() if sys.stderr.isatty() else None
        self._lines: dict[int, Any] = {}
        if self._live is not None:
            self._sum = self._live.add_task("all", total=self._total, status="")

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, worker: int, job: Job) -> None:
        """Show that a worker has begun a job."""
        self._forecast.waiting[job.kind] -= 1
        self._running[worker] = Running(job, time.monotonic())
        if self._live is not None:
            self._lines[worker] = self._live.add_task(job.title, total=None, status="")

    def reported(self, worker: int, report: Report) -> None:
        """Show a worker's progress."""
        self._running[worker].update(report)
        if self._live is not None:
            line = self._lines[worker]
            self._live.update(line, total=report.total, completed=report.completed, status=report.status)

    def said(self, line: str) -> None:
        """Print a line that stays."""
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def stopped(self, worker: int) -> None:
        """Count a worker's job among those that wait again."""
        self._forecast.waiting[self._leave(worker).job.kind] += 1

    def ended(self, worker: int, skipped: Sequence[Job] = ()) -> None:
        """Count a worker's job as ended, successfully or not; the jobs ``skipped`` will not be done."""
        one = self._leave(worker)
        self._forecast.seconds[one.job.kind].append(time.monotonic() - one.began)
        self._done += 1
        for job in skipped:
            self._forecast.waiting[job.kind] -= 1
        self._total -= len(skipped)

    def refresh(self) -> None:
        """Show the state of everything: always on a terminal, elsewhere every :data:`LINE_SECONDS`."""
        now = time.monotonic()
        if self._live is not None:
            status = "" if self._done == self._total else self._eta(now)
            self._live.update(self._sum, completed=self._done, total=self._total, status=status)
        elif now >= self._due:
            self._due = now + LINE_SECONDS
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """Return the state of everything in one line."""
        parts = [f"{self._done} of {self._total} jobs, {self._eta(now)}"]
        for _, one in sorted(self._running.items()):
            report = one.report
            place = "" if report is None else f" {report.completed}/{report.total} {report.status}".rstrip()
            parts.append(one.job.title + place)
        return " | ".join(parts)

    def _leave(self, worker: int) -> Running:
        if self._live is not None:
            self._live.remove_task(self._lines.pop(worker))
        return self._running.pop(worker)

    def _eta(self, now: float) -> str:
        left, sure = self._forecast.left(self._running.values(), now)
        if not sure and not left:
            return "ETA unknown"
        return f"ETA {'' if sure else 'more than '}{duration(left)}"


def duration(seconds: float) -> str:
    """Return a duration as people say it, such as "5 min 25 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 5:
        return f"{round(seconds)} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _live() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    return Progress(*columns, console=Console(stderr=True))
