"""torch-fidelity through the adapter: known small-sample values, closed forms, and what must not matter."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset as Listed

from benchmark.evaluation.parts import Part, PartDone
from benchmark.generation import fidelity
from benchmark.generation.fidelity import Extractor
from benchmark.results.store import Arrays, Store
from methods.data import Dataset, load
from methods.errors import InputError
from methods.training import pictures

CPU = torch.device("cpu")
HALVES, SPREAD = 0.332, 0.103
"""Distance of two disjoint halves of the training digits, 748 and 749 images: mean and deviation of ten, as first
measured."""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return fidelity.reference_network("digits", CPU)


@pytest.fixture(scope="module")
def real(digits: Dataset, extractor: Extractor) -> Arrays:
    """What the network makes of all 1,497 training digits."""
    return extractor(fidelity.reference_images(digits, "train").images)


def some(arrays: Arrays, index: Any) -> Arrays:
    return {name: array[index] for name, array in arrays.items()}


def made(features: Tensor | None = None, logits: Tensor | None = None) -> Arrays:
    """Return features and logits as an extractor gives them; what is not asked about is random."""
    n = len(features if features is not None else logits if logits is not None else ())
    stream = torch.Generator().manual_seed(5)
    given = torch.randn(n, 3, generator=stream) if features is None else features
    seen = torch.randn(n, 3, generator=stream) if logits is None else logits
    return {"features": given.float().numpy(), "logits": seen.float().numpy()}


def halves(real: Arrays, seed: int = 0) -> tuple[Arrays, Arrays]:
    order = np.random.default_rng(seed).permutation(len(real["features"]))
    return some(real, order[:748]), some(real, order[748:])


def test_real_images_are_at_no_distance_from_themselves(real: Arrays) -> None:
    assert fidelity.frechet(real, real) == pytest.approx(0, abs=1e-4)


def test_halves_of_the_training_images_have_the_known_small_sample_value(real: Arrays) -> None:
    values = [fidelity.frechet(*halves(real, seed)) for seed in range(10)]
    assert np.mean(values) == pytest.approx(HALVES, rel=0.01)
    assert np.std(values) == pytest.approx(SPREAD, rel=0.05)


def test_bias_shrinks_as_images_are_added(real: Arrays) -> None:
    pairs = [halves(real, seed) for seed in range(10)]
    values = [np.mean([fidelity.frechet(some(a, slice(n)), b) for a, b in pairs]) for n in (50, 100, 200, 400, 748)]
    # 2.99, 1.39, 0.77, 0.39, 0.33
    assert values == sorted(values, reverse=True)
    assert values[0] > 8 * values[-1]


def test_distance_of_moved_and_of_stretched_features() -> None:
    features = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    features -= features.mean(0)
    moved, stretched = features + torch.tensor([3.0, 0, 0, 4]), 3 * features
    trace = features.double().T.cov().trace().item()
    assert fidelity.frechet(made(moved), made(features)) == pytest.approx(25, rel=1e-4)
    # tr(C + 9 C - 2 (9 C C)^(1/2)) = 4 tr C.
    assert fidelity.frechet(made(stretched), made(features)) == pytest.approx(4 * trace, rel=1e-4)


def test_distance_is_that_of_the_thumbnails_formula(real: Arrays) -> None:
    first, second = halves(real)
    own = pictures.frechet(torch.from_numpy(first["features"]), torch.from_numpy(second["features"]))
    # Population covariances there, sample covariances here.
    assert fidelity.frechet(first, second) == pytest.approx(own, rel=0.01)


class Images(Listed):
    """Images as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_values_are_those_of_torch_fidelity_s_own_front_door(digits: Dataset, extractor: Extractor) -> None:
    reference = fidelity.reference_images(digits, "train")
    found = fidelity.compare(extractor, extractor(digits.test.images), reference, extractor(reference.images))
    direct = torch_fidelity.calculate_metrics(
        input1=Images(digits.test.images),
        input2=Images(reference.images),
        feature_extractor=extractor.name,
        feature_extractor_weights_path=str(fidelity.networks.weights("digits")),
        kid_subset_size=300,
        isc=True,
        fid=True,
        kid=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert found.fid == pytest.approx(direct["frechet_inception_distance"], rel=1e-4)
    assert found.inception_score == pytest.approx(direct["inception_score_mean"], rel=1e-4)
    assert found.inception_score_std == pytest.approx(direct["inception_score_std"], rel=1e-3)
    assert found.kid == pytest.approx(direct["kernel_inception_distance_mean"], rel=1e-3)
    assert found.kid_std == pytest.approx(direct["kernel_inception_distance_std"], rel=1e-3)


def test_bytes_and_floats_are_the_same_images(digits: Dataset, extractor: Extractor) -> None:
    images = digits.test.images[:50]
    for floats in (digits.test.unit(slice(0, 50)), (images.double() + 0.4) / 255, (images.float() - 0.4) / 255):
        assert torch.equal(fidelity.levels(floats), pictures.rounded(floats))
        assert extractor(floats)["features"].tolist() == extractor(images)["features"].tolist()


def test_batch_size_does_not_matter(digits: Dataset, extractor: Extractor, real: Arrays) -> None:
    images = digits.test.images
    whole, *others = (fidelity.frechet(extractor(images, size), real) for size in (300, 100, 7, 1))
    assert others == pytest.approx([whole] * 3, rel=1e-4)


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.int64)])
def test_other_images_are_refused_in_one_sentence(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"Images are uint8, or float in \[0, 1\], \[N,C,H,W\], not torch"):
        fidelity.levels(images)


