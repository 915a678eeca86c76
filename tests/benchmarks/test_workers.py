"""One worker against two: what is made of their seconds, and a grid that is as small as it can be."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from benchmark.engines import Engine
from benchmarks import workers
from benchmarks.timing import Settings

CPU = torch.device("cpu")


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'trilemma[cluster]'")
def test_efficiency_is_the_share_of_both_workers_time(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("crew", ["in_process", pytest.param("processes", marks=pytest.mark.slow)])
def test_grid_is_trained_and_measured_by_two_workers(
    crew: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if crew == "in_process":
        request.getfixturevalue(crew)
        small, plan = ["backbone.widen=1", "train.batch_size=256"], workers.Plan

        def planned(*arguments: Any, overrides: list[str], **settings: Any) -> object:
            return plan(*arguments, overrides=[*overrides, *small], **settings)

        monkeypatch.setattr(workers, "Plan", planned)
    threads = torch.get_num_threads()
    assert workers.seconds(Engine(workers=2), 2, 1) > 0
    assert torch.get_num_threads() == threads


def test_a_shared_device_is_not_measured() -> None:
    assert list(workers.run(Settings(torch.device("cuda")))) == []
