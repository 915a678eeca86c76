"""AutoAttack through the harness: the package's own verdicts, and nothing of the process changed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn

from benchmark.attacks.cascade import STANDARD
from benchmark.evaluation import evidence
from benchmark.evaluation.runner import evaluate
from benchmark.metrics import autoattack
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, Store
from benchmark.specs.protocol import Protocol
from methods.errors import InputError
from methods.primitives.random import derive
from methods.primitives.threat import ThreatModel

Protocols = Callable[..., Protocol]

HOPELESS = "Linf:0.2"
"""Breaks every image of the toy, so that APGD alone runs and AutoAttack takes no time."""


def run(
    made: Any, protocol: Protocol, store: Store, model: nn.Module | None = None, **arguments: Any
) -> tuple[Measurement, Arrays]:
    """Measure AutoAttack alone and demand success."""
    only = protocol.model_copy(update={"metrics": {"autoattack": {}}})
    results = evaluate(made.subject(model), made.dataset, only, store=store, progress=False, **arguments)
    measurement = results["autoattack"]
    assert measurement.status == "done", measurement.error
    samples = store.samples(measurement)
    assert samples is not None
    return measurement, samples


@pytest.mark.parametrize(("threat", "batch_size"), [("Linf:0.02", None), ("Linf:0.03", 3)])
def test_every_verdict_agrees_with_pyautoattack_called_directly(
    toy: Any,
    protocol: Protocols,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    cut_autoattack: Callable[[AutoAttack], None],
    threat: str,
    batch_size: int | None,
) -> None:
    made = toy(images=8, wrong=2)
    measurement, samples = run(made, protocol(shard=8, threat=threat), store, batch_size=batch_size)

    x, y = made.dataset.test.unit(), made.dataset.test.labels
    norm, _, eps = threat.partition(":")
    with torch.random.fork_rng(), caplog.at_level(logging.DEBUG, "auto-attack"):
        adversary = AutoAttack(
            made.model(),
            norm="Linf" if norm == "Linf" else "L2",
            eps=float(eps),
            seed=derive(0, "autoattack", 0),
            device="cpu",
            version="standard",
        )
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3
        cut_autoattack(adversary)
        _, y_adv = adversary.run_standard_evaluation(x, y, batch_size=batch_size or 8)

    robust = y_adv == y
    assert 0 < int(robust.sum()) < 6
    assert (samples["broken_by"] == 0).tolist() == robust.tolist()
    # The image of a broken verdict may be an earlier one than the package returns.
    ball = ThreatModel.parse(threat)
    decoded = torch.from_numpy(samples["delta"]).float() * (ball.radius / evidence.LEVELS)
    shown = torch.where(
        torch.from_numpy(samples["encoding"] == evidence.EXACT)[:, None, None, None],
        torch.from_numpy(samples["exact"]),
        (x + decoded).clamp(0, 1),
    )
    assert (made.model()(shown).argmax(1) == y).tolist() == robust.tolist()
    assert float(samples["perturbation"].max()) <= ball.radius + 1e-5
    assert (samples["perturbation"] > 0).tolist() == (samples["broken_by"] > 0).tolist()
    # What the package logs after each attack is what was overheard.
    logged = [message for message in caplog.messages if message.startswith("robust accuracy after")]
    for name, attack in zip(STANDARD, ("APGD-CE", "APGD-T", "FAB-T", "SQUARE"), strict=True):
        (line,) = [message for message in logged if f"after {attack}:" in message]
        accuracy = measurement.values[f"after_{name}"]
        assert isinstance(accuracy, float)
        assert f"{accuracy:.2f}%" in line
        assert isinstance(seconds := measurement.values[f"seconds_{name}"], float)
        assert seconds > 0
        column = autoattack.COLUMNS[f"cascade_{name}"]
        assert measurement.values[column.value] == accuracy
        assert column.meaning.startswith("cascade: ")
    assert (samples["broken_by"] == -1).tolist() == [True, True, *[False] * 6]
    assert measurement.values["clean_accuracy"] == pytest.approx(100 * 6 / 8)
    assert measurement.values["accuracy"] == pytest.approx(100 * int(robust.sum()) / 8)
    assert measurement.values["batch_size"] == (batch_size or 8)


@pytest.mark.usefixtures("cut_autoattack")
def test_verdicts_on_a_linear_classifier_are_those_of_the_closed_form(
    toy: Any, protocol: Protocols, store: Store
) -> None:
    made = toy(images=40, wrong=3)
    margins = made.margins(0.02)
    assert float((margins - 0.02).abs().min()) > 1e-5
    _, samples = run(made, protocol(shard=40, threat="Linf:0.02"), store)
    assert (samples["broken_by"] == 0).tolist() == (margins > 0.02).tolist()
    assert (samples["broken_by"] == -1).tolist() == (margins < 0).tolist()


def test_norm_of_the_threat_model_reaches_the_attacks(toy: Any, protocol: Protocols, store: Store) -> None:
    _, samples = run(toy(), protocol(threat="L2:1"), store)
    attacked = samples["perturbation"][samples["broken_by"] == 1]
    assert len(attacked) == 22
    assert attacked.min() > 0.8
    assert attacked.max() <= 1 + 1e-5


def test_verdicts_do_not_depend_on_the_other_shards(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=20, wrong=0)
    _, whole = run(made, protocol(threat="Linf:0.08"), store)
    _, part = run(made, protocol(threat="Linf:0.08"), Store(store.root / "part"), limit=10)
    assert whole["broken_by"][:10].tolist() == part["broken_by"].tolist()
    assert whole["perturbation"][:10].tolist() == part["perturbation"].tolist()


def test_process_is_left_as_it_was(toy: Any, protocol: Protocols, store: Store) -> None:
    def tracer(frame: Any, event: str, argument: Any) -> None:
        return None

    logger = logging.getLogger("auto-attack")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    before, state = sys.gettrace(), torch.random.get_rng_state()
    counters = dict(checks.funcs)
    sys.settrace(tracer)
    try:
        run(toy(), protocol(threat=HOPELESS), store)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert logger.handlers == []
    assert logger.propagate
    assert checks.funcs == counters


class Wrapped(nn.Module):
    """A classifier with something done to its outputs or inputs."""

    def __init__(self, inner: nn.Module, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.inner, x)


def noisy(inner: nn.Module, x: Tensor) -> Tensor:
    """Draw noise in the forward pass."""
    return inner(x) + 1e-3 * torch.randn(len(x), 1)


def probable(inner: nn.Module, x: Tensor) -> Tensor:
    """Return probabilities."""
    return inner(x).softmax(1)


def optimising(inner: nn.Module, x: Tensor) -> Tensor:
    """Take a gradient in the forward pass."""
    with torch.enable_grad():
        purified = x.detach().requires_grad_()
        torch.autograd.grad(inner(purified).sum(), purified)
    return inner(x)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (noisy, "it seems to be a randomized defense!"),
        (probable, "it seems that the output is a probability distribution"),
        (optimising, "it seems to be a dynamic defense!"),
    ],
)
def test_warnings_of_the_package_become_flags(
    toy: Any, protocol: Protocols, store: Store, change: Any, warning: str
) -> None:
    made = toy()
    measurement, _ = run(made, protocol(threat=HOPELESS), store, Wrapped(made.model(), change))
    (flag,) = measurement.flags
    assert flag.startswith(warning)
    assert flag.endswith("(x3)")
    # Flags are stored with the shards, and one subject does not taint the next.
    for path in store.root.rglob("measurement-*.json"):
        path.unlink()
    again, _ = run(made, protocol(threat=HOPELESS), store, Wrapped(made.model(), change))
    assert again.flags == measurement.flags
    clean, _ = run(made, protocol(threat=HOPELESS), Store(store.root / "clean"))
    assert clean.flags == []


@pytest.mark.usefixtures("cut_autoattack")
def test_square_that_helps_is_flagged_once_over_all_images(toy: Any, protocol: Protocols, store: Store) -> None:
    """Rounding to 64 levels leaves no gradient; only Square still finds its way."""
    made = toy(images=12, wrong=0)
    rounded = Wrapped(made.model(), lambda inner, x: inner((x * 64).round() / 64))
    measurement, samples = run(made, protocol(shard=12, threat="Linf:0.05"), store, rounded)
    assert (samples["broken_by"] == 4).any()
    values = measurement.values
    helped = float(values["after_fab_t"] or 0) - float(values["after_square"] or 0)
    about_square = [flag for flag in measurement.flags if "Square" in flag]
    assert about_square == [f"Square lowered the accuracy by {helped:.2f} points below the gradient attacks (masking?)"]
    assert any("points with zero gradient" in flag for flag in measurement.flags)


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_are_refused_before_any_work(toy: Any, protocol: Protocols, store: Store, classes: int) -> None:
    made = toy(classes=classes)
    only = protocol(metrics={"autoattack": {}})
    with pytest.raises(InputError, match=rf"four logits .* there are {classes} classes; .* --metrics clean,pgd20"):
        evaluate(made.subject(), made.dataset, only, store=store, progress=False)
    assert not store.root.exists()


@pytest.mark.parametrize("classes", [4, 12])
def test_attacks_are_as_long_as_the_standard_s_with_as_many_targets_as_other_classes_up_to_nine(
    toy: Any, protocol: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    seen: list[tuple[int, ...]] = []
    spent: list[tuple[int, ...]] = []
    own = AutoAttack.run_standard_evaluation

    def spying(adversary: AutoAttack, *images: Tensor, **options: Any) -> Any:
        seen.append((adversary.apgd_targeted.n_target_classes, adversary.fab.n_target_classes))
        spent.append((adversary.apgd.n_iter, adversary.apgd_targeted.n_iter, adversary.fab.n_iter))
        assert adversary.square.n_queries == 5000
        return own(adversary, *images, **options)

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", spying)
    run(toy(classes=classes), protocol(threat=HOPELESS), store, limit=10)
    assert seen == [(min(9, classes - 1),) * 2]
    assert spent == [(100, 100, 100)], "the standard iterations"


@pytest.mark.parametrize("wrong_distance", [0.21, float("nan")])
def test_perturbation_outside_the_threat_model_fails_the_metric(
    toy: Any, protocol: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch, wrong_distance: float
) -> None:
    monkeypatch.setattr(ThreatModel, "distance", lambda threat, x_adv, x: torch.full((len(x),), wrong_distance))
    made = toy()
    only = protocol(metrics={"autoattack": {}}, threat=HOPELESS)
    result = evaluate(made.subject(), made.dataset, only, store=store, progress=False)["autoattack"]
    assert result.status == "failed"
    assert "left the threat model" in str(result.error)


def test_clean_errors_are_never_attacked(toy: Any, protocol: Protocols, store: Store) -> None:
    measurement, samples = run(toy(wrong=24), protocol(), store)
    assert samples["broken_by"].tolist() == [-1] * 24
    assert measurement.values["accuracy"] == 0
    assert measurement.values["seconds_apgd_ce"] == 0
