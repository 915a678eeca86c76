"""The other side of a race: it runs elsewhere, its seconds are its own, and its end is noticed."""

from __future__ import annotations

import os
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from benchmarks.apart import Apart


def test_calls_share_an_object() -> None:
    with Apart(count, 4) as counter:
        assert [counter.call("__next__")[0] for _ in range(3)] == [4, 5, 6]


def test_the_object_is_in_another_process_that_ends_with_the_race() -> None:
    with Apart(Path, "/proc/self/stat") as stat:
        process = int(stat.call("read_text")[0].split()[0])
        assert process != os.getpid()
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_both_sides_have_as_many_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with Apart(partial, torch.get_num_threads) as threads:
            assert threads.call("__call__")[0] == before + 1
    finally:
        torch.set_num_threads(before)


def test_seconds_are_those_of_the_call() -> None:
    with Apart(partial, time.sleep, 0.2) as sleep:
        # Waiting to be called takes none.
        time.sleep(1)
        assert 0.2 <= sleep.call("__call__")[1] < 1


def test_an_error_there_is_not_taken_for_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    with Apart(partial, int, "planted") as failing, pytest.raises(RuntimeError, match="ended with status 1"):
        failing.call("__call__")
    assert "planted" in capfd.readouterr().err
