"""Workers on a Ray cluster whose nodes see the folders of this machine under the same names."""

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark.engines.jobs import Died, Done, Job, News, Raised, Said, perform, share
from methods.errors import InputError
from methods.training.progress import Report

_PATIENCE = 10.0
"""Seconds within which a cluster must answer."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray says at length what these decide, unless they are decided.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
_MEMORY = 100 * 2**20
"""Bytes of Ray's object store: jobs and their return values are small; all else lies in files."""
_PROBE = "import sys, logging, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)"


def _ray() -> ModuleType:
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'trilemma[cluster]'.") from None
    return ray


def connect(address: str | None, workers: int) -> None:
    """Connect to a cluster, or start one on this machine; do nothing where there is a connection.

    ``address`` is "auto", HOST:PORT or ray://HOST:PORT; None: start one, with CPUs for so many ``workers``.
    InputError: Ray is not installed, no cluster answers, or it has fewer CPUs than workers.
    """
    ray = _ray()
    if not ray.is_initialized():
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            cpus = workers * share(workers)
            ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=_MEMORY, **quiet)
        else:
            _probe(address)
            try:
                ray.init(address, **quiet)
            except (ConnectionError, ImportError, RuntimeError) as error:
                raise InputError(f"Ray cannot connect to {address}: {' '.join(str(error).split())}") from None
    if workers > (cpus := int(ray.cluster_resources().get("CPU", 0))):
        raise InputError(f"--workers {workers} needs as many CPUs, and the Ray cluster has {cpus}.")


def disconnect() -> None:
    """End the connection, and with it a cluster that :func:`connect` started."""
    _ray().shutdown()


def gpus() -> int:
    """Return the CUDA devices of the cluster."""
    return int(_ray().cluster_resources().get("GPU", 0))


def _probe(address: str) -> None:
    """Refuse an address where no cluster answers; Ray itself would try for minutes, and then abort the process."""
    silent = InputError(f"No Ray cluster answers at {address}; start one with: ray start --head.")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto":
        if not host or not port.isdigit():
            raise InputError(f'--address takes auto, HOST:PORT or ray://HOST:PORT, not "{address}".')
        try:
            socket.create_connection((host, int(port)), timeout=_PATIENCE / 2).close()
        except (OSError, OverflowError):
            raise silent from None
    if address.startswith("ray://"):
        return  # Ray's client gives up by itself.
    try:
        # A process of its own: what answers may be no Ray, and Ray's retries cannot be stopped otherwise.
        command = [sys.executable, "-c", _PROBE, address]
        subprocess.run(command, timeout=_PATIENCE, capture_output=True, check=True)
    except subprocess.SubprocessError:
        raise silent from None


def threads(cpus: Sequence[int], size: int) -> int:
    """Return the largest number of threads a job with which ``size`` jobs at a time fit on nodes with ``cpus`` CPUs.

    It is not more than OMP_NUM_THREADS, where the user has set that.
    """
    fitting = (count for count in range(max(cpus), 0, -1) if sum(node // count for node in cpus) >= size)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(next(fitting, 1), int(asked) if asked.isdigit() and int(asked) else sys.maxsize)


class Cluster:
    """Crew of ``size`` tasks at a time on the connected cluster; each occupies CPUs for its threads, and its GPUs."""

    def __init__(self, size: int, runs: Path) -> None:
        self._ray = ray = _ray()
        self.size = size
        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        self._threads = threads(cpus, size)
        self._nonce = (runs / f".seen-{secrets.token_hex(8)}").absolute()
        try:
            runs.mkdir(parents=True, exist_ok=True)
            self._nonce.touch()
        except OSError as error:
            raise InputError(f"Cannot write {self._nonce}: {error.strerror}.") from error
        # The mailbox outlives the deaths of workers. The default of a task on a GPU is a new process for every job.
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).remote()
        self._task = ray.remote(max_retries=0, max_calls=0)(_task)
        self._given = 0
        self._busy: dict[Any, tuple[int, int]] = {}

    def give(self, worker: int, job: Job) -> None:
        """Start a task that does a job; raise InputError where the workers need more CUDA devices than there are."""
        if job.gpus * self.size > gpus():
            raise InputError(
                f"--workers {self.size} needs {job.gpus * self.size} CUDA devices at a time, and the Ray cluster has "
                f"{gpus()}."
            )
        self._given += 1
        task = self._task.options(num_cpus=self._threads, num_gpus=job.gpus)
        place = os.getcwd(), str(self._nonce), self._threads
        self._busy[task.remote(job, self._given, self._mailbox, *place)] = worker, self._given

    def news(self, seconds: float) -> list[tuple[int, News]]:
        """Return the workers' messages with their numbers, after at most ``seconds``."""
        ray = self._ray
        ready, _ = ray.wait(list(self._busy), timeout=seconds)
        workers = {number: worker for worker, number in self._busy.values()}
        found: list[tuple[int, News]] = []
        with suppress(ray.exceptions.RayError):
            said = ray.get(self._mailbox.take.remote(), timeout=_PATIENCE)
            found += [(workers[number], news) for number, news in said if number in workers]
        for task in ready:
            worker, _ = self._busy.pop(task)
            try:
                found.append((worker, ray.get(task)))
            except ray.exceptions.RayTaskError as error:
                found.append((worker, Raised(str(error).strip().splitlines()[-1])))
            except ray.exceptions.RayError as error:
                found.append((worker, Died(f"ended: {type(error).__name__}")))
        return found

    def close(self) -> None:
        """Cancel all tasks, and end the mailbox."""
        with suppress(self._ray.exceptions.RayError):
            for task in self._busy:
                self._ray.cancel(task, force=True)
            self._ray.kill(self._mailbox)
        self._nonce.unlink(missing_ok=True)


class Mailbox:
    """Actor that holds the messages of tasks until the driver takes them."""

    def __init__(self) -> None:
        self._held: list[tuple[int, News]] = []

    def post(self, number: int, news: News) -> None:
        """Leave a message of the task ``number``."""
        self._held.append((number, news))

    def take(self) -> list[tuple[int, News]]:
        """Take out all messages."""
        held, self._held = self._held, []
        return held


_KEPT: dict[Any, Any] = {}
"""Cache of a worker's process, kept from task to task."""


def _task(job: Job, number: int, mailbox: Any, folder: str, nonce: str, threads: int) -> Done | Raised:
    try:
        os.chdir(folder)
        seen = os.path.exists(nonce)
    except OSError:
        seen = False
    if not seen:
        return Raised(
            f"The node {socket.gethostname()} of the Ray cluster does not see {os.path.dirname(nonce)}; --runs, the "
            "project and its data must lie in folders that all nodes share.",
            refused=True,
        )
    # A job that computes has brought torch along.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    posted: list[Any] = []

    def tell(news: Report | Said) -> None:
        posted[:] = [mailbox.post.remote(number, news)]

    try:
        ended = perform(job, _KEPT, tell)
        # Mail is delivered in order; after the end of a task the driver looks for none of it.
        ray = _ray()
        with suppress(ray.exceptions.RayError):
            ray.get(posted, timeout=_PATIENCE)
        return ended
    finally:
        if torch is not None and torch.cuda.is_initialized():
            # The next job on this device may be another process's.
            torch.cuda.empty_cache()
