"""One worker against two, on a grid that is as small as it can be."""

import pytest
import torch

from benchmarks import workers
from benchmarks.timing import Settings


def test_quick_measures_both_engines() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'trilemma[cluster]'")
    threads = torch.get_num_threads()
    rows = list(workers.run(Settings(torch.device("cpu"), quick=True, repeats=1)))
    assert [row.case.partition(":")[0] for row in rows] == ["local", "ray"]
    for row in rows:
        assert (row.measure, row.target) == ("efficiency", None)
        facts = row.facts
        assert isinstance(facts["one_worker_seconds"], float)
        assert isinstance(facts["two_workers_seconds"], float)
        assert row.value == pytest.approx(facts["one_worker_seconds"] / (2 * facts["two_workers_seconds"]))
    assert torch.get_num_threads() == threads


def test_a_shared_device_is_not_measured() -> None:
    assert list(workers.run(Settings(torch.device("cuda")))) == []
