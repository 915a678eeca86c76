"""Jobs, and the messages of a worker about the job that it does."""

import io
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from methods.errors import InputError
from methods.training.progress import Report, reported_to


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """Work that a worker can be given: it can be pickled, and leaves its results in files.

    A job that is done a second time continues from the files that it finds.
    """

    name: Hashable
    """Key of the job; no other job of the same run has it."""
    title: str
    """Description shown to people."""
    kind: str
    """Jobs of one kind are expected to take about the same time."""
    gpus: int = 0
    """Number of CUDA devices that the job occupies."""
    after: frozenset[Any] = frozenset()
    """Names of the jobs that must be done before this one."""

    @abstractmethod
    def __call__(self, kept: dict[Any, Any]) -> object:
        """Do the job, and return something small; InputError: no job of this command can succeed (a disk is full, say).

        ``kept`` is the worker's cache, which outlives the job: what is loaded once need not be loaded again.
        """


def share(workers: int) -> int:
    """Return the number of threads of each worker when ``workers`` of them share this process's threads evenly."""
    import torch

    return max(1, torch.get_num_threads() // workers)


@dataclass(frozen=True)
class Finished:
    """A job that has ended."""

    job: Job
    value: Any = None
    """Return value of the job."""
    error: str | None = None
    """Reason of the job's failure; None: it did not fail."""


@dataclass(frozen=True)
class Said:
    """A line that a job wrote to stdout or stderr."""

    line: str


@dataclass(frozen=True)
class Done:
    """The job returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The job raised; ``refused``: an InputError."""

    error: str
    refused: bool = False


@dataclass(frozen=True)
class Died:
    """The worker ended without a message; ``how``: by which signal or with which status."""

    how: str


News = Report | Said | Done | Raised | Died


def perform(job: Job, kept: dict[Any, Any], tell: Callable[[Report | Said], object]) -> Done | Raised:
    """Do a job in a worker; ``tell`` gets its progress and the lines that it writes."""
    lines = _Lines(tell)
    try:
        with redirect_stdout(lines), redirect_stderr(lines), reported_to(tell):
            return Done(job(kept))
    except InputError as error:
        return Raised(str(error), refused=True)
    except Exception as error:
        for line in traceback.format_exc().splitlines():
            tell(Said(line))
        return Raised(f"{type(error).__name__}: {' '.join(str(error).split())}")


class _Lines(io.TextIOBase):
    """Stream that passes each line on as soon as it is whole; never a terminal."""

    def __init__(self, tell: Callable[[Said], object]) -> None:
        self._tell, self._begun = tell, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._tell(Said(line))
        return len(text)
