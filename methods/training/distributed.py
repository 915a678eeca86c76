"""One training on several devices: a process for each, which hold the same weights and a share of every batch.

What ranks exchange is in :mod:`methods.primitives.ranks`; here they are started, watched and ended. torch's
DistributedDataParallel is not used: it expects one pass through its own ``forward`` to each backward pass, while a step
of a method makes a dozen passes, through ``features`` and ``rest`` too, with its parameters now frozen and now not, and
SAM takes two gradients. So gradients are added up in one exchange where the optimiser is about to use them
(:class:`methods.training.optim.Updater`), which overlaps with no computation.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from methods.errors import InputError
from methods.primitives import ranks
from methods.training.processes import end_with_parent, ending

_PATIENCE = timedelta(hours=2)
"""Longest wait of a rank for another, which may be writing files; a rank that ends is noticed at once."""
_START = "spawn"
"""How ranks start: a fork would take over the threads of the libraries, and CUDA not at all."""
_GRACE = 5.0
"""Seconds in which the other ranks may say what they saw of one that failed."""

Work = Callable[[torch.device], object]
"""What each rank does on its device; it can be pickled."""


class RankFailed(RuntimeError):
    """A rank died or met an unexpected error, and all others were ended."""


@dataclass(frozen=True)
class _Message:
    """How a rank ended."""

    error: Exception | None
    """One that the caller is to get as it is."""
    text: str
    trace: str
    consequence: bool
    """Whether it only lost the connection to another."""


def check_devices(device: torch.device, devices: int) -> None:
    """Refuse more devices than the machine has of a kind.

    Raises:
        InputError: there are too few, or ``device`` names one of them alone.
    """
    if devices < 1:
        raise InputError(f"--devices must be at least 1, not {devices}.")
    if devices == 1:
        return
    if device.type == "cuda":
        if device.index is not None:
            raise InputError(f"Several devices are cuda:0 to cuda:{devices - 1}: give --device cuda, not {device}.")
        available, kind = torch.cuda.device_count(), "GPU"
    else:
        available, kind = _cores(), "CPU core"
    if devices > available:
        plural = "" if available == 1 else "s"
        raise InputError(f"{devices} devices were asked for, but this machine has {available} {kind}{plural}.")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def on_devices(work: Work, device: torch.device, devices: int, title: str, told: tuple[type[Exception], ...]) -> None:
    """Do ``work`` on several devices at once, as the ranks of one computation.

    ``device`` is their kind: the CPU, whose threads the ranks share, or "cuda", of which each gets its own. ``title``
    names the work in errors. Errors of the types ``told`` are raised here as a rank raised them.

    Raises:
        RankFailed: a rank died, or raised anything else. No rank is left.
    """
    context = multiprocessing.get_context(_START)
    # A pickle of its own carries tensors by value: torch would put them into shared memory, which containers lack.
    payload = pickle.dumps(work)
    threads = max(1, torch.get_num_threads() // devices)
    processes: list[BaseProcess] = []
    readers: list[Connection] = []
    with TemporaryDirectory(prefix="trilemma-") as folder:
        try:
            with _interrupts_ignored():
                for rank in range(devices):
                    reader, writer = context.Pipe(duplex=False)
                    place = (rank, devices, device.type, Path(folder) / "rendezvous")
                    arguments = (payload, place, threads, told, writer)
                    process = context.Process(target=_rank, args=arguments, daemon=True)
                    process.start()
                    writer.close()
                    processes.append(process)
                    readers.append(reader)
            if not _ended_well(processes):
                _tell(title, processes, readers)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _ended_well(processes: list[BaseProcess]) -> bool:
    """Wait for all processes; where one fails, give the others a moment to end by themselves, and return False."""
    running = {process.sentinel: process for process in processes}
    deadline: float | None = None
    while running:
        left = None if deadline is None else deadline - time.monotonic()
        ended = wait(list(running), left)
        if not ended:
            break
        for sentinel in ended:
            assert isinstance(sentinel, int)
            process = running.pop(sentinel)
            process.join()
            if process.exitcode and deadline is None:
                deadline = time.monotonic() + _GRACE
    return deadline is None


def _tell(title: str, processes: list[BaseProcess], readers: list[Connection]) -> None:
    """Raise what made the ranks fail; what it led to in others is left out."""
    seen: list[tuple[int, int, _Message | None]] = []
    for rank, (process, reader) in enumerate(zip(processes, readers, strict=True)):
        if process.exitcode:
            message: _Message | None = None
            if reader.poll():
                with suppress(EOFError):
                    message = reader.recv()
            seen.append((rank, process.exitcode, message))
    rank, status, message = min(seen, key=lambda ended: 0 if ended[2] is None else 1 + ended[2].consequence)
    if message is not None and message.error is not None:
        raise message.error
    how = f"failed: {message.text}" if message is not None else ending(status)
    raise RankFailed(
        f"{title}: rank {rank} of {len(processes)} {how.rstrip('.')}. The other ranks were ended; the same command "
        "continues from the last checkpoint."
    ) from (None if message is None else RuntimeError(message.trace))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that are started here leave an interrupt from the keyboard to this one, which ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _rank(
    payload: bytes,
    place: tuple[int, int, str, Path],
    threads: int,
    told: tuple[type[Exception], ...],
    writer: Connection,
) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    try:
        with _process_group(*place) as device, ranks.joined():
            pickle.loads(payload)(device)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        lost = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text
        known = error if isinstance(error, told) else None
        writer.send(_Message(known, text, traceback.format_exc(), lost and known is None))
        sys.stderr.flush()
        # A process group that has lost a rank may wait for it at the end of the interpreter.
        os._exit(1)


@contextmanager
def _process_group(rank: int, of: int, kind: str, rendezvous: Path) -> Iterator[torch.device]:
    """Meet the other ranks; yield this one's device."""
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        # Decisions of rank 0 and buffers on the CPU travel by gloo in any case.
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=of,
        timeout=_PATIENCE,
    )
    yield device
    # Who leaves first would look to the others like one that died.
    dist.all_reduce(torch.zeros(1))
    dist.destroy_process_group()
