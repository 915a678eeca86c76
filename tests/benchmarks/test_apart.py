"""The other side of a race: it runs elsewhere, its seconds are its own, and its end is noticed."""

from __future__ import annotations

import os
import time
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from benchmarks.apart import Apart

THREADS = 3
SLEEP = 0.1
MADE = partial(
    SimpleNamespace,
    next=partial(next, count(4)),
    process=os.getpid,
    threads=torch.get_num_threads,
    sleep=partial(time.sleep, SLEEP),
    fail=partial(int, "planted"),
)


def test_a_race_from_its_start_to_its_end() -> None:
    """One test, since every process that is started imports torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with Apart(MADE) as other:
        torch.set_num_threads(before)
        process, _ = other.call("process")
        os.kill(process, 0)
        assert [other.call("next")[0] for _ in range(3)] == [4, 5, 6], "calls share an object"
        assert other.call("threads")[0] == THREADS, "both sides have as many threads"
        # Its seconds are those of the call alone: what it waited to be called before takes none.
        time.sleep(0.5)
        called = time.perf_counter()
        seconds = other.call("sleep")[1]
        assert SLEEP <= seconds <= time.perf_counter() - called
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_error_there_is_not_taken_for_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    with Apart(MADE) as failing:
        process, _ = failing.call("process")
        assert process != os.getpid()
        os.kill(process, 0)
        with pytest.raises(RuntimeError, match="ended with status 1"):
            failing.call("fail")
    assert "planted" in capfd.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
