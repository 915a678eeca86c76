"""Curves over radius and iterations against linear classifiers, whose curves are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.evaluation.runner import evaluate
from benchmark.metrics import sweep
from benchmark.results.entry import Measurement, unpack
from benchmark.results.store import Arrays, Store
from benchmark.specs.protocol import Protocol
from methods.errors import InputError

Protocols = Callable[..., Protocol]
EPS = sweep.Config().eps
STEPS = sweep.Config().steps


def run(
    made: Any, protocol: Protocol, store: Store, model: nn.Module | None = None, **arguments: Any
) -> tuple[Measurement, Arrays]:
    """Measure the sweep, and PGD-20 where the protocol has it."""
    results = evaluate(made.subject(model), made.dataset, protocol, store=store, progress=False, **arguments)
    measurement = results["sweep"]
    assert measurement.status == "done", measurement.error
    samples = store.samples(measurement)
    assert samples is not None
    return measurement, samples


def swept(protocol: Protocols, **fields: Any) -> Protocol:
    """Make a protocol that measures the sweep alone."""
    return protocol(**({"metrics": {"sweep": {}}} | fields))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_curve_of_a_linear_classifier_is_that_of_its_margins(
    toy: Any, protocol: Protocols, store: Store, norm: str
) -> None:
    made = toy(classes=2, images=40)
    if norm == "Linf":
        eps, margins = 0.02, made.margins(0.16).numpy()
    else:
        eps, w, y = 0.06, made.weight, made.dataset.test.labels
        gap = ((made.dataset.test.unit() - 0.5).flatten(1) @ (w[:, 0] - w[:, 1])) * (1 - 2 * y)
        margins = (gap / (w[:, 0] - w[:, 1]).norm()).numpy()
    measurement, samples = run(made, swept(protocol, threat=f"{norm}:{eps}"), store)
    for multiple in EPS:
        robust = margins > multiple * eps
        assert samples[f"correct_eps_{multiple:g}"].tolist() == robust.tolist()
        assert measurement.values[f"eps_{multiple:g}_accuracy"] == pytest.approx(100 * robust.mean())
    # One step of FGSM is enough for a linear classifier, and ten short ones are.
    for steps in (1, 10, 20, 50, 100):
        assert samples[f"correct_steps_{steps}"].tolist() == (margins > eps).tolist()
    assert measurement.values["unbounded_accuracy"] == 0
    exact = np.array([(margins > multiple * eps).mean() for multiple in EPS])
    assert exact[0] == 38 / 40
    assert 0 < exact[4] < exact[0]
    halved = np.interp(-exact[0] / 2, -exact, np.array(EPS) * eps)
    assert measurement.values["half_radius"] == pytest.approx(halved)


def test_series_and_verdicts_are_those_of_the_values(toy: Any, protocol: Protocols, store: Store) -> None:
    measurement, samples = run(toy(), swept(protocol, threat="Linf:8/255"), store)
    assert set(measurement.series) == {"eps", "eps_accuracy", "steps", "steps_accuracy"}
    # Exact multiples: 3/4 of 8/255 is 6/255, not nearly.
    assert measurement.series["eps"] == [multiple * 8 / 255 for multiple in EPS]
    assert measurement.series["steps"] == [1, 2, 5, 10, 20, 50, 100]
    assert measurement.series["eps_accuracy"] == [measurement.values[f"eps_{multiple:g}_accuracy"] for multiple in EPS]
    assert measurement.series["steps_accuracy"] == [measurement.values[f"steps_{steps}_accuracy"] for steps in STEPS]
    assert set(measurement.verdicts) == {name for name in measurement.values if name.endswith("_accuracy")}
    assert len(measurement.verdicts) == len(EPS) + len(STEPS) + 1
    packed = unpack(measurement.verdicts["eps_1.5_accuracy"], 24)
    assert packed.tolist() == samples["correct_eps_1.5"].tolist()
    assert set(samples) == {"index"} | {f"correct_{name.removesuffix('_accuracy')}" for name in measurement.verdicts}


def test_both_curves_pass_through_pgd20(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=60)
    # Such short steps that the start decides.
    both = protocol(metrics={"pgd20": {"step_size": 0.02}, "sweep": {"step_size": 0.02}})
    _, samples = run(made, both, store)
    pgd20 = store.samples(evaluate(made.subject(), made.dataset, both, store=store, progress=False)["pgd20"])
    assert pgd20 is not None
    assert samples["correct_eps_1"].tolist() == pgd20["correct"].tolist()
    assert samples["correct_steps_20"].tolist() == pgd20["correct"].tolist()
    assert samples["correct_steps_10"].tolist() != pgd20["correct"].tolist()


def test_radii_end_where_they_cover_the_cube(toy: Any, protocol: Protocols, store: Store) -> None:
    grid = {"sweep": {"eps": [0, 1, 3, 8], "steps": [1, 20]}}
    linf, samples = run(toy(), protocol(metrics=grid, threat="Linf:0.3"), store, limit=10)
    assert linf.series["eps"] == [0, 0.3, pytest.approx(0.9), 1]
    assert samples["correct_eps_8"].tolist() == samples["correct_unbounded"].tolist()
    l2, _ = run(toy(), protocol(metrics=grid, threat="L2:1.5"), store, limit=10)
    # 36 pixels: no two images are farther apart than 6.
    assert l2.series["eps"] == [0, 1.5, 4.5, 6]


def test_eps_of_zero_is_the_clean_accuracy(toy: Any, protocol: Protocols, store: Store) -> None:
    measurement, _ = run(toy(wrong=6), swept(protocol, threat="Linf:0"), store)
    assert measurement.series["eps_accuracy"] == [75] * len(EPS)
    assert measurement.series["steps_accuracy"] == [75] * len(STEPS)
    assert measurement.values["half_radius"] is None
    assert measurement.values["unbounded_accuracy"] == 0


class Blind(nn.Module):
    """A classifier whose gradient is zero everywhere."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(((x * 16).round() / 16).detach() + 0 * x)


def test_unbounded_attack_without_a_gradient_fails(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=20, wrong=0)
    measurement, _ = run(made, swept(protocol), store, Blind(made.model()))
    assert float(measurement.values["unbounded_accuracy"] or 0) > 20
    # FGSM stays at the image, and the others at their start.
    assert measurement.values["steps_1_accuracy"] == measurement.values["eps_0_accuracy"]
    assert len(set(measurement.series["steps_accuracy"][1:])) == 1


def test_verdicts_do_not_depend_on_batch_size_or_other_shards(toy: Any, protocol: Protocols, store: Store) -> None:
    made, short = toy(images=20), protocol(metrics={"sweep": {"eps": [0, 1, 2], "steps": [1, 5, 20]}})
    _, whole = run(made, short, store)
    _, split = run(made, short, Store(store.root / "split"), batch_size=3)
    _, part = run(made, short, Store(store.root / "part"), limit=10)
    for name, correct in whole.items():
        assert correct.tolist() == split[name].tolist()
        assert correct[:10].tolist() == part[name].tolist()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"eps": [1, 0]}, "ascend"),
        ({"eps": [0, 0, 1]}, "ascend"),
        ({"eps": [0, 2]}, "0 and 1 must be among"),
        ({"steps": [1, 10]}, "1 and 20 must be among"),
        ({"steps": [0, 1, 20]}, "greater than or equal to 1"),
        ({"radius_steps": 0}, "greater than or equal to 1"),
    ],
)
def test_grids_that_do_not_fit_are_refused(protocol: Protocols, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        protocol(metrics={"sweep": settings}).config("sweep")
