"""The other side of a race: it runs elsewhere, its seconds are its own, and its end is noticed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from benchmarks.apart import Apart

THREADS = 3
MADE = partial(
    SimpleNamespace,
    next=partial(next, count(4)),
    process=os.getpid,
    threads=torch.get_num_threads,
    sleep=partial(time.sleep, 0.2),
    fail=partial(int, "planted"),
)


@pytest.fixture(scope="module")
def other() -> Iterator[Apart]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with Apart(MADE) as other:
        torch.set_num_threads(before)
        yield other


def test_calls_share_an_object(other: Apart) -> None:
    assert [other.call("next")[0] for _ in range(3)] == [4, 5, 6]


def test_both_sides_have_as_many_threads(other: Apart) -> None:
    assert other.call("threads")[0] == THREADS


def test_seconds_are_those_of_the_call(other: Apart) -> None:
    # Waiting to be called takes none.
    time.sleep(1)
    assert 0.2 <= other.call("sleep")[1] < 1


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


def test_the_process_ends_with_the_race() -> None:
    with Apart(MADE) as other:
        process, _ = other.call("process")
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