def compared(extractor: Extractor, generated: Arrays, n: int = 20) -> fidelity.Fidelity:
    reference = fidelity.Reference("test", torch.zeros(n, 1, 8, 8, dtype=torch.uint8), "d" * 64)
    return fidelity.compare(extractor, generated, reference, made(torch.randn(n, 3)))


@pytest.mark.parametrize(("n", "splits"), [(2, 1), (3, 1), (9, 1), (10, 10), (11, 10), (25, 10)])
def test_inception_score_of_few_images_is_a_number(extractor: Extractor, n: int, splits: int) -> None:
    found = compared(extractor, made(logits=torch.randn(n, 5)))
    assert found.inception_score is not None
    assert 1 - 1e-9 <= found.inception_score <= 5
    assert math.isfinite(found.inception_score_std or 0)
    assert found.passport["inception_score_splits"] == splits
    assert any("over 1 split" in flag for flag in found.flags) == (splits == 1)


def test_inception_score_of_certain_classes_is_their_number(extractor: Extractor) -> None:
    assert compared(extractor, made(logits=30 * torch.eye(6))).inception_score == pytest.approx(6)
    assert compared(extractor, made(logits=torch.ones(6, 4))).inception_score == pytest.approx(1)


def test_inception_score_that_is_not_finite_is_none_and_flagged(extractor: Extractor) -> None:
    # One class has probability 0 in every image of the split, and 0 times log 0 is NaN.
    found = compared(extractor, made(logits=torch.tensor([[1e4, 0.0]]).expand(4, 2)))
    assert (found.inception_score, found.inception_score_std) == (None, None)
    assert "The Inception Score is not finite." in found.flags


def test_subsets_of_kid_are_no_larger_than_the_sets(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "_SUBSET", 25)  # the usual 1,000 take seconds
    for generated, real, size in ((30, 20, 20), (5, 20, 5), (30, 40, 25)):
        found = compared(extractor, made(torch.randn(generated, 3)), real)
        assert (found.passport["kid_subset_size"], found.passport["kid_subsets"]) == (size, 100)
        assert math.isfinite(found.kid)


@pytest.mark.parametrize("n", [0, 1])
def test_one_image_has_no_covariance(extractor: Extractor, n: int) -> None:
    with pytest.raises(InputError, match=f"needs at least 2 images of either kind, not {n}"):
        compared(extractor, made(torch.randn(n, 3)))


def test_few_images_are_doubted() -> None:
    enough, few, fewer = (made(torch.randn(n, 4)) for n in (2048, 2047, 4))
    assert fidelity.doubts(enough, enough) == []
    assert fidelity.doubts(few, enough) == [
        "Only 2047 generated images: below 2048 distances are biased upwards, the more the fewer."
    ]
    assert fidelity.doubts(enough, fewer) == [
        "Only 4 reference images: below 2048 distances are biased upwards, the more the fewer.",
        "4 reference images for 4 features: their covariance is singular.",
    ]


def test_passport_says_what_a_number_depends_on(digits: Dataset, extractor: Extractor) -> None:
    reference = fidelity.reference_images(digits, "test")
    seen = extractor(reference.images)
    assert fidelity.compare(extractor, some(seen, slice(40)), reference, seen).passport == {
        "extractor": "trilemma-reference",
        "extractor_digest": fidelity.networks.identity("digits"),
        "images_generated": 40,
        "images_reference": 300,
        "reference": "test",
        "reference_digest": reference.digest,
        "rounding": "to the nearest of 256 levels",
        "resize": "none",
        "library": f"torch-fidelity {torch_fidelity.__version__}",
        "inception_score_splits": 10,
        "inception_score_shuffle_seed": 2020,
        "kid_subsets": 100,
        "kid_subset_size": 40,
    }


