"""Shards: their bounds, their streams, and what is shared between runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.evaluation.batching import in_batches
from benchmark.evaluation.parts import Part
from benchmark.evaluation.runner import evaluate
from benchmark.evaluation.shards import Shard, Shards, counted, percent, standard_error
from benchmark.models.subject import Subject
from benchmark.results.store import Arrays, Store, key
from benchmark.specs import registry
from benchmark.specs.protocol import Protocol, load

Made = Callable[..., Shards]


@pytest.fixture
def make(toy: Any, protocol: Callable[..., Protocol], store: Store) -> Made:
    """Make the shards of the first n of 24 images, ten a shard."""

    def made(n: int = 24, metric: str = "clean", **fields: Any) -> Shards:
        subject, test = toy().subject(), toy().dataset.test
        shards = Shards(metric, subject, test, test.digest, protocol(), n, store)
        return replace(shards, **fields)

    return made


def numbers(shard: Shard) -> Arrays:
    """Return what a shard holds and draws."""
    drawn = torch.rand(len(shard.y), generator=shard.generator("metric", "start"))
    return {"label": shard.y.numpy(), "drawn": drawn.numpy(), "global": torch.rand(len(shard.y)).numpy()}


@pytest.mark.parametrize(("n", "sizes"), [(24, [10, 10, 4]), (20, [10, 10]), (10, [10]), (3, [3])])
def test_shards_cut_the_images_in_order(make: Made, n: int, sizes: list[int]) -> None:
    data = make(n)
    assert [len(shard.y) for shard in data] == sizes
    assert len(data) == len(sizes)
    assert torch.equal(torch.cat([shard.x for shard in data]), data.images.unit(slice(0, n)))


def test_shards_have_streams_of_their_own(make: Made) -> None:
    seeds = {shard.seed(name) for shard in make() for name in ("start", "attack")}
    assert len(seeds) == 6
    assert [shard.seed("start") for shard in make(3)] == [next(iter(make())).seed("start")]


def test_outcomes_do_not_depend_on_how_many_images_are_asked_for(make: Made, store: Store) -> None:
    whole = make().map(numbers)
    part = make(13, store=Store(store.root / "other")).map(numbers)
    assert part["label"].tolist() == whole["label"][:13].tolist()
    for name in ("drawn", "global"):
        assert part[name][:10].tolist() == whole[name][:10].tolist()


def test_noise_is_of_the_shard_and_unclamped(make: Made) -> None:
    clean, data = make(), make(metric="clean", n=24)
    noisy = replace(data, protocol=data.protocol.model_copy(update={"noise": 0.3}))
    difference = torch.cat([shard.x for shard in noisy]) - torch.cat([shard.x for shard in clean])
    assert float(difference.std()) == pytest.approx(0.3, rel=0.05)
    assert float(difference.mean()) == pytest.approx(0, abs=0.03)
    assert float(torch.cat([shard.x for shard in noisy]).min()) < 0
    for metric in ("clean", "pgd20"):
        again = [shard.x for shard in replace(noisy, metric=metric, n=13)]
        assert torch.equal(again[0], next(iter(noisy)).x)


def test_whole_shards_are_shared_between_limits_and_cut_ones_are_not(make: Made) -> None:
    computed: list[tuple[int, int]] = []

    def noted(shard: Shard) -> Arrays:
        computed.append((shard.index, len(shard.y)))
        return {"label": shard.y.numpy()}

    make(13).map(noted)
    assert make().map(noted)["label"].tolist() == make().images.labels.tolist()
    make(13).map(noted)
    make(20).map(noted)
    assert computed == [(0, 10), (1, 3), (1, 10), (2, 4)]


CHANGED: dict[str, dict[str, Any]] = {
    "clean": {},
    "pgd20": {"steps": 21, "step_size": 0.1, "start": "zero", "restarts": 2, "keep": "best"},
    "autoattack": {},
    "energy": {},
    "generation": {
        "sampler": "protocol",
        "starts": ["uniform"],
        "steps": 3,
        "step_size": 0.1,
        "clip": None,
        "noise": 0.1,
        "energy": "marginal",
        "mode": "train",
    },
    "landscape": {"source": "uniform", "bins": 7},
    "fid": {"source": "uniform", "reference": "test", "keep": 0.5},
    "fid_ref": {"source": "uniform"},
    "sweep": {"eps": [0, 1], "steps": [1, 20], "radius_steps": 3, "step_size": 0.1},
    "eot_pgd": {"samples": 2, "reevaluations": 3},
    "transfer": {
        "attacks": ["pgd"],
        "pgd_steps": 3,
        "pgd_step_size": 0.1,
        "steps": 3,
        "decay": 0.5,
        "neighbours": 2,
        "bound": 1.0,
    },
    "marginal": {"attacks": ["square"]},
    "masking": {"images": 7, "restarts": 1, "corners": 3, "queries": 9, "draws": 2},
    "autoattack_fast": {},
    "autoattack_custom": {"attacks": ["square"], "iterations": 20, "queries": 9},
}
"""For every metric, another value of every setting."""


def keyed(toy: Any, store: Store, metric: str) -> Shards:
    """Return the shards of a metric under a protocol with all metrics."""
    chosen = Protocol.model_validate({"id": "all-v1", "threat": "Linf:0.02", "metrics": {name: {} for name in CHANGED}})
    made = toy()
    return Shards(
        metric,
        made.subject(),
        made.dataset.test,
        "data",
        chosen,
        24,
        store,
        dataset=made.dataset,
        surrogate=made.subject(),
    )


def with_setting(data: Shards, metric: str, field: str, value: Any) -> Shards:
    changed = data.protocol.metrics | {metric: {field: value}}
    return replace(data, protocol=data.protocol.model_copy(update={"metrics": changed}))


@pytest.mark.parametrize("metric", registry.names())
def test_every_setting_of_a_metric_is_in_its_key(toy: Any, store: Store, metric: str) -> None:
    """A new metric or setting fails here until it has a row above."""
    data = keyed(toy, store, metric)
    needed = (metric, *getattr(registry.get(metric), "NEEDS", ()))
    for name in needed:
        assert set(CHANGED[name]) == set(registry.get(name).Config.model_fields)
        for field, value in CHANGED[name].items():
            assert with_setting(data, name, field, value).identity != data.identity, f"{name}.{field}"
    for name in set(CHANGED) - set(needed):
        for field, value in CHANGED[name].items():
            assert with_setting(data, name, field, value).identity == data.identity, f"{name}.{field}"


@pytest.mark.parametrize("metric", registry.names())
def test_what_else_can_change_a_number_is_in_its_key(
    toy: Any, store: Store, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field of the protocol, the subject and the shards is either in the key or cannot change a number."""
    data = keyed(toy, store, metric)

    def protocol(**changed: Any) -> Shards:
        return replace(data, protocol=data.protocol.model_copy(update=changed))

    def subject(**changed: Any) -> Shards:
        return replace(data, subject=replace(data.subject, **changed))

    kept = {"shard": 7, "seed": 1, "threat": "Linf:0.03", "noise": 0.01}
    free = {"id": "other-v1", "role": "standard", "description": "other", "dataset": "toy"}
    assert {*kept, *free, "metrics"} == set(Protocol.model_fields)
    for field, value in kept.items():
        assert protocol(**{field: value}).identity != data.identity, field
    for field, value in free.items():
        assert protocol(**{field: value}).identity == data.identity, field

    assert subject(digest="other").identity != data.identity
    assert subject(code="other").identity != data.identity
    assert subject(name="other", flags=["a doubt"]).identity == data.identity

    assert replace(data, digest="other").identity != data.identity
    assert replace(data, split=3, n=10, advance=print, part=Part(1, 2)).identity == data.identity
    assert key(data.identity | {"n": 10}) != key(data.identity | {"n": 24})

    other = replace(data, surrogate=replace(data.subject, digest="other"))
    assert (other.identity != data.identity) == (metric in ("transfer", "masking"))
    fitted = replace(data.dataset, train=data.dataset.train.select(slice(3))) if data.dataset else None
    generates = metric in ("generation", "landscape", "fid", "fid_ref")
    assert (replace(data, dataset=fitted).identity != data.identity) == generates

    before = data.identity
    monkeypatch.setattr(registry.get(metric), "VERSION", registry.get(metric).VERSION + 1)
    assert data.identity != before


