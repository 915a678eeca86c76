import hashlib

import pytest
import torch

from methods.data.splits import hold_out, interleaved


def test_hold_out_partitions_and_is_stratified() -> None:
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[shuffled]
    kept, held = hold_out(labels, 10)
    assert sorted(kept.tolist() + held.tolist()) == list(range(100))
    assert kept.tolist() == sorted(kept.tolist())
    assert labels[held].bincount().tolist() == [5, 3, 2]


def test_hold_out_takes_the_smallest_hashes_of_each_class() -> None:
    labels = torch.tensor([0, 1] * 10)
    _, held = hold_out(labels, 6)

    def rank(position: int) -> str:
        return hashlib.sha256(f"trilemma-split {position}".encode()).hexdigest()

    evens, odds = sorted(range(0, 20, 2), key=rank), sorted(range(1, 20, 2), key=rank)
    assert set(held.tolist()) == {*evens[:3], *odds[:3]}


def test_hold_out_never_changes() -> None:
    _, held = hold_out(torch.zeros(30, dtype=torch.int64), 5)
    assert held.tolist() == [4, 5, 11, 19, 24]


def test_hold_out_does_not_touch_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    hold_out(torch.zeros(30, dtype=torch.int64), 5)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6])
def test_largest_remainder_gives_the_exact_number(count: int) -> None:
    kept, held = hold_out(torch.tensor([0, 0, 0, 1, 1, 1, 2]), count)
    assert (len(kept), len(held)) == (7 - count, count)


def test_ties_go_to_the_lower_label() -> None:
    labels = torch.tensor([2, 1, 0, 2, 1, 0])
    _, held = hold_out(labels, 2)
    assert sorted(labels[held].tolist()) == [0, 1]


def test_interleaved_is_balanced_from_the_front() -> None:
    order = interleaved([["a0", "a1", "a2"], ["b0"], ["c0", "c1"]])
    assert order == [("a0", 0), ("b0", 1), ("c0", 2), ("a1", 0), ("c1", 2), ("a2", 0)]
    assert interleaved([]) == []
