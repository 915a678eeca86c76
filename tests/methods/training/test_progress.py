"""Progress that is reported to another process, and what is shown where there is none."""

from __future__ import annotations

import pytest

from methods.training import progress as shown
from methods.training.progress import Report, progress, reported_to


def test_reports_go_to_the_sink_and_not_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shown, "_REPORT_SECONDS", 0.0)
    heard: list[Report] = []
    with reported_to(heard.append), progress("train", 3, 1) as advance:
        advance(2, "epoch 1/2")
        advance(3)
    assert heard == [
        Report("train", 1, 3),
        Report("train", 2, 3, "epoch 1/2"),
        Report("train", 3, 3, "epoch 1/2"),
    ]
    assert capsys.readouterr().err == ""


def test_reports_are_few_but_the_last_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "_REPORT_SECONDS", 3600.0)
    heard: list[Report] = []
    with reported_to(heard.append), progress("train", 1000) as advance:
        for step in range(1, 1001):
            advance(step)
    assert [report.completed for report in heard] == [0, 1000]


def test_sink_is_gone_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Report] = []
    with reported_to(heard.append):
        pass
    with progress("train", 2) as advance:
        advance(2, "done")
    assert heard == []
    assert capsys.readouterr().err == "train: 2/2, ETA 0 s done\n"
