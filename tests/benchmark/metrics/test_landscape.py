"""The energy landscape: statistics with closed forms, linear classifiers, and what is reused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, mannwhitneyu
from torch import Tensor, nn

from benchmark.evaluation.parts import Part
from benchmark.evaluation.runner import evaluate, measure_part, prepare
from benchmark.evaluation.selection import Selection
from benchmark.evaluation.shards import Shards
from benchmark.metrics import landscape
from benchmark.metrics.landscape import auroc, common_edges, equal_overlap, kolmogorov_smirnov, overlap, shares
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, Store, key
from benchmark.specs.protocol import Protocol
from methods.training.pictures import save_buffer

Protocols = Callable[..., Protocol]
ENERGIES = {f"{kind}_energy{of}" for kind in ("joint", "marginal") for of in ("", "_adv", "_generated")}


def normal(n: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, n)


@pytest.mark.parametrize("distance", [0.5, 2.0, 4.0])
def test_statistics_of_two_gaussians_are_those_of_the_formulas(distance: float) -> None:
    one, other = normal(40_000), normal(40_000, distance, seed=1)
    below = math.erf(distance / 2**1.5)  # 2 Phi(d/2) - 1
    assert overlap(40, one, other) == pytest.approx(1 - below, abs=0.02)
    assert overlap(40, one, other, one) == pytest.approx(1 - below, abs=0.02)
    assert kolmogorov_smirnov(one, other) == pytest.approx(below, abs=0.01)
    assert auroc(one, other) == pytest.approx((1 + math.erf(distance / 2)) / 2, abs=0.005)


def test_equal_and_disjoint_distributions_are_the_ends_of_the_scales() -> None:
    one = normal(300)
    found = {place: (overlap(40, one, one + place), auroc(one, one + place)) for place in (0, 9, -9)}
    assert found == {0: (pytest.approx(1), pytest.approx(0.5)), 9: (0, 1), -9: (0, 0)}
    assert (kolmogorov_smirnov(one, one), kolmogorov_smirnov(one, one + 9)) == (0, 1)
    assert overlap(40, one, one, one + 9) == 0


def test_ties_and_unequal_sizes_agree_with_scipy() -> None:
    one, other = normal(70).round(1), normal(45, 0.3, seed=1).round(1)
    rank_sum: Any = mannwhitneyu(other, one)
    distance: Any = ks_2samp(one, other, method="asymp")
    assert auroc(one, other) == pytest.approx(rank_sum.statistic / (70 * 45))
    assert kolmogorov_smirnov(one, other) == pytest.approx(distance.statistic)


def test_equal_overlap_is_what_samples_of_one_distribution_show() -> None:
    pairs = [(normal(300, seed=seed), normal(500, seed=1000 + seed)) for seed in range(50)]
    shown, expected = (np.mean([found(20, *pair) or 0 for pair in pairs]) for found in (overlap, equal_overlap))
    assert expected == pytest.approx(shown, abs=0.01)
    assert shown < 0.93


def test_far_out_values_and_the_scale_change_no_bin_but_the_last() -> None:
    one, other = normal(1000), normal(1000, 1, seed=1)
    wild = np.where(np.arange(1000) < 3, -1e6, one)
    assert overlap(40, wild, other) == pytest.approx(overlap(40, one, other) or 0, abs=0.02)
    assert overlap(40, 1e4 * one, 1e4 * other) == pytest.approx(overlap(40, one, other))
    edges = common_edges(40, wild, other)
    assert edges is not None
    assert edges[0] > -20
    assert shares(wild, edges).sum() == pytest.approx(1)


def test_constant_and_missing_energies_have_no_special_case() -> None:
    constant, nothing = np.full(5, 2.0), np.zeros(0)
    assert (overlap(40, constant, constant), overlap(40, constant, constant + 1e-3)) == (1, 0)
    for found in (overlap, equal_overlap):
        assert found(40, constant, nothing) is found(40, nothing, nothing) is None
    assert auroc(constant, nothing) is kolmogorov_smirnov(nothing, constant) is None


@pytest.fixture
def surveyed(protocol: Protocols) -> Protocols:
    """Make a protocol of the landscape and what it needs: chains from noise; settings of both can be replaced."""

    def make(generation: dict[str, Any] | None = None, **settings: Any) -> Protocol:
        chains = {"starts": ["uniform"], "steps": 4, "step_size": 0.05, "clip": 1.5} | (generation or {})
        return protocol(
            metrics={"pgd20": {}, "generation": chains, "landscape": {"source": "uniform", "bins": 20} | settings}
        )

    return make


def measured(
    subject: Subject, made: Any, protocol: Protocol, store: Store, **arguments: Any
) -> tuple[Measurement, Arrays]:
    """Measure the landscape, which is to succeed."""
    result = evaluate(subject, made.dataset, protocol, metrics=["landscape"], store=store, progress=False, **arguments)[
        "landscape"
    ]
    assert result.error is None
    samples = store.samples(result)
    assert samples is not None
    return result, samples


def test_energies_of_a_linear_classifier(toy: Any, surveyed: Protocols, store: Store) -> None:
    made = toy(classes=2, images=30)
    result, samples = measured(made.subject(), made, surveyed({"steps": 40, "step_size": 1000.0}), store)
    y = made.dataset.test.labels
    own, other = made.weight[:, y], made.weight[:, 1 - y]
    assert set(samples) == {"index"} | ENERGIES
    # Long chains end in the corner of the wanted class, and PGD moves every pixel by eps.
    corner = -(0.5 * own.abs()).sum(0).numpy()
    assert np.allclose(samples["joint_energy_generated"], corner, atol=1e-4)
    gap = -0.02 * (own * (own - other).sign()).sum(0).numpy()
    values: dict[str, Any] = dict(result.values)
    assert values["energy_gap_mean"] == pytest.approx(gap.mean(), abs=1e-5)
    assert values["energy_gap_variance"] == pytest.approx(gap.var(ddof=1), abs=1e-5)
    assert values["energy_gap_abs_mean"] == pytest.approx(np.abs(gap).mean(), abs=1e-5)
    spread = samples["joint_energy"].std(ddof=1)
    assert values["energy_gap_scaled"] == pytest.approx(gap.mean() / spread, rel=1e-3)
    assert values["energy_gap_abs_scaled"] == pytest.approx(np.abs(gap).mean() / spread, rel=1e-3)
    assert values["energy_generated_mean"] == pytest.approx(corner.mean(), rel=1e-5)
    ends = [values[f"energy_{name}"] for name in ("overlap_clean_generated", "auroc_generated", "ks_generated")]
    assert ends == [0, 0, 1]
    assert values["energy_overlap"] == overlap(20, samples["joint_energy"], samples["joint_energy_adv"])
    assert values["marginal_energy_overlap_all"] == 0
    assert (values["source"], values["bins"], values["mode"], result.flags) == ("uniform", 20, "eval", [])


def test_series_are_the_shares_of_all_images_on_common_edges(toy: Any, surveyed: Protocols, store: Store) -> None:
    result, samples = measured(toy().subject(), toy(), surveyed(), store)
    assert set(result.series) == {
        prefix + name for prefix in ("", "marginal_") for name in ("edges", "clean", "adversarial", "generated")
    }
    edges: Any = result.series["edges"]
    assert len(edges) == 21
    for name, end in (("clean", ""), ("adversarial", "_adv"), ("generated", "_generated")):
        # The edges are rounded to a hundredth of a bin, which may take an image to the next one.
        counts = np.histogram(samples[f"joint_energy{end}"].clip(edges[0], edges[-1]), edges)[0]
        assert result.series[name] == pytest.approx(100 * counts / 24, abs=100 / 24 + 0.01)
        assert sum(share or 0 for share in result.series[name]) == pytest.approx(100, abs=0.2)


def test_nothing_is_attacked_or_generated_again(toy: Any, surveyed: Protocols, store: Store) -> None:
    made = toy()
    model = made.model()
    evaluate(
        made.subject(model),
        made.dataset,
        surveyed(),
        metrics=["pgd20", "generation"],
        store=store,
        progress=False,
    )
    before = model.forwards
    measured(made.subject(model), made, surveyed(), store)
    assert model.forwards == before + 3  # a pass for each shard of ten
    measured(made.subject(model), made, surveyed(), store)
    assert model.forwards == before + 3


def test_batches_parts_and_limits_change_no_energy(toy: Any, surveyed: Protocols, store: Store) -> None:
    made = toy()
    whole, samples = measured(made.subject(), made, surveyed(), store)
    _, split = measured(made.subject(), made, surveyed(), Store(store.root / "split"), batch_size=3)
    _, limited = measured(made.subject(), made, surveyed(), Store(store.root / "limited"), limit=13)
    for name in ENERGIES:
        # A pixel that rounds to the other side moves an energy of the generated images by less than 0.02.
        assert np.allclose(split[name], samples[name], atol=0.02)
        assert np.allclose(limited[name], samples[name][:13], atol=1e-5)
    parted = Store(store.root / "parted")
    todo = prepare(made.subject(), made.dataset, surveyed(), Selection(["landscape"]), store=parted)
    for number in (2, 1):
        measure_part(todo, Part(number, 2))
    assert len(list(parted.root.glob("landscape-*/shard-*.npz"))) == 3
    joined, again = measured(made.subject(), made, surveyed(), parted)
    assert {name: array.tolist() for name, array in again.items()} == {
        name: array.tolist() for name, array in samples.items()
    }
    assert (joined.values, joined.series) == (whole.values, whole.series)


def test_interruption_loses_one_shard(toy: Any, surveyed: Protocols, store: Store) -> None:
    class Mortal(nn.Module):
        def __init__(self, inner: Any, most: int) -> None:
            super().__init__()
            self.inner, self.most = inner, most

        def forward(self, x: Tensor) -> Tensor:
            if self.inner.forwards == self.most:
                raise KeyboardInterrupt
            return self.inner(x)

    made = toy()
    counted = made.model()
    whole, samples = measured(replace(made.subject(counted), digest="same"), made, surveyed(), store)
    for lives in (counted.forwards - 1, counted.forwards // 2):
        other = Store(store.root / str(lives))
        mortal = replace(made.subject(Mortal(made.model(), lives)), digest="same")
        with pytest.raises(KeyboardInterrupt):
            measured(mortal, made, surveyed(), other)
        again, resumed = measured(replace(made.subject(), digest="same"), made, surveyed(), other)
        assert all(resumed[name].tolist() == samples[name].tolist() for name in ENERGIES)
        assert again.values == whole.values


def test_chains_that_left_the_finite_numbers_are_left_out(toy: Any, surveyed: Protocols, store: Store) -> None:
    class Kinked(nn.Module):
        """The root's slope at 0 is infinite, and times 0 it is NaN: the gradient of dark images."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            above = x.flatten(1).mean(1) - 0.5
            return self.inner(x) + 0 * (above * (above > 0)).sqrt()[:, None]

    made = toy()
    subject = made.subject(Kinked(made.model()))
    result, samples = measured(subject, made, surveyed(), store)
    lost = int(np.isnan(samples["joint_energy_generated"]).sum())
    assert 0 < lost < 24
    assert f"energy: {lost} of 24 generated images are left out: not finite." in result.flags
    values: dict[str, Any] = dict(result.values)
    rest = samples["joint_energy_generated"][np.isfinite(samples["joint_energy_generated"])]
    assert values["energy_generated_mean"] == pytest.approx(rest.mean())
    assert sum(share or 0 for share in result.series["generated"]) == pytest.approx(100, abs=0.2)


