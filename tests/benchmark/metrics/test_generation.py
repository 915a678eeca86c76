"""Generation by linear classifiers, whose chains move along straight lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.evaluation.runner import evaluate
from benchmark.evaluation.shards import Shards
from benchmark.generation import reference_classifier
from benchmark.generation.reference_classifier import ReferenceClassifier
from benchmark.metrics import generation
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, Store, key
from benchmark.specs.protocol import Protocol, load
from methods.data import Dataset, ImageSet
from methods.errors import InputError
from methods.primitives.energy import joint_energy, marginal_energy
from methods.primitives.random import generator
from methods.primitives.starts import start
from methods.training.pictures import load_buffer, rounded, save_buffer

Protocols = Callable[..., Protocol]
STEPS, STEP_SIZE, CLIP = 4, 0.05, 1.5


@pytest.fixture
def generating(protocol: Protocols) -> Protocols:
    """Make a protocol that generates from noise with a few short steps; settings can be replaced."""

    def make(**settings: Any) -> Protocol:
        few = {"starts": ["uniform"], "steps": STEPS, "step_size": STEP_SIZE, "clip": CLIP}
        return protocol(metrics={"generation": few | settings})

    return make


def measured(
    subject: Subject, dataset: Dataset, protocol: Protocol, store: Store, **arguments: Any
) -> tuple[Measurement, Arrays]:
    """Measure generation alone, which is to succeed."""
    result = evaluate(subject, dataset, protocol, store=store, progress=False, **arguments)["generation"]
    assert result.error is None
    samples = store.samples(result)
    assert samples is not None
    return result, samples


def starts_of(dataset: Dataset, name: str = "uniform") -> Tensor:
    """Return the starts of all test images, shard by shard of ten."""
    fitted = start(name, dataset.train.images, dataset.train.labels, dataset.num_classes)
    labels = dataset.test.labels.split(10)
    return torch.cat([fitted.sample(y, generator(0, "generation", name, i)) for i, y in enumerate(labels)])


@pytest.fixture
def classified(monkeypatch: pytest.MonkeyPatch, toy: Any) -> None:
    """Let the toy's own weights be the reference classifier."""
    weight = toy().weight

    def classify(images: Tensor) -> Tensor:
        return ((images.float() / 255 - 0.5).flatten(1) @ weight).argmax(1)

    monkeypatch.setattr(
        reference_classifier,
        "reference_classifier",
        lambda dataset, device: ReferenceClassifier("the toy itself", classify),
    )
    monkeypatch.setattr(reference_classifier, "identity", lambda dataset: "toy")


@pytest.mark.parametrize("source", ["class_gaussian", "uniform", "pca"])
def test_chains_go_where_the_weights_of_the_wanted_class_point(
    toy: Any, generating: Protocols, store: Store, source: str
) -> None:
    made = toy()
    _, samples = measured(made.subject(), made.dataset, generating(starts=[source]), store)
    y = made.dataset.test.labels
    begin = starts_of(made.dataset, source)
    # -grad E(x, y) = w_y everywhere, so that clamping after each step is clamping once.
    along = made.weight[:, y].T.clamp(-CLIP, CLIP).view_as(begin)
    end = rounded((begin + STEPS * STEP_SIZE * along).clamp(0, 1))
    assert samples[f"images_{source}"].dtype == np.uint8
    assert int((torch.from_numpy(samples[f"images_{source}"]).int() - end.int()).abs().max()) <= 1
    assert samples["wanted"].tolist() == y.tolist()
    for images, name in ((end, f"energy_{source}"), (rounded(begin), f"energy_start_{source}")):
        energies = -((images.float() / 255 - 0.5).flatten(1) * made.weight[:, y].T).sum(1)
        assert np.allclose(samples[name], energies, atol=0.05)
    assert (samples[f"energy_{source}"] < samples[f"energy_start_{source}"]).all()


