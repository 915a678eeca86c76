"""AWP's update: what is computed where, what moves once, and any method inside."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.backbones import Classifier
from methods.errors import InputError
from methods.training.config import TrainConfig
from methods.training.method import Batch, Losses, Method
from methods.training.optim import Updater, optimizer

MakeMethod = Callable[..., Method]
Network = Callable[[], Classifier]
BASES = ["pgd_at", "trades", "mart"]


def updater(model: nn.Module) -> Updater:
    return Updater(optimizer(model.parameters(), TrainConfig(lr=0.1, weight_decay=0.01)), None)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def descend(method: Method, model: nn.Module, batch: Batch, update: Updater | None = None) -> Losses:
    inner = method.inner(model, batch)
    update = updater(model) if update is None else update
    return method.descend(model, batch, update, lambda: method.loss(model, batch, inner))


@pytest.mark.parametrize("base", BASES)
def test_step_is_down_the_gradient_at_the_perturbed_weights(
    base: str, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """w <- w + v - lr [grad L(w + v) + decay (w + v)] - v, v = gamma |w| g / |g| for weights of two dimensions on."""
    method, model, by_hand = make_method("awp", {"base": base}), network(), network()
    losses = descend(method, model, batch)

    inner, before = method.inner(by_hand, batch), weights_of(by_hand)
    names = list(before)
    g = torch.autograd.grad(method.loss(by_hand, batch, inner).total, list(by_hand.parameters()))
    v = {
        name: 0.01 * before[name].norm() * each / each.norm() if each.dim() > 1 else torch.zeros_like(each)
        for name, each in zip(names, g, strict=True)
    }
    with torch.no_grad():
        for name, weight in by_hand.named_parameters():
            weight += v[name]
    at_v = method.loss(by_hand, batch, inner).total
    torch.testing.assert_close(losses.total, at_v)
    there = dict(zip(names, torch.autograd.grad(at_v, list(by_hand.parameters())), strict=True))
    for name, after in model.named_parameters():
        w = before[name]
        expected = w - 0.1 * (there[name] + 0.01 * (w + v[name]))
        torch.testing.assert_close(after.detach(), expected, atol=2e-5, rtol=1e-4)


class WithoutStep(Updater):
    """An updater whose optimiser stands still."""

    def apply(self) -> None:
        pass


@pytest.mark.parametrize("base", BASES)
def test_without_a_step_the_weights_come_back(
    base: str, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """adversarial-training.md, trap 6."""
    method, model = make_method("awp", {"base": base}), network()
    before = weights_of(model)
    descend(method, model, batch, WithoutStep(updater(model).optimizer, None))
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name], atol=4 * 2**-24, rtol=0)


@pytest.mark.parametrize("base", BASES)
def test_running_statistics_are_those_of_one_outer_pass(
    base: str, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """The passes behind v leave them; those at w + v move them as often as the base's own loss would."""
    method, model = make_method("awp", {"base": base}), network()
    seen: list[dict[str, Tensor]] = []
    loss = method.loss

    def watched(*given: Any) -> Losses:
        losses = loss(*given)
        seen.append({name: value.clone() for name, value in model.named_buffers()})
        return losses

    inner = method.inner(model, batch)
    start = {name: value.clone() for name, value in model.named_buffers()}
    method.descend(model, batch, updater(model), lambda: watched(model, batch, inner))
    assert len(seen) == 2
    assert all(torch.equal(seen[0][name], value) for name, value in start.items())
    assert seen[1]["network.norm.num_batches_tracked"] == (1 if base == "pgd_at" else 2)
    assert all(torch.equal(seen[1][name], value) for name, value in model.named_buffers())
    assert not torch.equal(model.get_buffer("network.norm.running_mean"), start["network.norm.running_mean"])


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"warmup": 9 / 200}])
def test_without_a_perturbation_it_is_the_base(
    options: dict[str, Any], make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    ends = []
    for name, given in (("awp", {"base": "trades"} | options), ("trades", {})):
        method, model = make_method(name, given), network()
        descend(method, model, batch)
        ends.append(weights_of(model))
    for name, weight in ends[0].items():
        assert torch.equal(weight, ends[1][name])


def test_warmup_ends_with_epoch_9_of_200(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """TRADES-AWP starts with epoch 10, and their epochs count from 1: v begins after exactly 9 of 200 epochs."""
    method, per_epoch = make_method("awp", {"base": "trades", "warmup": "9/200"}), 391
    for step, calls in ((9 * per_epoch - 1, 1), (9 * per_epoch, 2)):
        model, made = network(), []
        at = Batch(batch.x, batch.y, None, step, 0, step / (200 * per_epoch))
        inner = method.inner(model, at)

        def loss(model: Classifier = model, at: Batch = at, inner: Any = inner, made: list[int] = made) -> Losses:
            made.append(1)
            return method.loss(model, at, inner)

        method.descend(model, at, updater(model), loss)
        assert len(made) == calls


def test_the_loss_is_the_one_it_is_given(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """A method around AWP hands it a loss of its own; AWP's base is not asked."""
    method, model = make_method("awp"), network()
    totals = []

    def other() -> Losses:
        losses = Losses(model(batch.x).square().mean())
        totals.append(losses.total.item())
        return losses

    losses = method.descend(model, batch, updater(model), other)
    assert len(totals) == 2
    assert totals[1] > totals[0]
    assert losses.total.item() == totals[1]


def test_a_base_with_an_update_and_chains_of_its_own(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """SADA-JEM inside: SAM's two passes are both at weights that contain v, and the chains are the base's."""
    few = {"negatives": {"buffer_size": 40}}
    method, model = make_method("awp", {"base": "sadajem", "base_options": few}), network()
    assert method.density
    start, at = network().get_parameter("network.head.weight"), []
    loss = method.loss

    def watched(*given: Any) -> Losses:
        at.append((model.get_parameter("network.head.weight") - start).norm().item())
        return loss(*given)

    inner = method.inner(model, batch)
    assert set(inner) == {"x_q"}
    method.descend(model, batch, updater(model), lambda: watched(model, batch, inner))
    assert at[0] == 0
    assert at[1] == pytest.approx(0.01 * start.norm().item(), rel=1e-4)
    assert at[2] > at[1]
    assert method.samples is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "tradse"}, 'There is no method "tradse".*trades'),
        ({"base_options": {"beta": 6.0}}, "base_options.beta"),
        ({"gamma": -0.01}, r"options.gamma must not be negative, not -0.01"),
        ({"warmup": 10}, r"options.warmup is a share of the training in \[0, 1\], not 10"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, make_method: MakeMethod) -> None:
    with pytest.raises(InputError, match=message):
        make_method("awp", options)
