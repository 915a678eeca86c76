"""A custom AutoAttack: the standard one where its settings are, and never under the standard's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmark.attacks.cascade import WRONG_BOX
from benchmark.evaluation.runner import evaluate
from benchmark.metrics import autoattack_custom
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, Store
from benchmark.specs.protocol import Protocol
from methods.errors import InputError

Protocols = Callable[..., Protocol]


def run(made: Any, protocol: Protocol, store: Store, metric: str, **config: Any) -> tuple[Measurement, Arrays]:
    only = protocol.model_copy(update={"metrics": {metric: config}})
    measurement = evaluate(made.subject(), made.dataset, only, store=store, progress=False)[metric]
    assert measurement.status == "done", measurement.error
    samples = store.samples(measurement)
    assert samples is not None
    return measurement, samples


@pytest.mark.usefixtures("cut_autoattack")
def test_with_the_standard_settings_it_is_the_standard_version(toy: Any, protocol: Protocols, store: Store) -> None:
    made, chosen = toy(images=8, wrong=2), protocol(shard=8, threat="Linf:0.02")
    standard, expected = run(made, chosen, store, "autoattack")
    custom, found = run(made, chosen, store, "autoattack_custom")
    assert 0 < (samples := found["broken_by"] == 0).sum() < (found["broken_by"] != -1).sum()
    assert standard.values["accuracy"] == pytest.approx(100 * samples.mean())
    for name in ("broken_by", "perturbation", "encoding", "delta"):
        assert found[name].tolist() == expected[name].tolist()
    shared = {name for name in standard.values if not name.startswith("seconds") and name in custom.values}
    assert len(shared) >= 9
    assert {name: custom.values[name] for name in shared} == {name: standard.values[name] for name in shared}
    assert "not AutoAttack standard: apgd_ce, apgd_t, fab_t, square, 100 iterations" in custom.flags


def test_attacks_are_those_that_are_named(toy: Any, protocol: Protocols, store: Store) -> None:
    attacks = ["apgd_ce", "apgd_dlr", WRONG_BOX, "square"]
    made, chosen = toy(images=20), protocol(shard=20, threat="Linf:0.03")
    found, samples = run(made, chosen, store, "autoattack_custom", attacks=attacks, iterations=20, queries=50)
    assert [name for name in found.values if name.startswith("after_")] == [f"after_{name}" for name in attacks]
    margins = made.margins(0.03)
    # APGD solves a linear classifier's attack, so a working FAB has nothing to add either.
    assert (samples["broken_by"] == 0).tolist() == (margins > 0.03).tolist()
    assert set(samples["broken_by"].tolist()) == {-1, 0, 1}


def test_noise_outside_the_range_is_measured_from_the_clamped_image(
    toy: Any, protocol: Protocols, store: Store
) -> None:
    chosen = protocol(threat="Linf:0.02", noise=0.3)
    found, samples = run(toy(), chosen, store, "autoattack_custom", attacks=["apgd_ce"], iterations=5)
    assert found.values["max_perturbation"] == pytest.approx(0.02, abs=1e-5)
    assert (samples["broken_by"] == 1).any()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"attacks": ["apgd_ce", "apgd_ce"]}, "apgd_ce is there twice"),
        ({"attacks": ["fab_t", WRONG_BOX]}, "fab_t is there twice"),
        ({"attacks": []}, "at least 1 item"),
        ({"attacks": ["fab"]}, "'fab'"),
        ({"iterations": 0}, "greater than or equal to 1"),
        ({"steps": 20}, "steps"),
    ],
)
def test_wrong_settings(protocol: Protocols, config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        protocol(metrics={"autoattack_custom": config}).config("autoattack_custom")


def test_box_of_another_norm_is_refused(toy: Any, protocol: Protocols, store: Store) -> None:
    chosen = protocol(threat="L2:0.1", metrics={"autoattack_custom": {"attacks": [WRONG_BOX]}})
    found = evaluate(toy().subject(), toy().dataset, chosen, store=store, progress=False)["autoattack_custom"]
    assert found.status == "failed"
    assert "defined for Linf, not for L2:0.1" in str(found.error)


def test_outcomes_say_who_is_robust() -> None:
    samples = {"broken_by": torch.tensor([-1, 0, 1, 4]).numpy()}
    assert autoattack_custom.verdicts(samples)["accuracy"].tolist() == [False, True, False, False]
