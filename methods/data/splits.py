"""Which image goes where: hold-out splits that never change, and the order of images read from folders."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def hold_out(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Split positions 0..N-1 into (kept, held out), both int64 and ascending, ``count`` of them held out.

    Stratified: each class gives its share of ``count``, rounded by largest remainder (ties to the lower
    label). Inside a class the images whose SHA-256 of ("trilemma-split", position) is smallest are held out,
    so the split depends on nothing but the labels: no seed, no version of a random generator.
    """
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(labels.tolist()):
        by_class.setdefault(label, []).append(position)
    total = len(labels)
    quota = {label: count * len(members) // total for label, members in by_class.items()}
    by_remainder = sorted(by_class, key=lambda label: (-(count * len(by_class[label]) % total), label))
    for label in by_remainder[: count - sum(quota.values())]:
        quota[label] += 1
    held = torch.zeros(total, dtype=torch.bool)
    for label, members in by_class.items():
        held[sorted(members, key=_rank)[: quota[label]]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def _rank(position: int) -> bytes:
    return hashlib.sha256(f"trilemma-split {position}".encode()).digest()


def interleaved(groups: Sequence[Sequence[Item]]) -> list[tuple[Item, int]]:
    """Order the items of several classes by (position within the class, class); returns (item, class) pairs.

    The first N are then as balanced as N allows, which ``--limit N`` relies on.

    >>> interleaved([["a0", "a1"], ["b0"]])
    [('a0', 0), ('b0', 1), ('a1', 0)]
    """
    longest = max(map(len, groups), default=0)
    return [
        (group[position], label)
        for position in range(longest)
        for label, group in enumerate(groups)
        if position < len(group)
    ]
