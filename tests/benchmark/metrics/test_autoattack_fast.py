"""The first look: what it breaks is broken, it never claims less robustness than is there, and it says what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.attacks.cascade import Cascade
from benchmark.evaluation.runner import evaluate
from benchmark.metrics import autoattack_fast
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, Store
from benchmark.specs.protocol import Protocol, default, load
from methods.errors import InputError

Protocols = Callable[..., Protocol]
THREAT = "Linf:0.03"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Thousands of tiny forward passes: threads only cost, and fewer of them show the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(autoattack_fast, "_CASCADE", Cascade(iterations=30, queries=200, precision="bfloat16"))
    yield
    torch.set_num_threads(threads)


def run(made: Any, protocol: Protocol, store: Store, model: nn.Module | None = None) -> tuple[Measurement, Arrays]:
    only = protocol.model_copy(update={"metrics": {"autoattack_fast": {}}})
    found = evaluate(made.subject(model), made.dataset, only, store=store, progress=False)["autoattack_fast"]
    assert found.status == "done", found.error
    samples = store.samples(found)
    assert samples is not None
    return found, samples


class Watched(nn.Module):
    """A classifier that notes how many images it saw in which precision, and whose autocast adds to a class."""

    def __init__(self, inner: nn.Module, lie: float = 0.0) -> None:
        super().__init__()
        self.inner, self.lie = inner, lie
        self.images = {True: 0, False: 0}

    def forward(self, x: Tensor) -> Tensor:
        low = torch.is_autocast_enabled(x.device.type)
        self.images[low] += len(x)
        logits = self.inner(x)
        return logits + self.lie * torch.eye(logits.shape[1])[0] if low else logits


def test_what_it_breaks_is_what_can_be_broken(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=30, wrong=2)
    model = Watched(made.model())
    found, samples = run(made, protocol(shard=30, threat=THREAT), store, model)
    margins = made.margins(0.03)
    broken = torch.from_numpy(samples["broken_by"] != 0)
    assert (broken <= (margins < 0.03)).all()
    assert (broken >= (margins < 0.028)).all()
    assert (samples["broken_by"] == -1).tolist() == (margins < 0).tolist()
    # The search is in bfloat16; float32 judges.
    assert model.images[True] > 5 * model.images[False]
    assert found.values["accuracy"] == pytest.approx(100 * float((~broken).float().mean()))
    assert found.values["max_perturbation"] <= 0.03 + 1e-5  # pyright: ignore[reportOperatorIssue]


def test_what_bfloat16_alone_breaks_is_refuted_and_attacked_on(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=12, wrong=0)
    found, samples = run(made, protocol(shard=12, threat=THREAT), store, Watched(made.model(), lie=100.0))
    robust = torch.from_numpy(samples["broken_by"] == 0)
    assert (robust >= (made.margins(0.03) > 0.03)).all()
    assert robust.any()
    others = made.dataset.test.labels != 0
    assert samples["refuted"][(robust & others).numpy()].all()
    assert found.values["refuted"] == int(samples["refuted"].sum()) > 0


def test_network_that_draws_noise_is_searched_as_it_is(toy: Any, protocol: Protocols, store: Store) -> None:
    class Noisy(Watched):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.01 * torch.randn(len(x), 4)

    made = toy(images=6)
    model = Noisy(made.model())
    found, _ = run(made, protocol(threat="Linf:0.2"), store, model)
    assert model.images[True] == 0
    assert any("searched in float32" in flag for flag in found.flags)


def test_it_says_that_it_is_not_the_standard(toy: Any, protocol: Protocols, store: Store) -> None:
    found, _ = run(toy(images=6), protocol(threat="Linf:0.2"), store)
    assert [flag for flag in found.flags if flag.startswith("not AutoAttack standard")]
    assert all("upper bound" in column.meaning for column in autoattack_fast.COLUMNS.values())


def test_too_few_classes_are_refused_before_any_work(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(classes=3)
    with pytest.raises(InputError, match="four logits"):
        evaluate(made.subject(), made.dataset, protocol(metrics={"autoattack_fast": {}}), store=store, progress=False)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "cifar10-jpeg"])
def test_protocols_differ_from_the_standard_ones_in_the_attack_alone(name: str) -> None:
    standard = load(default(name))
    fast = load(standard.id.replace("-v3", "-fast-v1"))
    assert (fast.role, standard.role) == ("custom", "standard")
    assert list(fast.metrics) == ["clean", "pgd20", "autoattack_fast"]
    for field in ("dataset", "threat", "noise", "shard", "seed"):
        assert getattr(fast, field) == getattr(standard, field)
    assert fast.config("pgd20") == standard.config("pgd20")
    assert fast.resolved["metrics"] == load("fast-v1", fast.threat).resolved["metrics"]
