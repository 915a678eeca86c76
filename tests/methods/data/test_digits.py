import numpy as np
import torch
from sklearn.datasets import load_digits

from methods.data import digits


def test_digits_are_bytes_of_the_originals() -> None:
    pool = digits.read()
    assert pool.train.images.dtype == torch.uint8
    assert pool.train.images.shape[1:] == (1, 8, 8)
    original, _ = load_digits(return_X_y=True)
    expected = sorted(np.rint(np.asarray(original) * 255 / 16).astype(np.uint8).tolist())
    assert sorted([*pool.train.images.flatten(1).tolist(), *pool.test.images.flatten(1).tolist()]) == expected
    assert int(pool.train.images.max()) == 255


def test_a_sixth_of_each_class_is_the_test_set() -> None:
    pool = digits.read()
    assert (len(pool.train), len(pool.test)) == (1497, 300)
    whole = pool.train.labels.bincount() + pool.test.labels.bincount()
    assert (pool.test.labels.bincount() - whole / 6).abs().max().item() < 1


def test_the_split_never_changes() -> None:
    assert digits.read().test.digest == "332dccf75945488157681a77b4f8bdce0d373ff13ee259efd49c0d839bf8dfe7"
