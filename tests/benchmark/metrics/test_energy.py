"""Energy gaps: sign, size, and the attack they share with PGD-20."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.evaluation.runner import evaluate
from benchmark.results.store import Arrays, Store
from benchmark.specs.protocol import Protocol

Protocols = Callable[..., Protocol]


def run(made: Any, protocol: Protocol, store: Store, **arguments: Any) -> tuple[dict[str, Any], Arrays]:
    """Measure energies alone."""
    results = evaluate(
        made.subject(), made.dataset, protocol, metrics=["energy"], store=store, progress=False, **arguments
    )
    samples = store.samples(results["energy"])
    assert samples is not None
    return results["energy"].values, samples


def test_gap_is_clean_minus_adversarial_of_the_true_class(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(classes=2, images=30)
    values, samples = run(made, protocol(threat="Linf:0.02"), store)
    # Every pixel moves by eps against w_y - w_other: E(x,y) - E(x_adv,y) = -eps * sum w_y sign(w_y - w_other).
    y = made.dataset.test.labels
    own, other = made.weight[:, y], made.weight[:, 1 - y]
    expected = (-0.02 * (own * (own - other).sign()).sum(0)).numpy()
    gap = samples["joint_energy"] - samples["joint_energy_adv"]
    assert np.allclose(gap, expected, atol=1e-5)
    assert values["energy_gap_mean"] == pytest.approx(expected.mean(), abs=1e-5)
    assert values["energy_gap_mean"] < 0
    assert values["energy_gap_std"] == pytest.approx(expected.std(ddof=1), abs=1e-5)
    assert values["energy_gap_abs_mean"] == pytest.approx(np.abs(expected).mean(), abs=1e-5)
    spread = samples["joint_energy"].std(ddof=1)
    assert values["energy_gap_scaled"] == pytest.approx(expected.mean() / spread, rel=1e-3)


def test_energies_of_clean_images_follow_their_definitions(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy()
    values, samples = run(made, protocol(), store)
    with torch.no_grad():
        logits = made.model()(made.dataset.test.unit())
    joint = -logits[torch.arange(24), made.dataset.test.labels]
    marginal = -logits.exp().sum(1).log()
    assert np.allclose(samples["joint_energy"], joint.numpy(), atol=1e-5)
    assert np.allclose(samples["marginal_energy"], marginal.numpy(), atol=1e-5)
    gap = samples["marginal_energy"] - samples["marginal_energy_adv"]
    assert values["marginal_energy_gap_mean"] == pytest.approx(gap.mean(), abs=1e-6)
    assert values["marginal_energy_clean_mean"] == pytest.approx(float(marginal.mean()), abs=1e-5)


@pytest.mark.parametrize("order", [("pgd20", "energy"), ("energy", "pgd20")])
def test_images_are_attacked_once_for_both_metrics(
    toy: Any, protocol: Protocols, store: Store, order: tuple[str, str]
) -> None:
    model, alone = toy().model(), toy().model()
    samples = []
    for metric in order:
        results = evaluate(
            toy().subject(model), toy().dataset, protocol(), metrics=[metric], store=store, progress=False
        )
        samples.append(store.samples(results[metric]))
    run_alone = Store(store.root / "alone")
    evaluate(toy().subject(alone), toy().dataset, protocol(), metrics=["pgd20"], store=run_alone, progress=False)
    assert model.forwards == alone.forwards
    first, second = samples
    assert first is not None
    assert second is not None
    assert first["joint_energy_adv"].tolist() == second["joint_energy_adv"].tolist()


def test_one_image_has_no_deviation(toy: Any, protocol: Protocols, store: Store) -> None:
    values, _ = run(toy(), protocol(), store, limit=1)
    assert values["energy_gap_std"] is None
    assert values["energy_gap_scaled"] is None
    assert values["energy_gap_mean"] is not None
