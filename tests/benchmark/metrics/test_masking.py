"""The masking checks on models whose answer is known: linear classifiers, and what can be done to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.attacks import masking_checks
from benchmark.evaluation import runner
from benchmark.evaluation.parts import Part
from benchmark.evaluation.selection import Selection
from benchmark.metrics import masking
from benchmark.models.subject import Subject
from benchmark.results.entry import Check, Measurement
from benchmark.results.store import Store
from benchmark.specs.protocol import Protocol
from benchmark.studies import planted_failures

SWEEP = {"eps": [0, 0.5, 1, 2, 20], "steps": [1, 5, 20, 40]}
SETTINGS = {"images": 24, "restarts": 2, "corners": 10, "queries": 100, "draws": 4}


@pytest.fixture
def protocol(protocol: Callable[..., Protocol]) -> Callable[..., Protocol]:
    """Make a protocol for the masking checks; fields of its settings can be replaced."""

    def make(
        threat: str = "Linf:0.02", shard: int = 24, sweep: dict[str, Any] | None = None, **changed: Any
    ) -> Protocol:
        metrics = {"pgd20": {}, "sweep": sweep or SWEEP, "masking": SETTINGS | changed}
        return protocol(threat=threat, shard=shard, metrics=metrics)

    return make


@pytest.fixture
def measured(toy: Any, protocol: Callable[..., Protocol], tmp_path: Path) -> Callable[..., Measurement]:
    """Measure a model on the toy; the linear one by default."""

    def measure(model: nn.Module | None = None, surrogate: Subject | None = None, **fields: Any) -> Measurement:
        made = toy()
        found = runner.evaluate(
            made.subject(model),
            made.dataset,
            protocol(**fields),
            metrics=["masking"],
            store=Store(tmp_path / str(len(list(tmp_path.iterdir())))),
            surrogate=surrogate,
            progress=False,
        )["masking"]
        assert found.status == "done", found.error
        return found

    return measure


def named(found: Measurement) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def failed(found: Measurement) -> set[str]:
    return {check.name for check in found.checks if check.passed is False}


def test_linear_classifier_is_clear(toy: Any, measured: Callable[..., Measurement]) -> None:
    found = measured(surrogate=toy().subject())
    assert found.values["verdict"] == "clear"
    assert found.flags == []
    checks = named(found)
    assert {name for name, check in checks.items() if check.passed is None} == {"EOT", "EOT gain", "batch norm mode"}
    assert (found.values["failed"], found.values["applied"]) == (0, len(checks) - 3)
    assert checks["unbounded"].measured == 0
    assert checks["finite differences"].measured == 0
    assert checks["budget"].measured == pytest.approx(0.02, abs=1e-6)
    exact, image = 100 * float((toy().margins(0.02) > 0.02).double().mean()), 100 / 24
    assert exact <= (checks["one step"].measured or 0) <= exact + image + 1e-9, (
        "PGD-20 finds the nearest class but once"
    )


def test_l2_is_judged_by_the_same_checks(measured: Callable[..., Measurement]) -> None:
    found = measured(threat="L2:0.2")
    assert failed(found) == set()
    assert named(found)["budget"].measured == pytest.approx(0.2, rel=0.05)


def test_eps_zero_leaves_nothing_to_accuse(measured: Callable[..., Measurement]) -> None:
    found = measured(threat="Linf:0")
    assert failed(found) == set()
    assert named(found)["budget"].passed is None


def test_outcomes_of_other_metrics_are_shared(toy: Any, protocol: Callable[..., Protocol], store: Store) -> None:
    made, settings = toy(), protocol()
    model = made.model()
    subject = made.subject(model)
    runner.evaluate(subject, made.dataset, settings, metrics=["pgd20", "sweep"], store=store, progress=False)
    before = model.forwards
    runner.evaluate(subject, made.dataset, settings, metrics=["masking"], store=store, progress=False)
    own = model.forwards - before
    model.forwards = 0
    again = Store(store.root.parent / "empty")
    runner.evaluate(subject, made.dataset, settings, metrics=["masking"], store=again, progress=False)
    assert own < model.forwards - 100


def test_first_images_alone_are_measured(measured: Callable[..., Measurement]) -> None:
    found = measured(images=10, shard=4)
    assert found.n == 10
    assert named(found)["unbounded"].bound == 100 * masking_checks.most(10, masking_checks.SURVIVING) / 10


def test_batch_size_changes_no_outcome(toy: Any, protocol: Callable[..., Protocol], tmp_path: Path) -> None:
    made = toy()
    outcomes = []
    for size in (None, 5):
        store = Store(tmp_path / str(size))
        found = runner.evaluate(
            made.subject(),
            made.dataset,
            protocol(shard=12, queries=20),
            metrics=["masking"],
            batch_size=size,
            store=store,
            progress=False,
        )["masking"]
        samples = store.samples(found)
        assert samples is not None
        outcomes.append(samples)
    whole, split = outcomes
    assert np.allclose(whole.pop("perturbation"), split.pop("perturbation"), atol=1e-6)
    for name in whole:
        if name != "square":  # pyautoattack deals its random numbers out by the batch
            assert np.array_equal(whole[name], split[name]), name


def test_parts_leave_what_one_process_would(toy: Any, protocol: Callable[..., Protocol], tmp_path: Path) -> None:
    made = toy()
    settings = protocol(shard=8, queries=20)
    samples = []
    for name, parts in (("whole", []), ("parts", [Part(2, 2), Part(1, 2)])):
        store = Store(tmp_path / name)
        todo = runner.prepare(made.subject(), made.dataset, settings, Selection(["masking"]), store=store)
        for part in parts:
            runner.measure_part(todo, part)
        before = {path: path.stat().st_mtime_ns for path in store.root.rglob("shard-*")}
        assert len(before) == (9 if parts else 0), "three shards of three metrics"
        samples.append(store.samples(runner.measure(todo, progress=False)["masking"]))
        assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert samples[0] is not None
    assert samples[1] is not None
    assert all(np.array_equal(samples[0][name], samples[1][name]) for name in samples[0])


class Cut(nn.Module):
    """Takes the images out of PyTorch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(torch.from_numpy(x.numpy().copy()))