def test_without_a_single_finite_chain_the_rest_is_measured(toy: Any, surveyed: Protocols, store: Store) -> None:
    class Rooted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + (0 * x).sqrt().sum()

    made = toy()
    result, _ = measured(made.subject(Rooted(made.model())), made, surveyed(), store)
    assert result.values["energy_overlap_clean_generated"] is result.values["energy_generated_mean"] is None
    assert result.values["energy_clean_mean"] is not None
    assert result.series["generated"] == [None] * 20


def test_one_image_has_no_deviation(toy: Any, surveyed: Protocols, store: Store) -> None:
    result, _ = measured(toy().subject(), toy(), surveyed(), store, limit=1)
    for name in ("clean_std", "gap_variance", "gap_scaled", "gap_abs_scaled"):
        assert result.values[f"energy_{name}"] is None
    assert result.values["energy_gap_abs_mean"] is not None


def test_doubts_are_flagged(toy: Any, surveyed: Protocols, store: Store) -> None:
    class Headed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

        def scalar_energy(self, x: Tensor) -> Tensor:
            return -x.flatten(1).sum(1)

    made = toy()
    subject = replace(
        made.subject(Headed(made.model())), metadata={"generation": {"energy": "scalar", "mode": "train"}}
    )
    flags = measured(subject, made, surveyed(), store)[0].flags
    assert len(flags) == 2
    assert "in eval mode" in flags[0]
    assert "class logits" in flags[1]


