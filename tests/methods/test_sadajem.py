"""SADA-JEM's update: the gradient at w + e, and the statistics of the pass at w."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.backbones import Classifier
from methods.primitives.modes import fixed_statistics
from methods.training.config import TrainConfig
from methods.training.method import Batch, Inner, Losses, Method
from methods.training.optim import Updater, optimizer

Network = Callable[..., Classifier]


def weights_of(model: Classifier) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def statistics_of(model: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def gradients_at(model: Classifier, losses: Losses) -> list[Tensor]:
    return [gradient.detach() for gradient in torch.autograd.grad(losses.total, list(model.parameters()))]


@pytest.fixture
def inner(make_method: Callable[..., Method], network: Network, batch: Batch) -> Inner:
    return make_method("sadajem").inner(network(), batch)


@pytest.mark.parametrize(("sam", "rate"), [({}, 0.01), ({"rho": 0.5}, 0.1), ({"rho": 0.05, "adaptive": False}, 0.1)])
def test_step_is_down_the_gradient_at_the_worst_weights_nearby(
    sam: dict[str, Any], rate: float, make_method: Callable[..., Method], network: Network, batch: Batch, inner: Inner
) -> None:
    """w <- w - rate (grad L(w + e) + decay w), e of one formula over all tensors: Foret et al., Kwon et al."""
    method, model = make_method("sadajem", {"sam": sam}), network()
    settings = TrainConfig(lr=rate, momentum=0.0, weight_decay=0.01)
    losses = method.descend(
        model, batch, Updater(optimizer(model.parameters(), settings), None), lambda: method.loss(model, batch, inner)
    )

    by_hand = network()
    at_w = method.loss(by_hand, batch, inner)
    torch.testing.assert_close(losses.total, at_w.total)
    w, g = weights_of(by_hand), gradients_at(by_hand, at_w)
    adaptive, rho = sam.get("adaptive", True), sam.get("rho", 2.0)
    scale = [each.abs() if adaptive else torch.ones_like(each) for each in w]
    norm = torch.cat([(s * each).flatten() for s, each in zip(scale, g, strict=True)]).norm()
    with torch.no_grad():
        for parameter, s, each in zip(by_hand.parameters(), scale, g, strict=True):
            parameter += rho * s**2 * each / norm
    climbed = gradients_at(by_hand, method.loss(by_hand, batch, inner))
    assert any(not torch.allclose(there, here, atol=1e-3) for there, here in zip(climbed, g, strict=True))
    for after, before, there in zip(model.parameters(), w, climbed, strict=True):
        torch.testing.assert_close(after.detach(), before - rate * (there + 0.01 * before), atol=1e-5, rtol=1e-4)


def test_running_statistics_are_those_of_the_first_pass(
    make_method: Callable[..., Method], network: Network, batch: Batch, inner: Inner
) -> None:
    method, model, first = make_method("sadajem"), network(), network()
    update = Updater(optimizer(model.parameters(), TrainConfig(lr=0.1)), None)
    method.descend(model, batch, update, lambda: method.loss(model, batch, inner))
    method.loss(first, batch, inner)
    for name, value in statistics_of(first).items():
        assert torch.equal(model.get_buffer(name), value), name
    assert not all(torch.equal(*pair) for pair in zip(model.buffers(), network().buffers(), strict=True))
    # and the flags are given back
    method.loss(model, batch, inner)
    assert not torch.equal(model.get_buffer("network.norm.running_mean"), first.get_buffer("network.norm.running_mean"))


def test_both_passes_see_the_same_images_and_the_chains_run_once(
    make_method: Callable[..., Method], network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, model = make_method("sadajem"), network()
    seen: list[tuple[Batch, Inner]] = []
    chains: list[Inner] = []
    loss, inner = method.loss, method.inner

    def watched_loss(model: Classifier, batch: Batch, inner: Inner) -> Losses:
        seen.append((batch, inner))
        return loss(model, batch, inner)

    def watched_inner(model: Classifier, batch: Batch) -> Inner:
        chains.append(inner(model, batch))
        return chains[-1]

    monkeypatch.setattr(method, "loss", watched_loss)
    monkeypatch.setattr(method, "inner", watched_inner)
    method.step(model, batch, Updater(optimizer(model.parameters(), TrainConfig()), None))
    assert len(chains) == 1
    assert len(seen) == 2
    assert all(each[0] is batch and each[1] is chains[0] for each in seen)


def test_radius_0_is_plain_descent(
    make_method: Callable[..., Method], network: Network, batch: Batch, inner: Inner
) -> None:
    ends = []
    for name, options in (("sadajem", {"sam": {"rho": 0.0}}), ("jempp", {})):
        method, model = make_method(name, options), network()
        update = Updater(optimizer(model.parameters(), TrainConfig(lr=0.1)), None)
        method.descend(model, batch, update, lambda method=method, model=model: method.loss(model, batch, inner))
        ends.append(weights_of(model))
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_the_climb_raises_the_loss(
    make_method: Callable[..., Method], network: Network, batch: Batch, inner: Inner
) -> None:
    method, model = make_method("sadajem"), network()
    update = Updater(optimizer(model.parameters(), TrainConfig()), None)
    losses = method.loss(model, batch, inner)
    update.gradient(losses.total)
    with method.config.sam.climbed(model.parameters()), fixed_statistics(model):
        assert method.loss(model, batch, inner).total > losses.total
    torch.testing.assert_close(method.loss(model, batch, inner).total, losses.total)
