"""How a process ended, in words; that none outlives its parent is tested where processes are started."""

from __future__ import annotations

import signal

import pytest

from methods.training.processes import ending


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, "ended with status 0"),
        (3, "ended with status 3"),
        (-signal.SIGKILL, "was killed by signal 9 (SIGKILL)"),
        (-40, "was killed by signal 40"),
    ],
)
def test_ending(status: int, said: str) -> None:
    assert ending(status) == said
