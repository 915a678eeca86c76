"""Reference classifiers: right where their accuracy is claimed, and absent where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmark.generation import reference_classifier as module
from benchmark.generation.reference_classifier import identity, reference_classifier
from methods.data import Dataset, load
from methods.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The embedded digits."""
    return load("digits")


def test_classifier_of_digits_is_right_and_the_same_each_time(digits: Dataset) -> None:
    first, second = reference_classifier(digits, CPU), reference_classifier(digits, CPU)
    assert first.accuracy(digits.test) == second.accuracy(digits.test) > 98
    assert torch.equal(first.classify(digits.test.images), second.classify(digits.test.images))
    assert identity("digits") == "svc-1"


def test_classifier_of_cifar_classifies_or_says_that_its_file_is_missing(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar = replace(digits, name="cifar10-jpeg")
    digest = identity("cifar10-jpeg")
    if digest is not None:
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        assert reference_classifier(cifar, CPU).classify(images).shape == (2,)
        assert identity("cifar10") == digest
    monkeypatch.setattr(module, "_resnet_file", lambda: None)
    assert identity("cifar10-jpeg") is None
    with pytest.raises(InputError, match="lacks it"):
        reference_classifier(cifar, CPU)


def test_other_data_sets_have_none(digits: Dataset) -> None:
    assert identity("npz:mine.npz") is None
    with pytest.raises(InputError, match="no reference classifier"):
        reference_classifier(replace(digits, name="npz:mine.npz"), CPU)
