"""Attacks alone: the worst case of each image, evidence of the first break, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.attacks import autoattack
from benchmark.evaluation import evidence
from benchmark.evaluation.runner import evaluate
from benchmark.evaluation.shards import Shard
from benchmark.metrics import marginal
from benchmark.results.entry import Measurement, unpack
from benchmark.results.store import Arrays, Store
from benchmark.specs.protocol import Protocol
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

Protocols = Callable[..., Protocol]
HOPELESS = "Linf:0.2"
"""Breaks every image of the toy, so that no attack takes long."""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Thousands of tiny forward passes: threads only cost."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(
    made: Any, protocol: Protocols, store: Store, *attacks: str, threat: str = "Linf:0.02", **arguments: Any
) -> tuple[Measurement, Arrays]:
    """Measure the attacks alone."""
    only = protocol(metrics={"marginal": {"attacks": list(attacks)} if attacks else {}}, threat=threat)
    results = evaluate(made.subject(), made.dataset, only, store=store, progress=False, **arguments)
    measurement = results["marginal"]
    assert measurement.status == "done", measurement.error
    samples = store.samples(measurement)
    assert samples is not None
    return measurement, samples


def test_verdicts_are_those_of_each_attack_and_of_the_closed_form(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=20, wrong=3)
    measurement, samples = run(made, protocol, store, "apgd_dlr", "apgd_ce", threat="Linf:0.025")
    robust = made.margins(0.025) > 0.025
    threat, x, y = ThreatModel.parse("Linf:0.025"), made.dataset.test.unit(), made.dataset.test.labels
    for name in ("apgd_dlr", "apgd_ce"):
        for index in (0, 1):
            part = slice(10 * index, 10 * index + 10)
            shard = Shard(index, x[part], y[part], root=0)
            with torch.random.fork_rng():
                x_adv, *_ = autoattack.attack_and_classify(name, made.subject(), threat, shard, 10)
            assert samples[f"correct_{name}"][part].tolist() == (made.model()(x_adv).argmax(1) == y[part]).tolist()
        # A linear classifier is broken within the radius of its margin, and never beyond.
        assert not (robust.numpy() & ~samples[f"correct_{name}"]).any()
        accuracy = 100 * samples[f"correct_{name}"].mean()
        assert measurement.values[f"{name}_accuracy"] == pytest.approx(accuracy)
    assert samples["correct_clean"].tolist() == [False] * 3 + [True] * 17
    assert measurement.values["clean_accuracy"] == 85
    worst = samples["correct_apgd_ce"] & samples["correct_apgd_dlr"]
    # Each attack misses an image that the other one breaks: together they are exact, alone neither is.
    assert samples["correct_apgd_ce"].sum() == samples["correct_apgd_dlr"].sum() == worst.sum() + 1
    assert worst.tolist() == robust.tolist()
    broken = samples["correct_clean"] & ~worst
    assert ((samples["encoding"] != evidence.NONE) == broken).all()
    assert measurement.values["worst_accuracy"] == pytest.approx(100 * worst.mean())
    assert set(measurement.verdicts) == {name for name in measurement.values if name.endswith("_accuracy")}
    assert unpack(measurement.verdicts["worst_accuracy"], 20).tolist() == worst.tolist()


def test_worst_case_is_per_image_and_no_average() -> None:
    correct = {
        "correct_clean": np.array([True, True, True, False]),
        "correct_apgd_ce": np.array([True, False, True, False]),
        "correct_square": np.array([False, True, True, False]),
    }
    found = marginal.verdicts(correct | {"encoding": np.zeros(4)})
    assert found["worst_accuracy"].tolist() == [False, False, True, False]
    assert set(found) == {"clean_accuracy", "apgd_ce_accuracy", "square_accuracy", "worst_accuracy"}


def test_evidence_is_that_of_the_first_attack_that_broke_an_image(toy: Any, protocol: Protocols, store: Store) -> None:
    """FAB looks for the nearest adversarial image, APGD goes to the edge of the ball."""
    made, threat = toy(images=8, wrong=1), ThreatModel.parse("Linf:0.1")
    margins, x = made.margins(0.1), made.dataset.test.unit()
    near, far = (
        threat.distance(evidence.decode(x, run(made, protocol, store, *order, threat="Linf:0.1")[1], threat), x)
        for order in (("fab_t", "apgd_ce"), ("apgd_ce", "fab_t"))
    )
    assert bool((near[1:] >= margins[1:] - 1e-3).all())
    assert bool((near[1:] < 0.08).all())
    assert torch.allclose(far[1:], torch.tensor(0.1), atol=1e-5)
    assert near[0] == far[0] == 0


def test_every_broken_image_has_evidence_that_breaks_it(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=12)
    measurement, samples = run(made, protocol, store, threat=HOPELESS)
    assert measurement.values["worst_accuracy"] == 0
    assert [column.value in measurement.values for column in marginal.COLUMNS.values()] == [True] * 6
    threat, x, y = ThreatModel.parse(HOPELESS), made.dataset.test.unit(), made.dataset.test.labels
    x_adv = evidence.decode(x, samples, threat)
    assert (samples["encoding"] != evidence.NONE).tolist() == [False, False, *[True] * 10]
    assert not (made.model()(x_adv).argmax(1) == y).any()
    assert float(threat.distance(x_adv, x).max()) <= 0.2 + 1e-6


def test_verdicts_do_not_depend_on_the_other_shards(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=20, wrong=0)
    _, whole = run(made, protocol, store, "apgd_ce", "apgd_dlr")
    _, part = run(made, protocol, Store(store.root / "part"), "apgd_ce", "apgd_dlr", limit=10)
    for name, outcomes in part.items():
        assert np.array_equal(whole[name][:10], outcomes)


def test_batch_size_moves_no_verdict_of_a_linear_classifier(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=10, wrong=1)
    _, whole = run(made, protocol, store, "apgd_ce")
    _, split = run(made, protocol, Store(store.root / "split"), "apgd_ce", batch_size=3)
    assert whole["correct_apgd_ce"].tolist() == split["correct_apgd_ce"].tolist()


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_are_refused_before_any_work(toy: Any, protocol: Protocols, store: Store, classes: int) -> None:
    made = toy(classes=classes)
    with pytest.raises(InputError, match=f"there are {classes} classes.* --metrics clean,pgd20"):
        run(made, protocol, store)
    assert not store.root.exists()


def test_columns_say_marginal() -> None:
    assert set(marginal.COLUMNS) == {
        *("marginal_apgd_ce", "marginal_apgd_dlr", "marginal_apgd_t"),
        *("marginal_fab_t", "marginal_square", "marginal_worst"),
    }
    assert all(column.meaning.startswith("marginal: ") for column in marginal.COLUMNS.values())


@pytest.mark.parametrize("attacks", [["apgd_ce", "apgd_ce"], [], ["pgd"]])
def test_settings_that_make_no_sense_are_refused(protocol: Protocols, attacks: list[str]) -> None:
    with pytest.raises(InputError, match="attacks"):
        protocol(metrics={"marginal": {"attacks": attacks}}).config("marginal")
