"""Many runs on several processes, a run each at a time: the work that leaves its results in files.

A training of a small network keeps one thread busy and no more, so that two runs in two processes beat one run with
two threads. What a process leaves unfinished, because it died or the command was stopped, is finished by whoever asks
for the results.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

import torch


class Work(Protocol):
    """What a process does; it can be pickled."""

    @property
    def title(self) -> str:
        """What it is, for the progress."""
        ...

    @property
    def run(self) -> Path:
        """The run it works on, which the first job of a run trains."""
        ...

    @property
    def after(self) -> frozenset[Path]:
        """Runs that must be trained before."""
        ...

    def __call__(self) -> object:
        """Do it; what raises is reported, and left undone."""
        ...


def in_processes(jobs: Sequence[Work], workers: int) -> None:
    """Do every job, each in one of ``workers`` processes, and say after each how many are done and what is left.

    They share the threads of this process. When it ends, for whatever reason, so do they. A job that comes after one
    that failed is left undone.
    """
    context = get_context("spawn")
    threads, start = max(1, torch.get_num_threads() // workers), time.monotonic()
    waiting, done = list(jobs), 0
    busy: dict[Connection, Work] = {}
    idle: list[Connection] = []
    failed: set[Path] = set()
    processes = []
    try:
        for number in range(min(workers, len(waiting))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, threads), name=f"worker {number + 1}", daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            idle.append(ours)
        while True:
            waiting = [job for job in waiting if not job.after & failed]
            while idle and (job := _ready(waiting, busy.values())) is not None:
                waiting.remove(job)
                ours = idle.pop()
                busy[ours] = job
                ours.send(job)
            if not busy:
                return
            for ours in wait(list(busy)):
                assert isinstance(ours, Connection)
                job = busy.pop(ours)
                try:
                    succeeded = ours.recv()
                except EOFError:
                    print(f"{job.title}: its process ended; it is done again", file=sys.stderr)
                    failed.add(job.run)
                    continue
                idle.append(ours)
                if not succeeded:
                    failed.add(job.run)
                done += 1
                left = (time.monotonic() - start) / done * (len(busy) + len(waiting))
                print(f"{done} of {len(jobs)} runs, ETA {left:.0f} s: {job.title}", file=sys.stderr, flush=True)
    finally:
        for process in processes:
            process.kill()


def _ready(waiting: Sequence[Work], busy: Iterable[Work]) -> Work | None:
    """Return the first job that comes after nothing that is not done."""
    undone = [*busy, *waiting]
    for job in waiting:
        if not any(other.run in job.after for other in undone if not other.after):
            return job
    return None


class _Plain:
    """Standard error of a process among several: their progress bars would overwrite each other."""

    def write(self, text: str) -> int:
        return sys.__stderr__.write(text) if sys.__stderr__ else 0

    def flush(self) -> None:
        if sys.__stderr__:
            sys.__stderr__.flush()

    def isatty(self) -> bool:
        return False


def _serve(jobs: Connection, threads: int) -> None:
    sys.stderr = _Plain()
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = jobs.recv()
        except EOFError:
            return
        try:
            job()
        except Exception as error:
            print(f"{job.title}: {type(error).__name__}: {error}", file=sys.stderr)
            jobs.send(False)
        except KeyboardInterrupt:
            return
        else:
            jobs.send(True)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
