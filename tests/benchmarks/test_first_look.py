"""The comparison of first looks with the standard verdicts."""

import torch

from benchmarks import first_look
from benchmarks.timing import Settings


def test_quick_run_compares_a_committed_checkpoint() -> None:
    (row,) = first_look.run(Settings(torch.device("cpu"), quick=True, repeats=1))
    assert row.case == "standard on digits, first 3 images" and row.target is None
    assert 0 <= row.value <= 100
    number = {name: int(value) for name, value in row.facts.items()}
    gained = number["only_standard_breaks"] - number["only_fast_breaks"]
    assert number["robust_in_fast"] == number["robust_in_standard"] + gained
