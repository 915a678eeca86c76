"""Processes that this project starts: none outlives the one that started it, and how each ended is said alike."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """End this process, a child by multiprocessing, as soon as its parent has ended, killed or not."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def ending(status: int) -> str:
    """Say how a process with that exit status ended: "ended with status 1" or "was killed by signal 9 (SIGKILL)"."""
    if status >= 0:
        return f"ended with status {status}"
    known = [f" ({one.name})" for one in signal.Signals if one == -status]
    return f"was killed by signal {-status}{''.join(known)}"