def test_identity_does_not_change_with_batch_size_or_limit_or_unrelated_metrics(make: Made) -> None:
    data = make()
    assert make(3, split=2).identity == data.identity
    other = data.protocol.model_copy(update={"metrics": {"clean": {}}, "id": "other"})
    assert make(protocol=other).identity == data.identity


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("clean", "b7242380de7f6f8641d1f750bec24e7252fcf9546d2da14b7b1a19ac1d47537a"),
        ("pgd20", "2f9a3b081bf576c1704067b747db24a2d7c39faf6f111e6e7e202a127d419215"),
        ("autoattack", "8201cda6372a2c84df7550d1515e18cc7f52e59f66d0468a1c35b4eabf71bf9c"),
        ("energy", "cb3674b969fad9acd73fc6e1e48f12b4f5b93f38b1a89253a83663107c9ee2b9"),
    ],
)
def test_keys_of_what_was_stored_stay_valid(toy: Any, store: Store, metric: str, expected: str) -> None:
    """These keys are fixed, for attacks since they keep evidence; a metric of another ``VERSION`` gets a new one."""
    subject = Subject("fixed", nn.Identity(), 10, (1, 8, 8), torch.device("cpu"), "weights", "code", "external")
    test = toy().dataset.test
    for protocol in ("digits-linf-v1", "digits-linf-v2"):
        data = Shards(metric, subject, test, "data", load(protocol), 1, store, dataset=toy().dataset)
        assert key(data.identity) == expected


