"""Transfer attacks between linear classifiers, whose outcome is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.evaluation import evidence
from benchmark.evaluation.runner import evaluate, prepare
from benchmark.metrics import transfer
from benchmark.models import reference
from benchmark.models.subject import Subject
from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, Store, key
from benchmark.specs.protocol import Protocol
from methods.data import load
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

Protocols = Callable[..., Protocol]
ATTACKS = transfer.Config().attacks


def other(made: Any, seed: int = 1) -> Subject:
    """Make another classifier of the toy's images, partly like the first."""
    model = made.model()
    with torch.no_grad():
        model.weight += torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(seed))
    return replace(made.subject(model), name="other")


def run(
    made: Any,
    protocol: Protocols,
    store: Store,
    surrogate: Subject | None,
    threat: str = "Linf:0.02",
    settings: dict[str, Any] | None = None,
    **arguments: Any,
) -> tuple[Measurement, Arrays]:
    """Measure the transfer attacks alone."""
    only = protocol(metrics={"transfer": settings or {}}, threat=threat)
    results = evaluate(
        made.subject(), made.dataset, only, store=store, surrogate=surrogate, progress=False, **arguments
    )
    measurement = results["transfer"]
    assert measurement.status == "done", measurement.error
    samples = store.samples(measurement)
    assert samples is not None
    return measurement, samples


