"""Threads of workers."""

from __future__ import annotations


def share(workers: int) -> int:
    """Return the number of threads of each worker when ``workers`` of them share this process's threads evenly."""
    import torch

    return max(1, torch.get_num_threads() // workers)
