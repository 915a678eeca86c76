"""FID through torch-fidelity's own Inception, with weights that were made up and images of 6x6 pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric

from benchmark.evaluation.runner import evaluate
from benchmark.evaluation.shards import Shards
from benchmark.generation import fidelity
from benchmark.metrics import fid, generation
from benchmark.results.entry import Measurement
from benchmark.results.store import Store, key
from benchmark.specs.protocol import Protocol, load
from methods.data import ImageSet
from methods.errors import InputError
from methods.training.pictures import save_buffer

CPU = torch.device("cpu")
Protocols = Callable[..., Protocol]


class Shapes(FeatureExtractorInceptionV3):
    """Inception without weights."""

    def load_state_dict(self, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights that differ between output channels alone, so that it is small; BatchNorm does nothing."""
    path, empty = (tmp_path_factory.mktemp("inception") / name for name in ("weights.pth", "empty.pth"))
    torch.save({}, empty)
    with torch.device("meta"):
        shapes = Shapes("shapes", ["2048"], str(empty)).state_dict()
    stream, state = torch.Generator().manual_seed(0), {}
    for name, shape in ((name, value.shape) for name, value in shapes.items()):
        if len(shape) > 1:
            row = torch.randn(shape[0], generator=stream) / shape[1:].numel()
            state[name] = row.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        else:
            state[name] = torch.full(shape, float(name.endswith(("bn.weight", "running_var"))))
    torch.save(state, path)
    return path