def test_energy_is_stored_under_the_attack_it_reads(make: Made) -> None:
    data = make(metric="energy")
    stronger = data.protocol.model_copy(update={"metrics": {"pgd20": {"steps": 40}, "energy": {}, "clean": {}}})
    assert make(metric="energy", protocol=stronger).identity != data.identity


def test_global_stream_is_seeded_per_shard_and_given_back(make: Made, store: Store) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make().map(numbers)
    assert torch.equal(torch.rand(3), expected)
    again = make(store=Store(store.root / "other")).map(numbers)
    assert first["global"].tolist() == again["global"].tolist()
    assert len(set(first["global"].tolist())) == 24


def test_progress_counts_every_shard_stored_or_not(make: Made) -> None:
    seen: list[int] = []
    make(10).map(numbers)
    make(advance=seen.append).map(numbers)
    assert seen == [1, 2, 3]


def test_finished_measurement_keeps_outcomes_per_image_and_batch_sizes(make: Made, store: Store) -> None:
    make(10, split=4).map(numbers)
    data = make(24)
    measurement = data.finish(data.map(numbers), {"accuracy": 1.0}, ["doubt"])
    assert measurement.values == {"accuracy": 1.0, "batch_size": "4, 10"}
    assert (measurement.n, measurement.flags, measurement.version) == (24, ["doubt"], 1)
    samples = store.samples(measurement)
    assert samples is not None
    assert sorted(samples) == ["drawn", "global", "index", "label"]
    assert samples["index"].tolist() == list(range(24))


def test_splitting_the_forward_passes_gives_the_same_values_and_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.rand(7, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    sizes: list[int] = []

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(images))
        return nn.functional.cross_entropy(model(images), labels, reduction="none")

    gradients = []
    for batch_size in (7, 3):
        images = x.clone().requires_grad_()
        value = in_batches(loss, y, batch_size)(images)
        assert value.shape == (7,)
        gradients.append(torch.autograd.grad((value * torch.arange(7)).sum(), images)[0])
    assert sizes == [7, 3, 3, 1]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-12)


def test_statistics_of_verdicts() -> None:
    correct = np.array([True, True, True, False])
    assert percent(correct) == 75
    assert standard_error(correct) == pytest.approx(100 * (0.75 * 0.25 / 4) ** 0.5)
    assert counted(["a", "b", "a"]) == ["a (x2)", "b"]


class Narrow(nn.Module):
    """A network whose device has room for few images at once."""

    def __init__(self, inner: nn.Module, room: int) -> None:
        super().__init__()
        self.inner, self.room = inner, room

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("full")
        return self.inner(x)


@pytest.mark.parametrize("metric", ["clean", "pgd20", "autoattack_custom", "sweep", "marginal"])
def test_shard_for_which_memory_is_too_small_is_measured_in_smaller_passes(
    toy: Any, protocol: Callable[..., Protocol], store: Store, metric: str
) -> None:
    made = toy(images=16)
    settings = {
        "sweep": {"eps": [0, 1], "steps": [1, 20]},
        "marginal": {"attacks": ["apgd_ce"]},
        "autoattack_custom": {"iterations": 10, "queries": 20},
    }.get(metric, {})
    chosen = protocol(metrics={metric: settings}, threat="Linf:0.05")
    found = {}
    for room in (100, 3):
        own, model = Store(store.root / str(room)), Narrow(made.model(), room)
        result = evaluate(made.subject(model), made.dataset, chosen, store=own, progress=False)[metric]
        assert result.status == "done", result.error
        found[room] = result.values, own.samples(result), result.flags
    values, samples, flags = found[3]
    assert flags == found[100][2]
    assert (found[100][0]["batch_size"], values["batch_size"]) == (10, 2)
    assert samples is not None
    for name, expected in found[100][1].items():
        # The same random numbers: images differ by rounding alone.
        assert samples[name] == pytest.approx(expected, abs=1e-5), name


def test_no_room_for_one_image_is_an_error(toy: Any, protocol: Callable[..., Protocol], store: Store) -> None:
    model = Narrow(toy().model(), 0)
    chosen = protocol(metrics={"clean": {}})
    result = evaluate(toy().subject(model), toy().dataset, chosen, store=store, progress=False)["clean"]
    assert result.status == "failed"
    assert "full" in str(result.error)


def test_each_metric_is_tried_with_all_the_images_again(make: Made) -> None:
    seen: list[int] = []

    def once(shard: Shard) -> Arrays:
        seen.append(data.batch_size)
        if len(seen) == 1:
            raise torch.OutOfMemoryError
        return numbers(shard)

    data = make()
    arrays = data.map(once)
    assert arrays["shard_batch_size"].tolist() == [5, 5, 5]
    data.of("pgd20").map(once)
    assert seen == [10, 5, 5, 5, 10, 10, 10]