OWN = {"steps": 9, "step_size": 0.01, "clip": None, "noise": 0.0, "clamp": True, "inner_steps": 2}


def test_density_is_sampled_by_its_own_chains_unless_the_protocol_insists(
    toy: Any, generating: Protocols, store: Store
) -> None:
    made = toy()
    density = replace(made.subject(), metadata={"generation": {"sampler": OWN}})
    own, samples = measured(density, made.dataset, generating(), store)
    assert [own.values[name] for name in ("steps", "step_size", "clip", "noise")] == [STEPS, 0.02, None, 0.0]
    begin = starts_of(made.dataset)
    along = made.weight[:, made.dataset.test.labels].T.view_as(begin)
    end = rounded((begin + STEPS * 0.02 * along).clamp(0, 1))
    assert int((torch.from_numpy(samples["images_uniform"]).int() - end.int()).abs().max()) <= 1
    same, _ = measured(density, made.dataset, generating(sampler="protocol"), store)
    assert [same.values[name] for name in ("steps", "step_size", "clip")] == [STEPS, STEP_SIZE, CLIP]


def test_long_chains_end_in_the_corner_of_the_wanted_class(
    toy: Any, generating: Protocols, store: Store, classified: None
) -> None:
    made = toy()
    result, samples = measured(made.subject(), made.dataset, generating(steps=40, step_size=1000.0), store)
    corners = 255 * (made.weight[:, made.dataset.test.labels].T > 0)
    assert samples["images_uniform"].reshape(24, -1).tolist() == corners.tolist()
    values: dict[str, Any] = dict(result.values)
    assert values["uniform_saturated"] == 1
    assert values["uniform_agreement"] == 100
    begin = rounded(starts_of(made.dataset)).float() / 255
    share = ((begin - 0.5).flatten(1) @ made.weight).argmax(1) == made.dataset.test.labels
    assert 0 < share.float().mean() < 0.9
    assert values["uniform_agreement_start"] == pytest.approx(100 * share.float().mean().item())
    real = joint_energy(made.model()(made.dataset.test.unit()), made.dataset.test.labels).mean().item()
    assert values["energy_real"] == pytest.approx(real, rel=1e-5)
    assert values["uniform_energy"] < real < values["uniform_energy_start"]
    assert (values["judge"], values["judge_accuracy"]) == ("the toy itself", pytest.approx(100 * 22 / 24))
    assert (values["energy"], values["mode"], result.flags) == ("joint", "eval", [])


def test_starts_are_compared_with_training_images_and_not_kept(toy: Any, generating: Protocols, store: Store) -> None:
    result, samples = measured(toy().subject(), toy().dataset, generating(starts=["class_gaussian", "uniform"]), store)
    values: dict[str, Any] = dict(result.values)
    informative, noise = (values[f"{name}_frechet_thumbnails_start"] for name in ("class_gaussian", "uniform"))
    assert 0 < informative < noise
    wanted = {"index", "wanted", "energy_real"}
    for name in ("class_gaussian", "uniform"):
        wanted |= {f"images_{name}", f"energy_{name}", f"energy_start_{name}"}
    assert set(samples) == wanted


def test_without_a_reference_classifier_agreement_is_not_measured(
    toy: Any, generating: Protocols, store: Store
) -> None:
    result, _ = measured(toy().subject(), toy().dataset, generating(), store)
    for name in ("uniform_agreement", "uniform_agreement_start", "judge", "judge_accuracy"):
        assert result.values[name] is None
    assert result.flags == ["There is no reference classifier for this data set."]