@pytest.fixture
def inception(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take the made-up weights for Inception's."""
    monkeypatch.setenv(fidelity.PLACE, str(weights))
    monkeypatch.setattr(fidelity, "INCEPTION", hashlib.sha256(weights.read_bytes()).hexdigest())
    return weights


@pytest.fixture
def small(inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Inception see 75 pixels a side, and take its 192 features: 2,048 have eigenvalues that take 10 seconds."""
    layers = {"fid": "192", "isc": "logits_unbiased"}
    # Every weight comes from the file: drawing 24 million first takes half a second each time.
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **_: tensor)
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)
    monkeypatch.setattr(FeatureExtractorInceptionV3, "get_default_feature_layer_for_metric", staticmethod(layers.get))


@pytest.fixture
def measuring(protocol: Protocols) -> Protocols:
    """Make a protocol that generates with a few short steps and measures the FID; its settings can be replaced."""

    def make(starts: tuple[str, ...] = ("uniform",), **settings: Any) -> Protocol:
        few = {"starts": starts, "steps": 3, "step_size": 0.05}
        return protocol(metrics={"generation": few, "fid": {"source": "uniform"} | settings})

    return make


def measured(toy: Any, protocol: Protocol, store: Store, **arguments: Any) -> Measurement:
    """Measure the FID alone, which is to succeed."""
    made = toy(12)
    subject = arguments.pop("subject", made.subject())
    arguments = {"metrics": ["fid"], "progress": False} | arguments
    result = evaluate(subject, made.dataset, protocol, store=store, **arguments)["fid"]
    assert result.error is None
    return result


def test_extractor_is_torch_fidelity_s_at_its_full_size(inception: Path) -> None:
    extractor = fidelity.inception(CPU)
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = extractor(images.float() / 255, 1)
    direct = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(inception))
    features, logits = direct(images.expand(-1, 3, -1, -1))
    assert (features.shape, logits.shape) == ((2, 2048), (2, 1008))
    assert float((features[0] - features[1]).abs().max()) > 0
    torch.testing.assert_close(torch.from_numpy(found["features"]), features, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(found["logits"]), logits, rtol=1e-4, atol=1e-6)
    assert (extractor.name, extractor.digest) == ("inception-v3-compat", fidelity.INCEPTION)


def test_values_are_those_of_the_images_that_generation_keeps(
    toy: Any, measuring: Protocols, store: Store, small: None
) -> None:
    result = measured(toy, measuring(), store)
    made = toy(12)
    kept = evaluate(made.subject(), made.dataset, measuring(), metrics=["generation"], store=store, progress=False)
    samples = store.samples(kept["generation"])
    assert samples is not None
    images = torch.from_numpy(samples["images_uniform"]).expand(-1, 3, -1, -1)
    train = (torch.cat([made.dataset.train.images] * 2) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    layers = ["192", "logits_unbiased"]
    direct = FeatureExtractorInceptionV3("direct", layers, str(fidelity.inception_weights()))
    statistics = [fid_features_to_statistics(direct(shown)[0]) for shown in (images, train)]
    distance = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    values: dict[str, Any] = dict(result.values)
    assert distance > 0
    assert values["fid"] == pytest.approx(distance, rel=1e-3)
    score = isc_features_to_metric(direct(images)[1], splits=10)["inception_score_mean"]
    assert values["inception_score"] == pytest.approx(score, rel=1e-4)
    assert {name: values[name] for name in values if name not in ("reference_digest", "library")} == {
        **{name: values[name] for name in ("fid", "inception_score", "inception_score_std", "kid", "kid_std")},
        "extractor": "inception-v3-compat",
        "extractor_digest": fidelity.INCEPTION,
        "images_generated": 12,
        "images_reference": 24,
        "reference": "train",
        "rounding": "to the nearest of 256 levels",
        "resize": "bilinear to 299x299, as TensorFlow 1",
        "inception_score_splits": 10,
        "inception_score_shuffle_seed": 2020,
        "kid_subsets": 100,
        "kid_subset_size": 12,
        "start": "uniform",
        "energy": "joint",
        "mode": "eval",
        "steps": 3,
        "step_size": 0.05,
        "clip": 2.0,
        "noise": 0.0,
        "keep": 1.0,
        "batch_size": 10,
    }
    assert sum("below 2048" in flag for flag in result.flags) == 2
    assert sum("covariance is singular" in flag for flag in result.flags) == 2


def test_batch_size_and_interruption_do_not_matter(toy: Any, measuring: Protocols, store: Store, small: None) -> None:
    whole = measured(toy, measuring(), store)
    other = measured(toy, measuring(), Store(store.root / "other"), batch_size=7)
    for name in ("fid", "inception_score", "kid"):
        assert other.values[name] == pytest.approx(whole.values[name], rel=1e-4, abs=1e-7)
    (store.root / str(whole.samples)).unlink()
    shard = next(store.root.glob("fid-*/shard-0001-*.npz"))
    shard.unlink()
    assert measured(toy, measuring(), store).values == whole.values
    assert shard.is_file()


def test_confident_images_are_kept_class_by_class(toy: Any, measuring: Protocols, store: Store, small: None) -> None:
    result = measured(toy, measuring(keep=0.5, reference="test"), store)
    samples = store.samples(result)
    assert samples is not None
    for label in np.unique(samples["predicted"]):
        own = samples["predicted"] == label
        assert samples["kept"][own].sum() == own.sum() // 2
        best, rest = (samples["confidence"][own & chosen] for chosen in (samples["kept"], ~samples["kept"]))
        assert best.min(initial=1) >= rest.max(initial=0)
    values = result.values
    assert (values["keep"], values["images_generated"]) == (0.5, samples["kept"].sum())
    assert (values["reference"], values["images_reference"]) == ("test", 12)


def test_share_of_each_class_is_rounded_down_and_ties_go_to_the_first() -> None:
    predicted = np.array([0, 1, 0, 0, 1, 2])
    confidence = np.array([0.5, 0.9, 0.7, 0.5, 0.95, 0.4])
    assert fid.most_confident(predicted, confidence, 0.7).tolist() == [True, False, True, False, True, False]
    assert fid.most_confident(predicted, confidence, 1.0).all()


def test_images_of_the_buffer_are_taken_as_they_are(
    toy: Any, measuring: Protocols, store: Store, small: None, tmp_path: Path
) -> None:
    path = tmp_path / "buffer.safetensors"
    save_buffer(path, torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(0)))
    subject = replace(toy(12).subject(), buffer=path)
    values = measured(toy, measuring(source="buffer"), store, subject=subject).values
    assert values["start"] == "buffer"
    assert not {"steps", "step_size", "energy"} & set(values)


def test_start_that_the_protocol_lacks_is_told_in_one_sentence(
    toy: Any, measuring: Protocols, store: Store, small: None
) -> None:
    result = evaluate(toy(12).subject(), toy(12).dataset, measuring(source="pca"), store=store, progress=False)["fid"]
    said = "No images to measure. pca: the protocol has no such start, or the checkpoint no buffer."
    assert (result.status, result.error) == ("failed", said)


def without_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def download(*arguments: object, **settings: object) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.delenv(fidelity.PLACE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)


def test_missing_weights_fail_this_metric_alone(
    toy: Any, measuring: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_network(monkeypatch, tmp_path)
    results = evaluate(toy(12).subject(), toy(12).dataset, measuring(), store=store, progress=False)
    assert results["generation"].status == "done"
    assert (results["fid"].status, results["fid"].values) == ("failed", {})
    assert "place it at" in str(results["fid"].error)
    assert "\n" not in str(results["fid"].error)


def test_truncated_weights_are_not_unpickled(
    toy: Any, measuring: Protocols, store: Store, inception: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(inception.read_bytes()[:-100])
    monkeypatch.setenv(fidelity.PLACE, str(cut))
    result = evaluate(toy(12).subject(), toy(12).dataset, measuring(), store=store, progress=False)["fid"]
    assert str(result.error).startswith(f"{cut} is truncated or holds other weights than FID's: its SHA-256 is not ")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: {"protocol": data.protocol.model_copy(update={"metrics": {"generation": {}, "fid": {"keep": 1}}})},
        lambda data: {"dataset": replace(data.dataset, train=few())},
        lambda data: {"dataset": replace(data.dataset, validation=few())},
        lambda data: {"subject": replace(data.subject, metadata={"generation": {"mode": "train"}})},
        lambda data: {"digest": "another"},
    ],
)
def test_key_covers_what_decides(
    toy: Any, measuring: Protocols, store: Store, change: Callable[[Shards], dict[str, Any]]
) -> None:
    dataset = toy().dataset
    data = Shards("fid", toy().subject(), dataset.test, "digest", measuring(), 24, store, dataset=dataset)
    assert key(replace(data, **change(data)).identity) != key(data.identity)
    assert key(replace(data, n=3).identity) == key(data.identity)


@pytest.mark.parametrize("name", ["INCEPTION", "LIBRARY"])
def test_key_covers_extractor_and_library(
    toy: Any, measuring: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    dataset = toy().dataset
    data = Shards("fid", toy().subject(), dataset.test, "digest", measuring(), 24, store, dataset=dataset)
    before = key(data.identity)
    monkeypatch.setattr(fidelity, name, "another")
    assert key(data.identity) != before


def few() -> ImageSet:
    return ImageSet(torch.zeros(4, 1, 6, 6), torch.arange(4))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("source: noise", "\"source\" is 'noise'"),
        ("reference: validation", "\"reference\" is 'validation'"),
        ("keep: 0", '"keep" is 0'),
        ("keep: 1.5", '"keep" is 1.5'),
        ("kept: 1", 'Did you mean "keep"'),
    ],
)
def test_wrong_settings_are_told_in_one_sentence(tmp_path: Path, settings: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"id: mine\nthreat: Linf:8/255\nmetrics:\n  generation: {{}}\n  fid: {{{settings}}}\n")
    with pytest.raises(InputError) as caught:
        load(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_protocol_without_generation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("id: mine\nthreat: Linf:8/255\nmetrics:\n  fid: {}\n")
    with pytest.raises(InputError, match='the metric "fid" needs "generation" beside it'):
        load(path)


def test_images_of_a_lost_shard_are_not_made_up(toy: Any, measuring: Protocols, store: Store) -> None:
    dataset = toy(12).dataset
    data = Shards("fid", toy(12).subject(), dataset.test, "digest", measuring(), 12, store, dataset=dataset)
    images = generation.images(data, "uniform")
    shard = next(iter(data))
    first: Tensor = images(shard)
    assert (first.dtype, first.shape) == (torch.uint8, (10, 1, 6, 6))
    for path in store.root.glob("generation-*/shard-0000-*.npz"):
        path.unlink()
    with pytest.raises(RuntimeError, match="The store has lost the generated images of shard 0"):
        images(shard)
