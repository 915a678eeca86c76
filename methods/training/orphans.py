"""Processes that must not outlive the one that started them, however that one ends."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process, a child by multiprocessing, as soon as its parent has ended, killed or not."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