def test_doubtful_reference_classifier_is_flagged(
    toy: Any, generating: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = ReferenceClassifier("constant", lambda images: torch.zeros(len(images), dtype=torch.int64))
    monkeypatch.setattr(reference_classifier, "reference_classifier", lambda dataset, device: constant)
    flags = measured(toy().subject(), toy().dataset, generating(), store)[0].flags
    assert len(flags) == 1
    assert flags[0].startswith("The reference classifier is right on ")


def test_marginal_energy_leads_all_classes_one_way(toy: Any, generating: Protocols, store: Store) -> None:
    made = toy()
    result, samples = measured(made.subject(), made.dataset, generating(energy="marginal"), store)
    energies = marginal_energy(made.model()(torch.from_numpy(samples["images_uniform"]).float() / 255))
    assert np.allclose(samples["energy_uniform"], energies.detach(), atol=1e-4)
    assert (samples["energy_uniform"] < samples["energy_start_uniform"]).all()
    assert result.values["energy"] == "marginal"
    assert any("knows no class" in flag for flag in result.flags)


def test_checkpoint_with_a_scalar_head_descends_it(toy: Any, generating: Protocols, store: Store) -> None:
    class Headed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

        def scalar_energy(self, x: Tensor) -> Tensor:
            return -x.flatten(1).sum(1)

    made = toy()
    subject = replace(made.subject(Headed(made.model())), metadata={"generation": {"energy": "scalar"}})
    result, samples = measured(subject, made.dataset, generating(steps=100), store)
    assert (samples["images_uniform"] == 255).all()
    assert (result.values["energy"], result.values["uniform_energy"]) == ("scalar", -36)


@pytest.fixture
def normed(toy: Any) -> Callable[..., Subject]:
    """Make a linear classifier behind BatchNorm whose running statistics are far from those of any batch."""

    def make(**metadata: Any) -> Subject:
        norm = nn.BatchNorm2d(1)
        norm.running_mean = torch.tensor([0.3])
        return replace(toy().subject(nn.Sequential(norm, toy().model()).eval()), metadata=metadata)

    return make


@pytest.mark.parametrize(
    ("metadata", "settings", "mode"),
    [
        ({}, {}, "eval"),
        ({"generation": {"mode": "train"}}, {}, "train"),
        ({"generation": {"mode": "train"}}, {"mode": "eval"}, "eval"),
        ({}, {"mode": "train"}, "train"),
    ],
)
def test_batchnorm_is_in_the_checkpoints_own_mode_and_ends_as_it_began(
    normed: Any,
    toy: Any,
    generating: Protocols,
    store: Store,
    metadata: dict[str, Any],
    settings: dict[str, Any],
    mode: str,
) -> None:
    subject = normed(**metadata)
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    result, samples = measured(subject, toy().dataset, generating(**settings), store)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert not any(module.training for module in subject.model.modules())
    assert result.values["mode"] == mode
    assert any("batch statistics" in flag for flag in result.flags) == (mode == "train")
    first = torch.from_numpy(samples["images_uniform"][:10]).float() / 255
    model = normed().model.train(mode == "train")
    energies = joint_energy(model(first), toy().dataset.test.labels[:10])
    assert np.allclose(samples["energy_uniform"][:10], energies.detach(), atol=1e-4)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_size_and_limit_change_no_image(
    normed: Any, toy: Any, generating: Protocols, store: Store, mode: str
) -> None:
    protocol = generating(mode=mode, noise=0.01)
    _, whole = measured(normed(), toy().dataset, protocol, store)
    for name, arguments in (("split", {"batch_size": 3}), ("limit", {"limit": 10})):
        _, other = measured(normed(), toy().dataset, protocol, Store(store.root / name), **arguments)
        images = other["images_uniform"].astype(int)
        assert np.abs(images - whole["images_uniform"][: len(images)]).max() <= 1


def test_interrupted_generation_goes_on_to_the_same_images(toy: Any, generating: Protocols, store: Store) -> None:
    class Mortal(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            if self.inner.forwards == 12:
                raise KeyboardInterrupt
            return self.inner(x)

    mortal = toy().subject(Mortal(toy().model()))
    whole_subject = replace(toy().subject(), digest=mortal.digest)
    with pytest.raises(KeyboardInterrupt):
        evaluate(mortal, toy().dataset, generating(), store=store, progress=False)
    assert len(list(store.root.rglob("shard-*.npz"))) == 1
    result, resumed = measured(whole_subject, toy().dataset, generating(), store)
    again, whole = measured(whole_subject, toy().dataset, generating(), Store(store.root / "whole"))
    assert {name: array.tolist() for name, array in resumed.items()} == {
        name: array.tolist() for name, array in whole.items()
    }
    assert result.values == again.values


def lonely(dataset: Dataset) -> Dataset:
    """Leave one training image of the first class."""
    first = (dataset.train.labels == 0).nonzero().squeeze(1)
    keep = torch.ones(len(dataset.train), dtype=torch.bool)
    keep[first[1:]] = False
    return replace(dataset, train=dataset.train.select(keep.nonzero().squeeze(1)))


def test_start_that_cannot_be_fitted_is_a_flag_and_leaves_the_others(
    toy: Any, generating: Protocols, store: Store
) -> None:
    dataset = lonely(toy().dataset)
    result, samples = measured(toy().subject(), dataset, generating(starts=["pca", "uniform"]), store)
    assert sum(flag.startswith("pca: ") and "class 0 has 1" in flag for flag in result.flags) == 1
    assert "images_pca" not in samples
    assert "images_uniform" in samples
    assert "pca_energy" not in result.values


def test_nothing_to_generate_from_fails_in_one_sentence(toy: Any, generating: Protocols, store: Store) -> None:
    dataset = lonely(toy().dataset)
    result = evaluate(toy().subject(), dataset, generating(starts=["pca"]), store=store, progress=False)["generation"]
    assert result.status == "failed"
    assert str(result.error).startswith("Nothing can be generated: pca: ")


def test_chains_that_leave_the_finite_numbers_are_flagged(
    toy: Any, generating: Protocols, store: Store, classified: None
) -> None:
    class Kinked(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            # The root's slope at 0 is infinite, and times 0 it is NaN; the value is 0.
            return self.inner(x) + (0 * x).sqrt().sum()

    result, samples = measured(toy().subject(Kinked(toy().model())), toy().dataset, generating(), store)
    assert "uniform: 24 images are not finite (NaN or infinite)." in result.flags
    assert (samples["images_uniform"] == 128).all()
    assert (samples["judged_uniform"] == -1).all()
    assert np.isnan(samples["energy_uniform"]).all()
    assert (result.values["uniform_agreement"], result.values["uniform_energy"]) == (0, None)
    assert result.values["uniform_energy_start"] is not None


def test_diverged_model_fails(toy: Any, generating: Protocols, store: Store) -> None:
    model = toy().model()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    result = evaluate(toy().subject(model), toy().dataset, generating(), store=store, progress=False)["generation"]
    assert (result.status, "not finite" in str(result.error)) == ("failed", True)


@pytest.fixture
def buffered(toy: Any, tmp_path: Path) -> Callable[..., Subject]:
    """Give the toy's classifier a replay buffer of distinct images."""

    def make(size: int = 30, shape: tuple[int, ...] = (1, 6, 6)) -> Subject:
        path = tmp_path / f"buffer-{size}.safetensors"
        save_buffer(path, torch.rand(size, *shape, generator=torch.Generator().manual_seed(size)))
        return replace(toy().subject(), buffer=path)

    return make


def test_buffer_s_chains_are_not_the_first_ones(toy: Any, generating: Protocols, buffered: Any, store: Store) -> None:
    subject = buffered(300)
    _, samples = measured(subject, toy().dataset, generating(), store)
    chains = [image.tobytes() for image in load_buffer(subject.buffer).numpy()]
    slots = sorted(chains.index(image.tobytes()) for image in samples["images_buffer"])
    # Of 24 slots out of 300, none in the last 100 would be a chance of 1 in 20,000.
    assert slots[-1] >= 200


def test_buffer_is_taken_as_it_is_each_chain_once(
    toy: Any, generating: Protocols, buffered: Any, store: Store, classified: None
) -> None:
    result, samples = measured(buffered(), toy().dataset, generating(), store)
    images = samples["images_buffer"]
    assert images.shape == (24, 1, 6, 6)
    assert len({image.tobytes() for image in images}) == 24
    predicted = toy().model()(torch.from_numpy(images).float() / 255).argmax(1)
    assert samples["wanted_buffer"].tolist() == predicted.tolist() == samples["judged_buffer"].tolist()
    assert result.values["buffer_agreement"] == 100
    assert result.flags == []
    _, part = measured(buffered(), toy().dataset, generating(), Store(store.root / "part"), limit=13)
    assert part["images_buffer"].tolist() == images[:13].tolist()


@pytest.mark.parametrize(
    ("made", "flag"),
    [
        (lambda subject: subject(7), "buffer: 24 images are taken from 7 chains"),
        (lambda subject: subject(30, (3, 6, 6)), "buffer: its images are [30, 3, 6, 6]"),
        (lambda subject: subject(30), "truncated"),
    ],
)
def test_doubtful_buffer_is_flagged(
    toy: Any, generating: Protocols, buffered: Any, store: Store, made: Callable[..., Subject], flag: str
) -> None:
    subject = made(buffered)
    assert subject.buffer is not None
    if flag == "truncated":
        subject.buffer.write_bytes(subject.buffer.read_bytes()[:100])
    result, samples = measured(subject, toy().dataset, generating(), store)
    assert sum(flag in found for found in result.flags) == 1
    assert ("images_buffer" in samples) == (flag.startswith("buffer: 24"))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: {"dataset": replace(data.dataset, train=ImageSet(torch.zeros(4, 1, 6, 6), torch.arange(4)))},
        lambda data: {"dataset": replace(data.dataset, name="digits")},
        lambda data: {"subject": replace(data.subject, metadata={"generation": {"mode": "train"}})},
        lambda data: {"subject": replace(data.subject, metadata={"generation": {"energy": "scalar"}})},
        lambda data: {"subject": replace(data.subject, buffer=data.store.root / "buffer")},
    ],
)
def test_key_covers_what_else_decides(
    toy: Any, generating: Protocols, store: Store, change: Callable[[Shards], dict[str, Any]]
) -> None:
    dataset = toy().dataset
    store.root.mkdir()
    (store.root / "buffer").write_bytes(b"images")
    data = Shards("generation", toy().subject(), dataset.test, "digest", generating(), 24, store, dataset=dataset)
    assert key(replace(data, **change(data)).identity) != key(data.identity)
    assert key(replace(data, dataset=replace(dataset)).identity) == key(data.identity)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("starts: [gmm]", "\"starts.0\" is 'gmm'"),
        ("starts: []", '"starts" is []'),
        ("starts: [uniform, uniform]", "a start is named twice"),
        ("steps: 0", '"steps" is 0'),
        ("step_size: 0", '"step_size" is 0'),
        ("clip: -1", '"clip'),
        ("noise: -0.1", '"noise" is -0.1'),
        ("energy: scalar", "\"energy\" is 'scalar'"),
        ("mode: test", "\"mode\" is 'test'"),
        ("step: 5", 'Did you mean "steps"'),
    ],
)
def test_wrong_settings_are_told_in_one_sentence(tmp_path: Path, settings: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"id: mine\nthreat: Linf:8/255\nmetrics:\n  generation: {{{settings}}}\n")
    with pytest.raises(InputError) as caught:
        load(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_are_the_informative_start_and_its_control() -> None:
    assert {name: column.value for name, column in generation.COLUMNS.items()} == {
        "generation_agreement": "class_gaussian_agreement",
        "generation_agreement_start": "class_gaussian_agreement_start",
    }
