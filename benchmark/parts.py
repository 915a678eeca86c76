"""One evaluation on several processes: each measures every n-th shard and leaves it in the store.

Shards depend on nothing outside themselves, so it does not matter who measures which, in what order, or whether a
process dies: what is missing in the end is measured by whoever assembles the result.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

from methods.errors import InputError
from methods.training.progress import progress

MOST = 256
"""Workers; more is a slip of the finger."""


@dataclass(frozen=True)
class Part:
    """Every ``of``-th shard, from the ``number``-th on."""

    number: int
    """From 1."""
    of: int

    @staticmethod
    def parse(text: str) -> Part:
        """Return the part that ``i/n`` names.

        Raises:
            InputError: it names none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f'--shard takes i/n with i from 1 to n, such as 2/3, not "{text}".')
        return Part(int(match[1]), int(match[2]))

    def __contains__(self, shard: int) -> bool:
        return shard % self.of == self.number - 1


class PartDone(Exception):
    """The shards of a part are stored; the rest of the measurement belongs to whoever has them all."""


Work = Callable[[Part, Callable[[], object]], None]
"""Measures a part, and calls back after each shard; it can be pickled."""


def in_workers(work: Work, workers: int, title: str, total: int) -> list[str]:
    """Run ``work`` on every part, each in a process of its own, and show the progress of all as one.

    Args:
        work: what a worker does.
        workers: how many; at least 2.
        title: of the progress.
        total: shards, over all metrics.

    Returns:
        A sentence for each worker that died; its shards are missing from the store, and nothing else is lost.
    """
    context = get_context("spawn")
    processes, readers = {}, {}
    try:
        for number in range(1, workers + 1):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(work, Part(number, workers), writer), daemon=True)
            process.start()
            writer.close()
            processes[number], readers[reader] = process, number
        with progress(title, total) as advance:
            _listen(list(readers), total, advance)
        for process in processes.values():
            process.join()
    finally:
        for process in processes.values():
            process.kill()
    return [
        f"worker {number} of {workers} ended with status {process.exitcode}; its shards are measured again"
        for number, process in processes.items()
        if process.exitcode
    ]


def _listen(readers: list[Connection], total: int, advance: Callable[[int], None]) -> None:
    done = 0
    while readers:
        for reader in wait(readers):
            assert isinstance(reader, Connection)
            try:
                reader.recv()
            except EOFError:
                readers.remove(reader)
            else:
                # A metric that reuses another's shards reports them again; the last report comes once.
                if done < total:
                    done += 1
                    advance(done)


def _worker(work: Work, part: Part, writer: Connection) -> None:
    try:
        work(part, lambda: writer.send(None))
    except (Exception, KeyboardInterrupt) as error:
        print(f"worker {part.number} of {part.of}: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        writer.close()
