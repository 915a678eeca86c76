import subprocess
import sys

import pytest
import torch

from methods.data import NAMES, load
from methods.errors import InputError


def test_digits_by_default() -> None:
    dataset = load("digits")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1397, 100, 300)
    assert dataset.validation.labels.bincount().tolist() == [10] * 10
    assert dataset.image_shape == (1, 8, 8)
    assert dataset.num_classes == 10
    assert dataset.digests == {
        "train": dataset.train.digest,
        "validation": dataset.validation.digest,
        "test": dataset.test.digest,
    }


def test_splits_are_disjoint_and_statistics_are_of_train_alone() -> None:
    whole, dataset = load("digits", validation=0), load("digits", validation=400)
    parts = torch.cat([dataset.train.images, dataset.validation.images])
    assert sorted(parts.flatten(1).tolist()) == sorted(whole.train.images.flatten(1).tolist())
    assert len(whole.validation) == 0
    assert dataset.test.digest == whole.test.digest
    assert dataset.mean == pytest.approx((dataset.train.unit().mean().item(),), rel=1e-5)
    assert dataset.std == pytest.approx((dataset.train.unit().std(correction=0).item(),), rel=1e-5)
    assert dataset.mean != whole.mean


def test_a_larger_validation_split_contains_the_smaller() -> None:
    small, large = load("digits", validation=20).validation, load("digits", validation=200).validation
    larger = {tuple(row) for row in large.images.flatten(1).tolist()}
    assert all(tuple(row) in larger for row in small.images.flatten(1).tolist())


@pytest.mark.parametrize("validation", [-1, 1497, 5000])
def test_impossible_validation(validation: int) -> None:
    with pytest.raises(InputError, match="between 0 and 1496"):
        load("digits", validation=validation)


def test_size_is_for_image_folders() -> None:
    assert load("digits", size=8).image_shape == (1, 8, 8)
    with pytest.raises(InputError, match="imagefolder:PATH only"):
        load("digits", size=16)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("digit", "digits"),
        ("cifar-10", "cifar10"),
        ("imagefolder", "imagefolder:PATH"),
        ("imagefolder:", "imagefolder:PATH"),
        ("imgfolder:/data/pets", "imagefolder:PATH"),
        ("npz", "npz:FILE"),
        ("digits:8", "digits"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=f'No data set is called "{name}".* Did you mean "{meant}"'):
        load(name)


def test_names_forgive_capitals() -> None:
    assert load("Digits").name == "digits"


def test_the_catalogue_needs_no_torch() -> None:
    code = "import sys, methods.data.catalogue; print('torch' in sys.modules, 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
    assert {"digits", "cifar10", "cifar100", "cifar10-jpeg", "imagefolder:PATH", "npz:FILE"} == NAMES.keys()


def test_loading_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    load("digits")
    assert torch.equal(before, torch.random.get_rng_state())
