"""One evaluation in parts: each measures every n-th shard and leaves it in the store.

Shards depend on nothing outside themselves, so it does not matter who measures which, in what order, or whether a
process dies: what is missing in the end is measured by whoever assembles the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from methods.errors import InputError


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
