"""PGD-20 against linear classifiers, whose robustness is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmark.evaluation.runner import evaluate
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, Store
from benchmark.specs.protocol import Protocol

Protocols = Callable[..., Protocol]


def run(made: Any, protocol: Protocol, store: Store, **arguments: Any) -> tuple[Measurement, Arrays]:
    """Measure PGD-20 alone."""
    results = evaluate(
        made.subject(), made.dataset, protocol, metrics=["pgd20"], store=store, progress=False, **arguments
    )
    samples = store.samples(results["pgd20"])
    assert samples is not None
    return results["pgd20"], samples


def test_two_classes_are_broken_exactly_where_the_closed_form_says(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(classes=2, images=60)
    # With two classes the gradient's sign is the same everywhere, so that PGD reaches the worst corner.
    _, samples = run(made, protocol(threat="Linf:0.02"), store)
    robust = (made.margins(0.02) > 0.02).numpy()
    assert 5 < robust.sum() < 55
    assert samples["correct"].tolist() == robust.tolist()


def test_eps_of_zero_changes_nothing(toy: Any, protocol: Protocols, store: Store) -> None:
    result, samples = run(toy(), protocol(threat="Linf:0"), store)
    assert result.values["accuracy"] == pytest.approx(100 * 22 / 24)
    assert result.values["max_perturbation"] == 0
    assert samples["joint_energy"].tolist() == samples["joint_energy_adv"].tolist()


def test_record_names_eps_alpha_steps_and_restarts(toy: Any, protocol: Protocols, store: Store) -> None:
    values = run(toy(), protocol(threat="Linf:8/255"), store, limit=1)[0].values
    assert {name: values[name] for name in ("eps", "alpha", "steps", "restarts")} == {
        **{"eps": "8/255", "alpha": "2/255"},
        **{"steps": 20, "restarts": 1},
    }


def test_settings_of_the_protocol_reach_the_attack(toy: Any, protocol: Protocols, store: Store) -> None:
    one_small_step = {"pgd20": {"steps": 1, "step_size": 0.5, "start": "zero"}}
    result, samples = run(toy(), protocol(metrics=one_small_step, threat="Linf:0.1"), store)
    assert result.values["max_perturbation"] == pytest.approx(0.05, rel=1e-4)
    assert result.values["alpha"] == "0.05"
    assert samples["perturbation"].min() == pytest.approx(0.05, rel=1e-4)


def test_batch_size_moves_no_verdict_of_a_linear_classifier(toy: Any, protocol: Protocols, store: Store) -> None:
    _, whole = run(toy(), protocol(), store)
    _, split = run(toy(), protocol(), Store(store.root / "split"), batch_size=3)
    assert whole["correct"].tolist() == split["correct"].tolist()
    assert np.allclose(whole["joint_energy_adv"], split["joint_energy_adv"], atol=1e-5)
