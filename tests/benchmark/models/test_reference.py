"""The committed networks are what the documented commands make, and they know their data."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch

from benchmark.models import reference
from benchmark.specs import recipes
from methods.data import load
from methods.data.images import unit
from methods.errors import InputError
from methods.training.checkpoint import load_checkpoint
from methods.training.config import experiment

CPU = torch.device("cpu")
CIFAR = (
    "backbone.depth=16",
    "backbone.widen=1",
    "train.epochs=5",
    "train.warmup_steps=400",
    "train.validate_every=5",
)


@pytest.mark.parametrize(("name", "overrides", "accuracy"), [("digits", (), 98), ("cifar10-jpeg", CIFAR, 70)])
def test_weights_are_a_run_of_the_recipe_as_documented(name: str, overrides: tuple[str, ...], accuracy: int) -> None:
    path = reference.weights(name)
    assert path.stat().st_size <= 1_000_000
    manifest: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    settings = recipes.settings("reference", name, seed=0, changes=recipes.changes(None, overrides))
    digest = experiment(settings).digest(manifest["data_digests"])
    assert load_checkpoint(path).metadata["digest"] == manifest["digest"] == digest
    assert manifest["status"] == "finished"
    assert manifest["best"]["validation"]["clean"] >= accuracy
    documented = str(reference.__doc__)
    assert all(f"--set {override}" in documented for override in overrides)


def test_digits_are_known_and_are_those_of_the_training() -> None:
    dataset, network = load("digits"), reference.reference("digits", CPU)
    manifest = json.loads(reference.weights("digits").with_suffix(".json").read_text())
    assert manifest["data_digests"] == dict(dataset.digests)
    with torch.no_grad():
        predicted = network.logits(dataset.test.unit()).argmax(1)
    assert (predicted == dataset.test.labels).float().mean() == pytest.approx(0.99, abs=0.01)
    assert not network.model.training


def test_features_are_what_the_head_reads() -> None:
    images = torch.randint(0, 256, (130, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = reference.reference("digits", CPU)
    features = reference.features(network, images)
    assert (features.shape, features.dtype, features.requires_grad) == ((130, 64), torch.float32, False)
    head: Any = network.model.network.head  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        torch.testing.assert_close(head(features), network.logits(unit(images)), rtol=1e-5, atol=1e-4)


def test_cifar_10_has_the_network_of_its_jpeg_edition() -> None:
    network = reference.reference("cifar10", CPU)
    assert (network.image_shape, network.num_classes) == ((3, 32, 32), 10)
    assert reference.identity("cifar10") == reference.identity("cifar10-jpeg") != reference.identity("digits")


def test_identity_is_the_file_s_digest() -> None:
    assert reference.identity("digits") == hashlib.sha256(reference.weights("digits").read_bytes()).hexdigest()
    assert reference.identity("cifar100") is None


def test_data_set_without_a_network_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError) as caught:
        reference.reference("npz:mine.npz", CPU)
    said = "There is no reference network for npz:mine.npz (there is one for digits, cifar10, cifar10-jpeg)."
    assert str(caught.value) == said
