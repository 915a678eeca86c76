"""One worker against two: what is made of their seconds, and a grid that is as small as it can be."""

from __future__ import annotations

import pytest
import torch

from benchmark.engines import Engine
from benchmarks import workers
from benchmarks.timing import Settings

CPU = torch.device("cpu")


def test_efficiency_is_the_share_of_both_workers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'trilemma[cluster]'")
    asked: list[tuple[str, int, int]] = []

    def seconds(engine: Engine, runs: int, epochs: int) -> float:
        asked.append((engine.name, engine.workers, runs))
        return 90.0 / engine.workers + 5.0

    monkeypatch.setattr(workers, "seconds", seconds)
    rows = list(workers.run(Settings(CPU)))
    assert asked == [(name, count, workers.RUNS) for name in ("local", "ray") for count in (1, 2)]
    assert [row.case.partition(":")[0] for row in rows] == ["local", "ray"]
    for row in rows:
        assert (row.measure, row.target) == ("efficiency", workers.TARGET)
        assert row.value == pytest.approx(95 / (2 * 50))
    assert [row.target for row in workers.run(Settings(CPU, quick=True))] == [None, None]


def test_grid_is_trained_and_measured_by_two_workers() -> None:
    threads = torch.get_num_threads()
    assert workers.seconds(Engine(workers=2), 2, 1) > 0
    assert torch.get_num_threads() == threads


def test_a_shared_device_is_not_measured() -> None:
    assert list(workers.run(Settings(torch.device("cuda")))) == []