def test_batch_statistics_are_those_of_training_for_the_chains_alone(
    toy: Any, surveyed: Protocols, store: Store
) -> None:
    made = toy()
    norm = nn.BatchNorm2d(1)
    norm.running_mean = torch.tensor([0.3])
    subject = made.subject(nn.Sequential(norm, made.model()).eval())
    sampled = replace(subject, metadata={"generation": {"mode": "train"}})
    _, samples = measured(sampled, made, surveyed(), store)
    results = evaluate(sampled, made.dataset, surveyed(), metrics=["generation"], store=store, progress=False)
    kept = store.samples(results["generation"])
    assert kept is not None
    logits = subject.model(torch.from_numpy(kept["images_uniform"]).float() / 255).detach()
    expected = -logits.gather(1, made.dataset.test.labels[:, None]).squeeze(1)
    assert np.allclose(samples["joint_energy_generated"], expected, atol=1e-4)
    assert not np.allclose(samples["joint_energy_generated"], kept["energy_uniform"], atol=0.1)


def test_images_of_the_buffer_have_the_classes_the_model_gives_them(
    toy: Any, surveyed: Protocols, store: Store, tmp_path: Any
) -> None:
    made = toy()
    save_buffer(tmp_path / "buffer", torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(1)))
    subject = replace(made.subject(), buffer=tmp_path / "buffer")
    _, samples = measured(subject, made, surveyed(source="buffer"), store)
    # The class of the argmax has the lowest joint energy: at most log K above the marginal one.
    above = samples["joint_energy_generated"] - samples["marginal_energy_generated"]
    assert 0 <= above.min() <= above.max() <= math.log(4) + 1e-5


