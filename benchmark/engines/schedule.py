"""Order of jobs: which is done next, by which worker, and what happens when it fails or its worker dies."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing
from typing import Protocol

from benchmark.engines.jobs import Died, Done, Finished, Job, News, Raised, Said
from benchmark.engines.view import View
from methods.errors import InputError
from methods.training.progress import Report

TRIES = 3
"""Number of workers that may die of the same job."""
_PATIENCE = 0.25
"""Seconds between two looks at the clock."""


class Crew(Protocol):
    """Workers with numbers from 1 on; each does one job at a time."""

    @property
    def size(self) -> int: ...

    def give(self, worker: int, job: Job) -> None:
        """Let an idle worker begin a job; a dead one is replaced."""

    def news(self, seconds: float) -> list[tuple[int, News]]:
        """Return the workers' messages with their numbers, after at most ``seconds``.

        The last message of a worker about a job is Done, Raised or Died.
        """
        ...

    def close(self) -> None:
        """End all workers, whatever they do."""


class Schedule:
    """Queue of the jobs that are left; the next one is the first whose predecessors (``after``) are all done."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = list(jobs)
        self._undone = {job.name for job in jobs}
        self._deaths: Counter[Hashable] = Counter()

    def next(self) -> Job | None:
        """Remove and return the next job; None where all that are left wait for a job in progress."""
        for place, job in enumerate(self._waiting):
            if not job.after & self._undone:
                return self._waiting.pop(place)
        return None

    def done(self, job: Job) -> None:
        """Mark a job as done, so that jobs that wait for it can be next."""
        self._undone.discard(job.name)

    def failed(self, job: Job) -> list[Job]:
        """Remove and return all jobs that wait for a failed one, directly or through others."""
        lost, left = [], []
        gone = {job.name}
        # A job stands behind what it comes after.
        for other in self._waiting:
            if other.after & gone:
                gone.add(other.name)
                lost.append(other)
            else:
                left.append(other)
        self._waiting = left
        self._undone -= gone
        return lost

    def died(self, job: Job) -> bool:
        """Put a job whose worker died back to the front; return False where :data:`TRIES` workers have died of it."""
        self._deaths[job.name] += 1
        if self._deaths[job.name] >= TRIES:
            return False
        self._waiting.insert(0, job)
        return True


def carry_out(jobs: Sequence[Job], crew: Crew) -> Iterator[Finished]:
    """Let a crew do every job, each behind its predecessors, with one view of all progress; yield each that ended.

    InputError: a job refused its input, or could not write.
    """
    schedule, ended = Schedule(jobs), []
    busy: dict[int, Job] = {}
    idle = list(range(crew.size, 0, -1))
    with closing(crew), View(jobs, crew.size) as view:
        while True:
            while idle and (job := schedule.next()) is not None:
                worker = idle.pop()
                busy[worker] = job
                crew.give(worker, job)
                view.began(worker, job)
            # Only now that all workers have something to do is there time for what the caller makes of it.
            yield from ended
            ended.clear()
            if not busy:
                return
            for worker, news in crew.news(_PATIENCE):
                job = busy[worker]
                if isinstance(news, Report):
                    view.reported(worker, news)
                    continue
                if isinstance(news, Said):
                    view.said(f"{job.title}: {news.line}")
                    continue
                del busy[worker]
                idle.append(worker)
                if isinstance(news, Died) and schedule.died(job):
                    view.stopped(worker)
                    view.said(f"{job.title}: its worker {news.how}; it is done again")
                elif isinstance(news, Done):
                    view.ended(worker)
                    schedule.done(job)
                    ended.append(Finished(job, news.value))
                else:
                    error = news.error if isinstance(news, Raised) else f"{TRIES} workers died of it: {news.how}"
                    if isinstance(news, Raised) and news.refused:
                        raise InputError(error)
                    view.ended(worker, skipped=schedule.failed(job))
                    ended.append(Finished(job, error=f"{job.title}: {error}"))
            view.refresh()