@pytest.mark.parametrize("cut", [planted_failures.DetachedInput, Cut])
def test_model_without_a_gradient_is_suspect_and_no_attack_is_made_up(
    toy: Any, measured: Callable[..., Measurement], cut: type[nn.Module]
) -> None:
    found = measured(cut(toy().model()), threat="Linf:0.1", surrogate=toy().subject())
    assert {"gradient", "Square", "transfer"} <= failed(found)
    checks = named(found)
    for name in (
        "unbounded",
        "monotone in eps",
        "one step",
        "restarts",
        "zero gradients",
        "finite differences",
        "budget",
    ):
        assert checks[name].passed is None
        assert masking_checks.NO_GRADIENT in checks[name].meaning
    assert str(found.values["verdict"]).startswith("suspect: ")
    assert len(found.flags) == found.values["failed"] == len(failed(found))


def test_noise_brings_averaged_gradients_to_the_checks(toy: Any, measured: Callable[..., Measurement]) -> None:
    found = measured(planted_failures.InputNoise(toy().model()))
    checks = named(found)
    assert "determinism" in failed(found)
    assert checks["EOT"].passed is not None
    assert checks["EOT gain"].passed is not None
    assert checks["finite differences"].passed, "the same draw in every pass makes the model a function"


def test_draws_are_those_of_the_seeded_stream(toy: Any, protocol: Callable[..., Protocol], tmp_path: Path) -> None:
    made = toy()
    subject = made.subject(planted_failures.InputNoise(made.model()))
    samples = []
    for name in ("first", "second"):
        store = Store(tmp_path / name)
        torch.manual_seed(len(name))
        found = runner.evaluate(subject, made.dataset, protocol(), metrics=["masking"], store=store, progress=False)
        samples.append(store.samples(found["masking"]))
    assert samples[0] is not None
    assert samples[1] is not None
    assert all(np.array_equal(samples[0][name], samples[1][name]) for name in samples[0])


def test_model_at_chance_gets_no_verdict(toy: Any, measured: Callable[..., Measurement]) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight + 0.01 * x.flatten(1)[:, :4]

    found = measured(Constant().eval())
    checks = named(found)
    assert checks["unbounded"].passed is None
    assert checks["unbounded"].meaning == masking_checks.AT_CHANCE
    assert checks["zero gradients"].passed
    assert found.values["verdict"] is None


def test_conditions_hold_what_else_decides(toy: Any, protocol: Callable[..., Protocol], store: Store) -> None:
    made = toy()
    (data,) = runner.prepare(made.subject(), made.dataset, protocol(), Selection(["masking"]), store=store)
    other = replace(data, surrogate=made.subject())
    shifted = replace(data, dataset=replace(made.dataset, mean=(0.4,)))
    assert len({str(masking.conditions(each)) for each in (data, other, shifted)}) == 3
    assert masking.conditions(replace(data, dataset=None))["surrogate"] is None
    digits = replace(data, dataset=replace(made.dataset, name="digits"))
    assert masking.conditions(digits)["surrogate"]