def test_reference_does_not_depend_on_what_was_held_out(digits: Dataset) -> None:
    train = fidelity.reference_images(digits, "train")
    other = fidelity.reference_images(load("digits", validation=300), "train")
    assert len(train.images) == 1497
    assert torch.equal(train.images, other.images)
    assert train.digest == other.digest != fidelity.reference_images(digits, "test").digest
    pixels = digits.train.images.clone()
    pixels[0, 0, 0, 0] += 1
    changed = replace(digits, train=replace(digits.train, images=pixels))
    assert fidelity.reference_images(changed, "train").digest != train.digest


class Counting:
    """An extractor that counts the images it sees."""

    def __init__(self, inner: Extractor) -> None:
        self.digest, self.seen, self.inner = inner.digest, 0, inner

    def __call__(self, images: Tensor, batch_size: int) -> Arrays:
        self.seen += len(images)
        return self.inner(images, batch_size)


def test_features_of_the_reference_are_computed_once(
    digits: Dataset, extractor: Extractor, real: Arrays, store: Store
) -> None:
    reference, counting = fidelity.reference_images(digits, "train"), Counting(extractor)
    get: Callable[..., Arrays] = fidelity.reference_features
    first, again = (get(counting, reference, store, 100) for _ in range(2))
    assert counting.seen == 1497
    assert first["features"].tolist() == again["features"].tolist()
    assert np.allclose(first["features"], real["features"], atol=1e-5)
    for reference_, digest in ((replace(reference, digest="0" * 64), None), (reference, "1" * 64)):
        counting.seen, counting.digest = 0, digest or extractor.digest
        get(counting, reference_, store, 100)
        assert counting.seen == 1497


def test_each_worker_computes_its_pieces_of_the_reference(digits: Dataset, extractor: Extractor, store: Store) -> None:
    reference, counting = fidelity.reference_images(digits, "train"), Counting(extractor)
    get: Callable[..., Arrays] = fidelity.reference_features
    for number, seen in ((1, 1000), (2, 1497)):
        with pytest.raises(PartDone):
            get(counting, reference, store, 100, Part(number, 2))
        assert counting.seen == seen
    assert len(get(counting, reference, store, 100)["logits"]) == counting.seen == 1497


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torch.hub without weights, on a machine without a network; the folder where it keeps weights."""

    def download(*arguments: object, **settings: object) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.delenv(fidelity.PLACE, raising=False)
    return tmp_path / "hub" / "checkpoints"


def refusal() -> str:
    with pytest.raises(InputError) as caught:
        fidelity.inception_weights()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_weights_are_named_with_their_place(hub: Path) -> None:
    assert refusal() == (
        "FID needs weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release page, which cannot be had "
        "(<urlopen error [Errno -2] Name or service not known>): place it at "
        f"{hub}/weights-inception-2015-12-05-6726825d.pth, or name another place in $BENCHMARK_INCEPTION."
    )


def test_named_weights_that_are_missing_are_not_downloaded(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fidelity.PLACE, str(tmp_path / "mine.pth"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    assert f"$BENCHMARK_INCEPTION names a file that is not there): place it at {tmp_path / 'mine.pth'}" in refusal()


@pytest.mark.parametrize("name", ["weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"])
def test_weights_are_found_under_either_name_and_known_by_their_bytes(
    hub: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub.mkdir(parents=True)
    (hub / name).write_bytes(b"weights")
    assert refusal().startswith(f"{hub / name} is truncated or holds other weights than FID's: its SHA-256 is not ")
    monkeypatch.setattr(fidelity, "INCEPTION", hashlib.sha256(b"weights").hexdigest())
    assert fidelity.inception_weights() == hub / name


def test_weights_are_downloaded_with_their_digest(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, path: str, digest: str, progress: bool) -> None:
        assert (url.rpartition("/")[2], digest, progress) == (Path(path).name, fidelity.INCEPTION, False)
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(fidelity, "INCEPTION", hashlib.sha256(b"weights").hexdigest())
    assert fidelity.inception_weights() == hub / "weights-inception-2015-12-05-6726825d.pth"
