"""EOT-PGD: PGD-20 itself without noise, and stronger than it with noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.evaluation.runner import evaluate
from benchmark.metrics import eot_pgd
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, Store
from benchmark.specs.protocol import Protocol

Protocols = Callable[..., Protocol]


def run(
    made: Any, protocol: Protocols, store: Store, model: nn.Module | None = None, eot: Any = None, **arguments: Any
) -> dict[str, tuple[Measurement, Arrays]]:
    """Measure PGD-20 and EOT-PGD."""
    threat = arguments.pop("threat", "Linf:0.02")
    metrics = {"pgd20": arguments.pop("pgd20", {}), "eot_pgd": eot or {}}
    both = protocol(metrics=metrics, threat=threat)
    results = evaluate(made.subject(model), made.dataset, both, store=store, progress=False, **arguments)
    found = {}
    for name, measurement in results.items():
        assert measurement.status == "done", measurement.error
        samples = store.samples(measurement)
        assert samples is not None
        found[name] = (measurement, samples)
    return found


class Noisy(nn.Module):
    """A classifier with noise in its logits, and apart from that in its gradient."""

    def __init__(self, inner: nn.Module, logits: float = 0.0, gradient: float = 0.0) -> None:
        super().__init__()
        self.inner, self.logits, self.gradient = inner, logits, gradient

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        if self.logits:
            logits = logits + self.logits * torch.randn_like(logits)
        if self.gradient:
            pull = self.gradient * torch.einsum("bchw,bchwk->bk", x, torch.randn(*x.shape, logits.shape[1]))
            logits = logits + pull - pull.detach()
        return logits


@pytest.mark.parametrize("batch_size", [None, 4])
def test_verdicts_without_noise_are_those_of_pgd20(
    toy: Any, protocol: Protocols, store: Store, batch_size: int | None
) -> None:
    made = toy(images=30)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 4)).eval()
    # So few and short steps that the start decides.
    short = {"steps": 3, "step_size": 0.1}
    found = run(made, protocol, store, network, pgd20=short, threat="Linf:0.01", batch_size=batch_size)
    (pgd20, theirs), (eot, ours) = found["pgd20"], found["eot_pgd"]
    assert 0 < float(theirs["correct"].mean()) < 1
    assert ours["correct"].tolist() == theirs["correct"].tolist()
    assert ours["perturbation"].tolist() == theirs["perturbation"].tolist()
    assert ours["wrong_share"].tolist() == (~theirs["correct"]).astype(float).tolist()
    assert eot.values["accuracy"] == pgd20.values["accuracy"]
    assert eot.values["single_pass_accuracy"] == pytest.approx(pgd20.values["accuracy"])
    assert eot.values["noisy_images"] == 0
    assert eot.flags == []


def test_an_average_without_noise_would_change_no_verdict(
    toy: Any, protocol: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short cut for models without noise saves time and nothing else."""
    made = toy()
    short = run(made, protocol, store)["eot_pgd"][1]
    monkeypatch.setattr(eot_pgd, "_NOISE", -1.0)
    (measurement, long) = run(made, protocol, Store(store.root / "long"))["eot_pgd"]
    assert measurement.values["noisy_images"] == 24
    assert long["correct"].tolist() == short["correct"].tolist()
    assert long["wrong_share"].tolist() == short["wrong_share"].tolist()


def test_verdict_on_noisy_logits_is_that_of_the_majority(toy: Any, protocol: Protocols, store: Store) -> None:
    made, noise = toy(classes=2, images=60), 0.5
    settings = {"samples": 1, "reevaluations": 101}
    measurement, samples = run(made, protocol, store, Noisy(made.model(), logits=noise), settings)["eot_pgd"]
    # PGD reaches the corner, where the difference of the logits is this and a pass is wrong with that probability.
    weight, y = made.weight, made.dataset.test.labels
    drift = (weight[:, 0] - weight[:, 1]).abs().sum()
    left = (made.margins(0.02) - 0.02) * drift
    chance = torch.special.ndtr(-left / (noise * 2**0.5)).numpy()
    assert np.abs(samples["wrong_share"] - chance).max() < 0.2
    assert float(np.mean(samples["wrong_share"])) == pytest.approx(float(chance.mean()), abs=0.02)
    clear = np.abs(chance - 0.5) > 0.2
    assert clear.sum() > 30
    assert samples["correct"][clear].tolist() == (chance < 0.5)[clear].tolist()
    assert samples["correct"].tolist() == (samples["wrong_share"] <= 0.5).tolist()
    assert measurement.values["single_pass_accuracy"] == pytest.approx(100 * (1 - samples["wrong_share"].mean()))
    assert measurement.values["noisy_images"] == len(y)
    assert measurement.flags == ["the model draws noise: a verdict is the majority of 101 forward passes"]


def test_average_finds_the_way_where_a_single_gradient_is_noise(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=20, wrong=0)
    noisy = Noisy(made.model(), gradient=8.0)
    found = run(made, protocol, store, noisy, {"samples": 40, "reevaluations": 1}, threat="Linf:0.03")
    (pgd20, _), (eot, samples) = found["pgd20"], found["eot_pgd"]
    assert samples["noisy"].all()
    assert float(eot.values["accuracy"] or 0) < float(pgd20.values["accuracy"] or 0) - 10


def test_noise_of_a_shard_does_not_depend_on_the_other_shards(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=20)
    noisy, few = Noisy(made.model(), logits=1.0), {"samples": 2, "reevaluations": 5}
    whole = run(made, protocol, store, noisy, few)["eot_pgd"][1]
    part = run(made, protocol, Store(store.root / "part"), noisy, few, limit=10)["eot_pgd"][1]
    assert 0 < float(whole["wrong_share"].mean()) < 1
    for name, outcomes in part.items():
        assert np.array_equal(whole[name][:10], outcomes)
