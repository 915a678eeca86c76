"""The race against RobustBench's way: both sides run, and their verdicts are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import evaluation
from benchmarks.timing import Settings
from methods.data import cifar_jpeg

QUICK = Settings(torch.device("cpu"), quick=True, repeats=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the archive of real images, wherever it may lie, and with one thread for tiny networks."""
    monkeypatch.delenv("BENCHMARK_DATA", raising=False)
    monkeypatch.setattr(cifar_jpeg, "__file__", str(tmp_path / "project" / "methods" / "data" / "cifar_jpeg.py"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("other_side")
def test_three_networks_have_two_rows_each_with_verdicts_compared() -> None:
    rows = list(evaluation.run(QUICK))
    assert len(rows) == 6
    assert [row.target for row in rows] == [2.0, 4.0, 2.0, 4.0, None, None]
    assert ["fast" in row.case for row in rows] == [False, True] * 3
    for row in rows:
        assert (row.benchmark, row.measure) == ("evaluation", "speed-up")
        assert {"baseline_seconds", "ours_seconds", "verdicts", "verdicts_that_differ"} <= set(row.facts)
        assert row.facts["verdicts"] == 3
        if "fast" not in row.case:
            assert row.facts["verdicts_that_differ"] == 0
    assert "tinted noise" in rows[0].case


def test_a_trained_network_is_kept_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_size", lambda settings: (10, 1))
    monkeypatch.setattr(evaluation, "_STEPS", 2)
    settings = Settings(torch.device("cpu"))
    images = evaluation._images(settings)
    made = evaluation._trained(images, settings, 1)
    assert len(list((tmp_path / "runs" / "benchmarks").iterdir())) == 1
    monkeypatch.setattr(evaluation, "_train", None)
    again = evaluation._trained(images, settings, 1)
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in made.model.state_dict().items())
