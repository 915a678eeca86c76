"""Workers of this machine: this process, or several processes that are kept from job to job."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from benchmark.engines.jobs import Died, Finished, Job, News, perform
from benchmark.engines.schedule import Schedule
from methods.errors import InputError
from methods.training.processes import end_with_parent, ending


def alone(jobs: Sequence[Job], kept: dict[Any, Any]) -> Iterator[Finished]:
    """Do every job in this process, with its own progress; yield each. What a job refuses (InputError) ends all."""
    schedule = Schedule(jobs)
    while (job := schedule.next()) is not None:
        print(job.title, file=sys.stderr)
        try:
            value = job(kept)
        except InputError:
            raise
        except Exception as error:
            traceback.print_exc()
            schedule.failed(job)
            yield Finished(job, error=f"{job.title}: {type(error).__name__}: {' '.join(str(error).split())}")
        else:
            schedule.done(job)
            yield Finished(job, value)


class Processes:
    """Crew of spawned processes, which end with this one, for whatever reason it ends."""

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self._threads = threads
        self._context = get_context("spawn")
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._busy: set[int] = set()
        for number in range(1, size + 1):
            self._start(number)

    def give(self, worker: int, job: Job) -> None:
        """Send a job to an idle worker; start the worker where there is none."""
        if worker not in self._workers:
            self._start(worker)
        self._busy.add(worker)
        try:
            self._workers[worker][1].send(job)
        except OSError:
            # It died since its last job; the one that takes its place has not had the time to.
            self._end(worker)
            self._start(worker)
            self._workers[worker][1].send(job)

    def news(self, seconds: float) -> list[tuple[int, News]]:
        """Return the workers' messages with their numbers, after at most ``seconds``."""
        numbers = {self._workers[number][1]: number for number in self._busy}
        found: list[tuple[int, News]] = []
        for connection in wait(list(numbers), seconds):
            assert isinstance(connection, Connection)
            number = numbers[connection]
            try:
                last, news = connection.recv()
            except (EOFError, OSError):
                last, news = True, Died(self._end(number))
            if last:
                self._busy.discard(number)
            found.append((number, news))
        return found

    def close(self) -> None:
        """Kill all workers."""
        for process, _ in self._workers.values():
            process.kill()
        for number in list(self._workers):
            self._end(number)

    def _start(self, number: int) -> None:
        ours, theirs = self._context.Pipe()
        # No daemon: such a one may not have processes of its own, and what a job runs may be anybody's code.
        process = self._context.Process(target=_serve, args=(theirs, self._threads), name=f"worker {number}")
        process.start()
        theirs.close()
        self._workers[number] = process, ours

    def _end(self, number: int) -> str:
        """Forget a worker that is dead or dying; return how it ended."""
        process, connection = self._workers.pop(number)
        connection.close()
        process.join()
        return ending(process.exitcode or 0)


def _serve(jobs: Connection, threads: int) -> None:
    # Ctrl-C reaches every process of a terminal; the one in front ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    # Nothing has loaded torch yet; the first job does, and it reads this then.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    kept: dict[Any, Any] = {}
    while True:
        try:
            job = jobs.recv()
        except EOFError:
            return
        jobs.send((True, perform(job, kept, lambda news: jobs.send((False, news)))))
