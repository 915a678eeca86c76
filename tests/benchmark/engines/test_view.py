"""What is shown of all workers: how far they are, and when everything will be done."""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from benchmark.engines.view import Forecast, Running, View, duration
from methods.training.progress import Report

Jobs = Callable[..., list[Any]]


def running(job: Any, began: float, *reports: tuple[int, int]) -> Running:
    one = Running(job, began)
    for completed, total in reports:
        one.update(Report("", completed, total))
    return one


def test_job_goes_on_as_it_has(jobs: Jobs) -> None:
    (job,) = jobs("")
    assert running(job, 0.0).left(10.0) is None
    assert running(job, 0.0, (0, 100), (25, 100)).left(10.0) == pytest.approx(30)


def test_resumed_training_gains_nothing_from_what_was_done_before(jobs: Jobs) -> None:
    (job,) = jobs("")
    assert running(job, 0.0, (50, 100), (75, 100)).left(10.0) == pytest.approx(10)


def test_forecast_counts_what_is_running_and_what_waits(jobs: Jobs) -> None:
    (job,) = jobs("")
    forecast = Forecast(2, Counter(writes=4))
    forecast.seconds["writes"] += [8.0, 12.0]
    half = running(job, 0.0, (0, 2), (1, 2))
    assert forecast.left([half], 5.0) == (pytest.approx((5 + 4 * 10) / 2), True)


def test_forecast_is_no_shorter_than_the_longest_job(jobs: Jobs) -> None:
    (job,) = jobs("")
    assert Forecast(8).left([running(job, 0.0, (0, 10), (1, 10))], 10.0) == (pytest.approx(90), True)


def test_forecast_says_what_it_does_not_know(jobs: Jobs) -> None:
    (job,) = jobs("")
    assert Forecast(2, Counter(other=1)).left([running(job, 0.0, (0, 2), (1, 2))], 5.0) == (pytest.approx(5), False)
    assert Forecast(2).left([running(job, 0.0)], 5.0) == (0.0, False)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (299, "299 s"), (325, "5 min 25 s"), (7380, "2 h 03 min")])
def test_durations_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_line_tells_the_state_of_all_workers(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(sys, "stderr", heard)
    chosen = jobs("", "", "")
    with View(chosen, 2) as view:
        view.began(1, chosen[0])
        view.began(2, chosen[1])
        view.reported(2, Report("", 3, 4, "epoch 3/4"))
        assert view.line(time.monotonic()).startswith("0 of 3 jobs, ETA ")
        assert view.line(time.monotonic()).endswith(" | job 0 | job 1 3/4 epoch 3/4")
        view.ended(1, skipped=[chosen[2]])
        assert view.line(time.monotonic()).startswith("1 of 2 jobs, ETA ")
        view.refresh()
    assert heard.getvalue() == ""


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


def test_terminal_shows_a_line_for_each_busy_worker(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    chosen = jobs("", "", "")
    with View(chosen, 2) as view:
        view.began(1, chosen[0])
        view.began(2, chosen[1])
        view.reported(2, Report("", 3, 4, "epoch 3/4"))
        view.said("job 1: [brackets] stay")
        view.refresh()
        view.ended(1)
        view.refresh()
    shown = terminal.getvalue()
    for text in ("all", "job 0", "job 1", "3/4", "epoch 3/4", "0/3", "1/3", "ETA", "job 1: [brackets] stay"):
        assert text in shown
