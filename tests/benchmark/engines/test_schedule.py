"""The order of jobs: first come, first served, but nothing before what it comes after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmark.engines.schedule import TRIES, Schedule

Jobs = Callable[..., list[Any]]


def test_jobs_come_in_order_but_wait_for_what_they_come_after(jobs: Jobs) -> None:
    chosen = jobs("", "", "", "", after={1: 0, 2: 1})
    schedule = Schedule(chosen)
    assert [schedule.next(), schedule.next(), schedule.next()] == [chosen[0], chosen[3], None]
    schedule.done(chosen[3])
    assert schedule.next() is None
    schedule.done(chosen[0])
    assert [schedule.next(), schedule.next()] == [chosen[1], None]
    schedule.done(chosen[1])
    assert [schedule.next(), schedule.next()] == [chosen[2], None]


def test_what_was_done_before_holds_nobody_up(jobs: Jobs) -> None:
    chosen = jobs("", "", after={1: 0})
    assert Schedule(chosen[1:]).next() == chosen[1]


def test_failure_takes_out_all_that_follows(jobs: Jobs) -> None:
    chosen = jobs("", "", "", "", after={1: 0, 2: 1})
    schedule = Schedule(chosen)
    assert schedule.next() == chosen[0]
    assert schedule.failed(chosen[0]) == chosen[1:3]
    assert [schedule.next(), schedule.next()] == [chosen[3], None]


def test_job_whose_worker_died_is_next_until_it_has_killed_enough(jobs: Jobs) -> None:
    chosen = jobs("", "")
    schedule = Schedule(chosen)
    for _ in range(TRIES - 1):
        assert schedule.next() == chosen[0]
        assert schedule.died(chosen[0])
    assert schedule.next() == chosen[0]
    assert not schedule.died(chosen[0])
    assert schedule.next() == chosen[1]
