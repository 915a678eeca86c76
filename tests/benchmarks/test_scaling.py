"""Scaling rows cover data set, batch and shard, and the loop is left after as many steps as are timed."""

import pytest
import torch

from benchmarks import scaling, stepping, synthetic
from benchmarks.timing import Settings

CPU = Settings(torch.device("cpu"), quick=True, repeats=1)


def test_every_quantity_has_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_steps", lambda *_: [1.0, 2.0, 4.0])
    rows = list(scaling.run(CPU))
    cases = [row.case for row in rows]
    assert {row.measure for row in rows} == {"ms an image"}
    assert [sum(word in case for case in cases) for word in ("images", "batch", "shards")] == [4, 2, 2]
    assert rows[0].value == 2.0
    assert [row.facts["shards"] for row in rows if "shards" in row.case] == [2, 1]


def test_steps_are_timed_a_few_at_a_time() -> None:
    experiment = synthetic.training("standard", {"backbone": {"depth": 10, "widen": 1}}, batch_size=8)
    milliseconds = scaling._steps(experiment, synthetic.dataset(64, side=8), 2, CPU)
    assert len(milliseconds) == 2
    assert min(milliseconds) > 0


def test_a_training_is_left_behind_the_step_that_was_enough() -> None:
    steps: list[str] = []

    def behind() -> None:
        steps.append("step")
        if len(steps) == 4:
            raise stepping.Enough

    experiment = synthetic.training("standard", quick=True, batch_size=8)
    data = synthetic.dataset(64, side=8)
    stepping.train(experiment, data, CPU.device, behind, lambda: steps.append("before"))
    assert steps == ["before", "step", "step", "step"]
