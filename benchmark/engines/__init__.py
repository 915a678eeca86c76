"""Engines: what carries out jobs, in this process, in several of this machine, or on a Ray cluster.

- ``local``: ``workers`` processes of this machine; one worker is this process.
- ``ray``: ``workers`` jobs at a time on a Ray cluster whose nodes see the same folders.

Every engine keeps the same promises. A job whose worker died is done again by another one; what raises is reported, and
what comes after it is left undone; and since jobs leave what they have done in files, a command that is stopped at any
moment continues where it was.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.errors import InputError, nearest

if TYPE_CHECKING:
    from benchmark.engines.jobs import Finished, Job

NAMES = ("local", "ray")
MOST = 256
"""Largest number of workers; more is a slip of the finger."""


class WorkFailed(RuntimeError):
    """Something that all the rest depends on could not be done; told in one sentence."""


@dataclass(frozen=True)
class Engine:
    """Choice of where jobs are done, and how many at a time.

    Raises:
        InputError: an unknown engine, an impossible number of workers, or an address without a cluster.
    """

    name: str = "local"
    workers: int = 1
    address: str | None = None
    """Address of a Ray cluster: "auto", HOST:PORT or ray://HOST:PORT; None: a cluster is started on this machine."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise InputError(
                f'There is no engine "{self.name}".{nearest(self.name, NAMES)} Choose from: {", ".join(NAMES)}.'
            )
        if not 1 <= self.workers <= MOST:
            bound = "least 1" if self.workers < 1 else f"most {MOST}"
            raise InputError(f"--workers must be at {bound}, not {self.workers}.")
        if self.address is not None and self.name != "ray":
            raise InputError("--address goes with --engine ray.")

    @property
    def here(self) -> bool:
        """Whether jobs are done on this machine, so that its devices are theirs."""
        return self.name == "local"

    @property
    def alone(self) -> bool:
        """Whether jobs are done in this very process."""
        return self.here and self.workers == 1

    def device(self, name: str) -> str:
        """Return the device that jobs are to use: a cluster's "auto" is not this machine's. It has to answer."""
        if self.here or name != "auto":
            return name
        from benchmark.engines import ray

        ray.connect(self.address, self.workers)
        return "cuda" if ray.gpus() else "cpu"

    def run(self, jobs: Sequence[Job], kept: dict[Any, Any], runs: Path) -> Generator[Finished, None, None]:
        """Do every job, the earlier ones first; yield each that ended, as they end. Close it, and the workers end.

        Jobs that are done in this process share its cache ``kept``; workers share the folder ``runs``.

        Raises:
            InputError: a job refused its input, or could not write; the cluster does not answer, or has fewer devices
                than its workers need.
        """
        if not jobs:
            return
        if self.alone:
            from benchmark.engines.local import alone

            yield from alone(jobs, kept)
            return
        from benchmark.engines.schedule import carry_out

        size = min(self.workers, len(jobs))
        if self.here:
            from benchmark.engines.jobs import share
            from benchmark.engines.local import Processes

            crew = Processes(size, share(self.workers))
        else:
            from benchmark.engines.ray import Cluster, connect

            connect(self.address, self.workers)
            crew = Cluster(size, runs)
        yield from carry_out(jobs, crew)

    def close(self) -> None:
        """End the Ray cluster that the engine has started, or leave the one that it has joined."""
        if not self.here:
            from benchmark.engines import ray

            ray.disconnect()
