"""WEAT's weights: more where the energy is near 0, and no gradient through them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods.backbones import Classifier
from methods.errors import InputError
from methods.training.config import overlay
from methods.training.method import Batch, Inner, Method

MakeMethod = Callable[..., Method]
Network = Callable[..., Classifier]


@pytest.fixture
def inner(make_method: MakeMethod, trained: Classifier, batch: Batch) -> Inner:
    return make_method("weat").inner(trained, batch)


def parts(model: Classifier, batch: Batch, x_adv: Tensor, variant: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return energy, cross-entropy and divergence, each image's, in the letters of the paper."""
    logits, logits_adv = model(batch.x), model(x_adv)
    p, q = logits.softmax(1), logits_adv.softmax(1)
    classified = q if variant == "adversarial" else p
    divergence = (p * (p.log() - q.log())).sum(1)
    return -logits.exp().sum(1).log(), -classified[range(len(batch.y)), batch.y].log(), divergence


@pytest.mark.parametrize("variant", ["adversarial", "natural"])
@pytest.mark.parametrize("beta", [6.0, 0.5])
def test_loss_is_the_formula(
    variant: str, beta: float, make_method: MakeMethod, network: Network, batch: Batch, inner: Inner
) -> None:
    losses = make_method("weat", {"variant": variant, "beta": beta}).loss(network(), batch, inner)
    energy, ce, divergence = parts(network(), batch, inner["x_adv"], variant)
    weight = 1 / (1 + energy.abs().exp()).log()
    torch.testing.assert_close(losses.total, (weight * (ce + beta * divergence)).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.terms["weight"], weight.mean().detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.terms["energy_clean"], energy.mean(), atol=1e-5, rtol=1e-5)
    assert losses.terms["clean"] != losses.terms["adversarial"]


@pytest.mark.parametrize("variant", ["adversarial", "natural"])
def test_weights_pass_no_gradient(
    variant: str, make_method: MakeMethod, network: Network, batch: Batch, inner: Inner
) -> None:
    model = network()
    make_method("weat", {"variant": variant}).loss(model, batch, inner).total.backward()
    found = [parameter.grad for parameter in model.parameters()]

    def gradient(detached: bool) -> list[Tensor]:
        reference = network()
        energy, ce, divergence = parts(reference, batch, inner["x_adv"], variant)
        energy = energy.detach() if detached else energy
        total = ((ce + 6 * divergence) / (1 + energy.abs().exp()).log()).mean()
        return list(torch.autograd.grad(total, list(reference.parameters())))

    for one, other in zip(found, gradient(detached=True), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    attached = gradient(detached=False)
    assert any(
        not torch.allclose(one, other, atol=1e-2) for one, other in zip(found, attached, strict=True) if one is not None
    )


def test_weight_is_largest_at_energy_0_and_one_over_large_energies(
    make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """1 / log 2 = 1.44 at E = 0 and 1 / |E| far away (energy-methods.md 4.2), whichever sign E has."""
    method = make_method("weat")
    found = {}
    for energy in (0.0, 100.0, -100.0, 2000.0):
        # Ten equal logits c have the energy -c - log 10.
        constant = torch.full((len(batch.x), 10), -energy) - torch.tensor(10.0).log()
        model = network()
        model.forward = lambda x, constant=constant: constant
        found[energy] = method.loss(model, batch, {"x_adv": batch.x}).terms["weight"].item()
    assert found == pytest.approx({0.0: 1.4427, 100.0: 0.01, -100.0: 0.01, 2000.0: 0.0005}, rel=1e-4)


def test_without_room_the_loss_is_a_weighted_cross_entropy(
    make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    method = make_method("weat", threat="Linf:0")
    inner = method.inner(network(), batch)
    energy, ce, _ = parts(network(), batch, batch.x, "natural")
    expected = (ce / (1 + energy.abs().exp()).log()).mean()
    torch.testing.assert_close(method.loss(network(), batch, inner).total, expected, atol=1e-5, rtol=1e-5)


def test_the_attack_is_that_of_trades(make_method: MakeMethod, trained: Classifier, batch: Batch) -> None:
    step = {"attack": {"steps": 3, "step_size": 0.25}}
    weat, trades = (make_method(name, step).inner(trained, batch)["x_adv"] for name in ("weat", "trades"))
    assert torch.equal(weat, trades)


def test_impossible_options(make_method: MakeMethod) -> None:
    config = make_method("weat").config
    with pytest.raises(InputError, match=r"options\.beta must not be negative, not -1\.0"):
        overlay(config, {"beta": -1.0}, "options")
    with pytest.raises(InputError, match=r"options\.variant"):
        overlay(config, {"variant": "WEAT_adv"}, "options")
