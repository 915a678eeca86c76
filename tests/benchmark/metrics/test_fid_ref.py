"""``fid_ref`` of digits that a real network draws, between its floor and its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.evaluation import runner
from benchmark.evaluation.parts import Part
from benchmark.evaluation.runner import evaluate
from benchmark.evaluation.selection import Selection
from benchmark.evaluation.shards import Shards
from benchmark.generation import fidelity
from benchmark.metrics import fid_ref, generation
from benchmark.models import reference
from benchmark.results.entry import Measurement
from benchmark.results.store import Store, key
from benchmark.specs.protocol import Protocol
from methods.data import Dataset, load
from methods.training.pictures import thumbnails

CPU = torch.device("cpu")
N = 120
Protocols = Callable[..., Protocol]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture
def measuring(protocol: Protocols) -> Protocols:
    """Make a protocol that generates digits with two short steps; its settings can be replaced."""

    def make(starts: tuple[str, ...] = ("class_gaussian", "uniform"), **settings: Any) -> Protocol:
        few = {"starts": starts, "steps": 2, "step_size": 0.01}
        return protocol(shard=50, metrics={"generation": few, "fid_ref": settings})

    return make


def measured(dataset: Dataset, protocol: Protocol, store: Store, **arguments: Any) -> Measurement:
    """Measure the reference network itself, which is to succeed."""
    subject = reference.reference("digits", CPU)
    arguments = {"metrics": ["fid_ref"], "limit": N, "progress": False} | arguments
    result = evaluate(subject, dataset, protocol, store=store, **arguments)["fid_ref"]
    assert result.error is None
    return result


def test_generated_images_start_and_floor_are_told_apart(digits: Dataset, measuring: Protocols, store: Store) -> None:
    informative, noise = (
        dict(measured(digits, measuring(source=source), store).values) for source in ("class_gaussian", "uniform")
    )
    extractor = fidelity.reference_network("digits", CPU)
    real = extractor(fidelity.reference_images(digits, "train").images)
    floor = fidelity.frechet(extractor(digits.test.images[:N]), real)
    assert informative["fid_ref_real"] == noise["fid_ref_real"] == pytest.approx(floor, rel=1e-4)
    assert 0 < floor < float(str(informative["fid_ref_start"])) < 5 < 30 < float(str(noise["fid_ref_start"]))
    assert informative["fid_ref"] != informative["fid_ref_start"]
    assert (informative["start"], informative["images_generated"], informative["images_reference"]) == (
        "class_gaussian",
        N,
        1497,
    )
    assert not {"fid", "inception_score"} & set(informative)


def test_starts_are_those_of_the_chains(digits: Dataset, measuring: Protocols, store: Store) -> None:
    subject, protocol = reference.reference("digits", CPU), measuring()
    data = Shards("fid_ref", subject, digits.test, digits.test.digest, protocol, N, store, dataset=digits)
    images = generation.images(data, "class_gaussian")
    stored = data.of("generation").map(lambda shard: pytest.fail("generated again"))
    begun = [images.untouched(shard) for shard in data]
    kept = [images(shard) for shard in data]
    assert np.allclose(
        torch.cat([thumbnails(x) for x in begun if x is not None]), stored["thumbnails_start_class_gaussian"]
    )
    assert torch.cat(kept).numpy().tolist() == stored["images_class_gaussian"].tolist()


def test_batch_size_and_workers_do_not_matter(digits: Dataset, measuring: Protocols, store: Store) -> None:
    whole = measured(digits, measuring(), store)
    other = measured(digits, measuring(), Store(store.root / "other"), batch_size=40)
    for name in ("fid_ref", "fid_ref_start", "fid_ref_real"):
        assert other.values[name] == pytest.approx(whole.values[name], rel=1e-4)
    parts = Store(store.root / "parts")
    todo = runner.prepare(
        reference.reference("digits", CPU), digits, measuring(), Selection(["fid_ref"], N), store=parts
    )
    for number, pieces in ((2, 1), (1, 2)):
        runner.measure_part(todo, Part(number, 2))
        assert len(list(parts.root.glob("features-*/shard-*.npz"))) == pieces
    assert runner.measure(todo, progress=False)["fid_ref"].values == whole.values


def test_doubts_are_flagged(digits: Dataset, measuring: Protocols, store: Store) -> None:
    flags = measured(digits, measuring(), store, limit=40).flags
    assert flags == [
        "Only 40 generated images: below 2048 distances are biased upwards, the more the fewer.",
        "40 generated images for 64 features: their covariance is singular.",
        "Only 1497 reference images: below 2048 distances are biased upwards, the more the fewer.",
    ]


def test_data_set_without_a_network_fails_in_one_sentence(toy: Any, measuring: Protocols, store: Store) -> None:
    result = evaluate(toy().subject(), toy().dataset, measuring(), store=store, progress=False)["fid_ref"]
    assert result.status == "failed"
    assert str(result.error).startswith("There is no reference network for toy ")


def test_key_covers_the_network(
    digits: Dataset, measuring: Protocols, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = reference.reference("digits", CPU)
    data = Shards("fid_ref", subject, digits.test, "digest", measuring(), 10, store, dataset=digits)
    before = key(data.identity)
    assert key(replace(data, dataset=replace(digits, validation=digits.test)).identity) != before
    assert key(replace(data, protocol=measuring(("pca",))).identity) != before
    save_file(load_file(reference.weights("digits")), tmp_path / "digits.safetensors")
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    assert key(data.identity) != before


def test_column_says_that_it_is_no_fid() -> None:
    assert list(fid_ref.COLUMNS) == ["fid_ref"]
    assert "no FID" in fid_ref.COLUMNS["fid_ref"].meaning