def test_source_without_images_is_told_in_one_sentence(toy: Any, surveyed: Protocols, store: Store) -> None:
    result = evaluate(toy().subject(), toy().dataset, surveyed(source="pca"), store=store, progress=False)["landscape"]
    assert (result.status, "pca: " in str(result.error)) == ("failed", True)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: {"subject": replace(data.subject, metadata={"generation": {"mode": "train"}})},
        lambda data: {"subject": replace(data.subject, digest="other")},
        lambda data: {"dataset": replace(data.dataset, name="digits")},
        lambda data: {"digest": "other"},
        lambda data: {"protocol": data.protocol.model_copy(update={"threat": "Linf:0.03"})},
    ],
)
def test_key_covers_what_decides(
    toy: Any, surveyed: Protocols, store: Store, change: Callable[[Shards], dict[str, Any]]
) -> None:
    made = toy()
    data = Shards("landscape", made.subject(), made.dataset.test, "digest", surveyed(), 24, store, dataset=made.dataset)
    assert key(replace(data, **change(data)).identity) != key(data.identity)


@pytest.mark.parametrize(
    "settings", [{"source": "buffer"}, {"bins": 10}, {"generation": {"steps": 5}}, {"generation": {"starts": ["pca"]}}]
)
def test_key_covers_the_settings_of_all_three_metrics(
    toy: Any, surveyed: Protocols, store: Store, settings: dict[str, Any]
) -> None:
    made = toy()

    def identity(protocol: Protocol) -> str:
        data = Shards(
            "landscape", made.subject(), made.dataset.test, "digest", protocol, 24, store, dataset=made.dataset
        )
        return key(data.identity)

    assert identity(surveyed(**settings)) != identity(surveyed())
    stronger = surveyed().model_copy(update={"metrics": surveyed().metrics | {"pgd20": {"steps": 21}}})
    assert identity(stronger) != identity(surveyed())


def test_column_is_the_overlap_of_the_joint_energies() -> None:
    assert {name: column.value for name, column in landscape.COLUMNS.items()} == {"energy_overlap": "energy_overlap"}
