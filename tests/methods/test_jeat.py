"""JEAT as reconstructed: adversarial training whose adversary and density are of the joint energy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.backbones import Classifier
from methods.errors import InputError
from methods.primitives.energy import joint_energy
from methods.primitives.modes import frozen
from methods.training.config import overlay
from methods.training.method import Batch, Inner, Method

MakeMethod = Callable[..., Method]
Network = Callable[..., Classifier]


@pytest.fixture
def inner(make_method: MakeMethod, network: Network, batch: Batch) -> Inner:
    return make_method("jeat").inner(network(), batch)


def energies(model: Classifier, x: Tensor) -> Tensor:
    return -model(x).exp().sum(1).log()


@pytest.mark.parametrize("positives", ["adversarial", "clean"])
@pytest.mark.parametrize("w_density", [1.0, 0.25])
def test_loss_is_the_formula(
    positives: str, w_density: float, make_method: MakeMethod, network: Network, batch: Batch, inner: Inner
) -> None:
    method = make_method("jeat", {"positives": positives, "w_density": w_density})
    losses = method.loss(network(), batch, inner)

    model = network()
    x_adv = inner["x_adv"]
    lowered = {"adversarial": x_adv, "clean": batch.x}[positives]
    adversarial = -model(x_adv).softmax(1)[range(len(batch.y)), batch.y].log().mean()
    density = energies(model, lowered).mean() - energies(model, inner["x_q"]).mean()
    torch.testing.assert_close(losses.total, adversarial + w_density * density, atol=1e-5, rtol=1e-5)
    terms = losses.terms
    torch.testing.assert_close(terms["energy_data"] - terms["energy_samples"], density, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(terms["energy_adv"], energies(model, x_adv).mean(), atol=1e-5, rtol=1e-5)
    assert (terms["energy_data"] is terms["energy_adv"]) == (positives == "adversarial")


def test_weight_1_is_the_likelihood_of_the_pair(
    make_method: MakeMethod, network: Network, batch: Batch, inner: Inner
) -> None:
    """CE(x_adv, y) + E(x_adv) = E(x_adv, y): -log p(x_adv, y) but for the constant."""
    total = make_method("jeat").loss(network(), batch, inner).total
    model = network()
    joint = joint_energy(model(inner["x_adv"]), batch.y).mean() - energies(model, inner["x_q"]).mean()
    torch.testing.assert_close(total, joint, atol=1e-5, rtol=1e-5)


def test_weight_0_is_adversarial_training(
    make_method: MakeMethod, network: Network, batch: Batch, inner: Inner
) -> None:
    jeat, pgd_at = make_method("jeat", {"w_density": 0.0}), make_method("pgd_at")
    gradients = []
    for method in (jeat, pgd_at):
        model = network()
        losses = method.loss(model, batch, inner)
        losses.total.backward()
        gradients.append((losses.total.detach(), [parameter.grad for parameter in model.parameters()]))
    (total, gradient), (expected, of_pgd_at) = gradients
    torch.testing.assert_close(total, expected)
    for one, other in zip(gradient, of_pgd_at, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_adversary_raises_the_joint_energy_of_labelled_images(
    make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    options: dict[str, Any] = {"negatives": {"sampler": {"steps": 0}}}
    inner = make_method("jeat", options).inner(trained, batch)
    with frozen(trained), torch.no_grad():
        before, after = (joint_energy(trained(x), batch.y).mean() for x in (batch.x, inner["x_adv"]))
    assert after > before + 1


def test_labelled_images_are_all_it_needs(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method("jeat"), network()
    assert not method.density
    alone = Batch(batch.x, batch.y, None, 0, 0, 0.0)
    inner = method.inner(model, alone)
    assert len(inner["x_q"]) == len(inner["x_adv"]) == 16
    assert method.loss(model, alone, inner).total.isfinite()


def test_the_attack_sees_running_statistics_and_leaves_them(
    make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    method = make_method("jeat", {"negatives": {"sampler": {"steps": 0}}, "attack": {"start": "zero"}})
    # In float64: in float32 a batch of another size turns the sign of a gradient that is nearly 0.
    trained.double()
    batch = replace(batch, x=batch.x.double(), x_density=None)
    before = {name: value.clone() for name, value in trained.named_buffers()}
    whole = method.inner(trained, batch)["x_adv"]
    half = method.inner(trained, replace(batch, x=batch.x[:8], y=batch.y[:8]))["x_adv"]
    assert all(torch.equal(value, before[name]) for name, value in trained.named_buffers())
    torch.testing.assert_close(whole[:8], half, atol=1e-6, rtol=0)


def test_the_attack_is_made_before_chains_move_the_statistics(
    make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    alone = make_method("jeat", {"negatives": {"sampler": {"steps": 0}}}).inner(trained, batch)["x_adv"]
    assert torch.equal(make_method("jeat").inner(trained, batch)["x_adv"], alone)


def test_positives_have_two_names(make_method: MakeMethod) -> None:
    with pytest.raises(InputError, match=r"options\.positives"):
        overlay(make_method("jeat").config, {"positives": "labelled"}, "options")