def test_transfer_between_two_linear_classifiers_is_exact(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(classes=2, images=60)
    surrogate, x, y = other(made), made.dataset.test.unit(), made.dataset.test.labels
    measurement, samples = run(made, protocol, store, surrogate, threat="Linf:0.05")
    # Every attack goes to the corner that the sign of the surrogate's weights points to.
    weight = surrogate.model.get_parameter("weight").detach()
    away = (weight[:, 1] - weight[:, 0]).sign() * (1 - 2 * y)[:, None]
    x_adv = x + 0.05 * away.view_as(x)
    clean = made.model()(x).argmax(1) == y
    robust = clean & (made.model()(x_adv).argmax(1) == y)
    fooled = (surrogate.model(x).argmax(1) == y) & (surrogate.model(x_adv).argmax(1) == y)
    assert 0 < int(robust.sum()) < int(clean.sum())
    for name in ATTACKS:
        assert samples[f"correct_{name}"].tolist() == robust.tolist()
        assert samples[f"surrogate_correct_{name}"].tolist() == fooled.tolist()
        assert measurement.values[f"{name}_accuracy"] == pytest.approx(100 * float(robust.float().mean()))
    assert measurement.values["worst_accuracy"] == measurement.values["pgd_accuracy"]
    assert measurement.values["clean_accuracy"] == pytest.approx(100 * 58 / 60)
    assert measurement.values["surrogate"] == "other"
    assert measurement.values["surrogate_digest"] == surrogate.digest
    assert measurement.flags == []
    kept = evidence.decode(x, samples, ThreatModel.parse("Linf:0.05"))
    broken = clean & ~robust
    assert ((samples["encoding"] != evidence.NONE) == broken.numpy()).all()
    assert torch.allclose(kept[broken], x_adv[broken], atol=1e-5)


def test_worst_case_is_per_image_and_no_average() -> None:
    correct = {
        "correct_clean": np.array([True, True, True, False]),
        "correct_pgd": np.array([True, False, True, False]),
        "correct_mi_fgsm": np.array([False, True, True, False]),
        "surrogate_correct_pgd": np.array([False, False, False, False]),
    }
    found = transfer.verdicts(correct)
    assert found["worst_accuracy"].tolist() == [False, False, True, False]
    assert set(found) == {"clean_accuracy", "pgd_accuracy", "mi_fgsm_accuracy", "worst_accuracy"}


def test_image_that_is_wrong_when_clean_stays_wrong(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(classes=2, wrong=24)
    helpful = other(made)
    with torch.no_grad():
        helpful.model.get_parameter("weight").copy_(-made.weight)
    # What breaks this surrogate, whose labels are right, corrects the subject.
    _, samples = run(made, protocol, store, helpful, threat="Linf:0.2")
    assert samples["surrogate_correct_clean"].all()
    assert not samples["surrogate_correct_pgd"].any()
    assert not any(samples[f"correct_{name}"].any() for name in ATTACKS)
    assert (samples["encoding"] == evidence.NONE).all()


def test_surrogate_that_is_the_subject_is_flagged_and_is_a_white_box(
    toy: Any, protocol: Protocols, store: Store
) -> None:
    made = toy(classes=2, images=40)
    measurement, samples = run(made, protocol, store, made.subject())
    assert samples["correct_vni_fgsm"].tolist() == (made.margins(0.02) > 0.02).tolist()
    assert any("the surrogate is the subject itself" in flag for flag in measurement.flags)


def test_attacks_that_fail_on_the_surrogate_are_flagged(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy()
    measurement, _ = run(made, protocol, store, other(made), threat="Linf:0.0001", settings={"attacks": ["mi_fgsm"]})
    (flag,) = measurement.flags
    assert flag.startswith("the attacks leave the surrogate itself ")
    assert f"{measurement.values['surrogate_mi_fgsm_accuracy']:.2f} %" in flag


def test_settings_reach_the_attacks(toy: Any, protocol: Protocols, store: Store) -> None:
    made, surrogate = toy(images=10), other(toy(images=10))
    calls: list[int] = []
    surrogate.model.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    settings = {"attacks": ["vmi_fgsm"], "steps": 3, "neighbours": 2}
    run(made, protocol, store, surrogate, settings=settings)
    # The clean images, 3 steps of 1 gradient and 2 neighbours, and the attacked ones.
    assert len(calls) == 1 + 3 * (1 + 2) + 1


def test_verdicts_do_not_depend_on_batch_size_or_other_shards(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=20)
    short = {"steps": 4, "neighbours": 3, "pgd_steps": 4}
    _, whole = run(made, protocol, store, other(made), settings=short)
    _, split = run(made, protocol, Store(store.root / "split"), other(made), batch_size=3, settings=short)
    _, part = run(made, protocol, Store(store.root / "part"), other(made), limit=10, settings=short)
    for name in (f"correct_{attack}" for attack in ATTACKS):
        assert whole[name].tolist() == split[name].tolist()
        assert whole[name][:10].tolist() == part[name].tolist()


def test_another_surrogate_is_another_key(toy: Any, protocol: Protocols, store: Store) -> None:
    made, only = toy(), protocol(metrics={"transfer": {}})

    def found(surrogate: Subject | None) -> str:
        (data,) = prepare(made.subject(), made.dataset, only, store=store, surrogate=surrogate)
        return key(data.identity)

    first = other(made)
    keys = [found(first), found(other(made, 2)), found(replace(first, code="another")), found(None)]
    assert len(set(keys)) == 4
    assert found(other(made)) == keys[0]


def test_without_a_surrogate_it_is_the_reference_network(toy: Any, protocol: Protocols, store: Store) -> None:
    digits = load("digits")
    network = reference.reference("digits", torch.device("cpu"))
    torch.manual_seed(0)
    subject = replace(network, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), digest="0" * 64)
    only = protocol(metrics={"transfer": {"attacks": ["mi_fgsm"]}}, threat="Linf:0.15")
    result = evaluate(subject, digits, only, store=store, limit=10, progress=False)["transfer"]
    assert result.status == "done", result.error
    assert result.values["surrogate_digest"] == network.digest
    assert float(result.values["surrogate_clean_accuracy"] or 0) >= 90
    assert float(result.values["surrogate_mi_fgsm_accuracy"] or 0) < 50


def test_no_surrogate_and_no_reference_network_is_a_clear_failure(toy: Any, protocol: Protocols, store: Store) -> None:
    made, only = toy(), protocol(metrics={"transfer": {}})
    result = evaluate(made.subject(), made.dataset, only, store=store, progress=False)["transfer"]
    assert result.status == "failed"
    assert "no reference network for toy" in str(result.error)


def test_surrogate_of_other_images_or_classes_is_a_clear_failure(toy: Any, protocol: Protocols, store: Store) -> None:
    made, only = toy(), protocol(metrics={"transfer": {}})
    for surrogate in (toy(classes=5).subject(), replace(made.subject(), image_shape=(3, 6, 6))):
        result = evaluate(made.subject(), made.dataset, only, store=store, surrogate=surrogate, progress=False)
        assert result["transfer"].status == "failed"
        assert "The surrogate toy takes images" in str(result["transfer"].error)


def test_surrogate_is_frozen_meanwhile_and_given_back_as_it_was(toy: Any, protocol: Protocols, store: Store) -> None:
    made = toy(images=10)
    surrogate = other(made)
    surrogate.model.train()
    seen: set[tuple[bool, bool]] = set()
    weight = surrogate.model.get_parameter("weight")
    surrogate.model.register_forward_hook(
        lambda module, inputs, output: seen.add((module.training, weight.requires_grad))
    )
    run(made, protocol, store, surrogate, settings={"attacks": ["pgd"]})
    assert seen == {(False, False)}
    assert surrogate.model.training
    assert weight.requires_grad


@pytest.mark.parametrize("attacks", [["pgd", "pgd"], [], ["fgsm"]])
def test_settings_that_make_no_sense_are_refused(protocol: Protocols, attacks: list[str]) -> None:
    with pytest.raises(InputError, match="attacks"):
        protocol(metrics={"transfer": {"attacks": attacks}}).config("transfer")
