"""AGR's update: whose gradients are edited, from when on, and around what."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.backbones import Classifier
from methods.errors import InputError
from methods.primitives.modes import fixed_statistics
from methods.training.config import TrainConfig
from methods.training.method import Batch, Losses, Method
from methods.training.optim import Updater, optimizer

MakeMethod = Callable[..., Method]
Network = Callable[[], Classifier]
ACTIVE = {"start": 0.0, "clip": 1000.0}


def updater(model: nn.Module) -> Updater:
    return Updater(optimizer(model.parameters(), TrainConfig(lr=0.01)), None)


def step(method: Method, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Take one step, and return the gradients it took."""
    method.step(model, batch, updater(model))
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def gradients_by_hand(base: str, make_method: MakeMethod, model: Classifier, batch: Batch) -> list[list[Tensor]]:
    """Return the gradients of the base's loss, on the images that AGR attacks, and of the clean cross-entropy."""
    inner = make_method("agr", {"base": base}).inner(model, batch)
    total = make_method(base).loss(model, batch, inner).total
    weights = list(model.parameters())
    return [
        [each.detach() for each in torch.autograd.grad(loss, weights)]
        for loss in (total, functional.cross_entropy(model(batch.x), batch.y))
    ]


@pytest.mark.parametrize("base", ["trades", "pgd_at", "mart"])
def test_each_tensor_is_edited_by_its_own_cosine(
    base: str, make_method: MakeMethod, network: Network, fitted: Classifier, batch: Batch
) -> None:
    model, by_hand = network(), network()
    for each in (model, by_hand):
        each.load_state_dict(fitted.state_dict())
    found = step(make_method("agr", ACTIVE | {"base": base}), model, batch)
    signs = set()
    names = [name for name, _ in by_hand.named_parameters()]
    for name, a, c in zip(names, *gradients_by_hand(base, make_method, by_hand, batch), strict=True):
        cosine = (a * c).sum() / (a.norm() * c.norm())
        signs.add(bool(cosine > 0))
        wanted = cosine * c + (1 - cosine) * a if cosine > 0 else a - (a * c).sum() / c.norm() ** 2 * c
        torch.testing.assert_close(found[name], wanted, atol=2e-4 * float(a.abs().max()), rtol=1e-3)
    assert signs == {True, False}


def test_the_edit_does_not_depend_on_the_order_of_the_tensors(
    make_method: MakeMethod, network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """adversarial-training.md, trap 13."""
    straight = step(make_method("agr", ACTIVE), network(), batch)
    model = network()
    parameters = list(model.parameters())
    monkeypatch.setattr(model, "parameters", lambda recurse=True: iter(parameters[::-1]))
    reversed_ = step(make_method("agr", ACTIVE), model, batch)
    assert straight.keys() == reversed_.keys()
    assert all(torch.equal(straight[name], value) for name, value in reversed_.items())


def test_clip_is_per_tensor(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """adversarial-training.md, trap 13: each long tensor is .1 long, and not all of them together."""
    whole = step(make_method("agr", ACTIVE), network(), batch)
    clipped = step(make_method("agr", {"start": 0.0}), network(), batch)
    for name, gradient in whole.items():
        length = gradient.norm().item()
        assert clipped[name].norm().item() == pytest.approx(min(0.1, length), rel=1e-4)
        torch.testing.assert_close(clipped[name], gradient * min(1, 0.1 / length))
    assert torch.stack([each.norm() for each in clipped.values()]).norm() > 0.1


def test_no_clean_gradient_edits_nothing(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """adversarial-training.md, trap 13: |c| = 0, for tensors that the clean loss does not reach and for all of them."""
    method, model = make_method("agr", ACTIVE), network()

    def loss() -> Losses:
        total = functional.cross_entropy(model(batch.x), batch.y)
        return Losses(total, {"clean": 0 * total + model.get_parameter("network.head.bias").sum()})

    method.descend(model, batch, updater(model), loss)
    gradient = model.get_parameter("network.conv.weight").grad
    plain = network()
    functional.cross_entropy(plain(batch.x), batch.y).backward()
    expected = plain.get_parameter("network.conv.weight").grad
    assert gradient is not None
    torch.testing.assert_close(gradient, expected)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_weights_out_of_use_and_held_fixed_stay(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """Trap (e) of adversarial-training.md, 2.9: their autograd.grad stops at a parameter that the loss does not use."""
    model = network()
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    fixed = model.get_parameter("network.conv.weight").requires_grad_(False)
    before = fixed.clone()
    assert "idle" not in step(make_method("agr", ACTIVE), model, batch)
    assert torch.equal(model.get_parameter("idle"), torch.ones(3))
    assert torch.equal(fixed, before)


@pytest.mark.parametrize("base", ["trades", "pgd_at", "awp"])
def test_before_its_share_of_the_training_the_update_is_the_base_s(
    base: str, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """From epoch 155 of 200, which count from 0 there: at 155 of 200 exactly it is edited, a step before it is not."""
    per_epoch, method = 391, make_method("agr", {"base": base})
    for at, plain in ((155 * per_epoch - 1, True), (155 * per_epoch, False)):
        now = Batch(batch.x, batch.y, None, at, 0, at / (200 * per_epoch))
        ends = []
        for outer in (method, make_method(base)):
            model = network()
            inner = method.inner(model, now)
            outer.descend(model, now, updater(model), partial(outer.loss, model, now, inner))
            ends.append(model.get_parameter("network.conv.weight"))
        assert torch.equal(*ends) == plain


def test_around_awp_both_gradients_are_those_at_the_perturbed_weights(
    make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """Trap 2.9 (c) of adversarial-training.md: the clean loss is computed at theta and differentiated at theta + v."""
    found = step(make_method("agr", ACTIVE | {"base": "awp"}), network(), batch)
    model = network()
    with fixed_statistics(model):
        (a, _) = gradients_by_hand("pgd_at", make_method, model, batch)
        with torch.no_grad():
            for weight, each in zip(model.parameters(), a, strict=True):
                if weight.dim() > 1:
                    weight += 0.01 * weight.norm() * each / each.norm()
        inner = make_method("agr", {"base": "awp"}).inner(network(), batch)
        weights = list(model.parameters())
        a = torch.autograd.grad(make_method("pgd_at").loss(model, batch, inner).total, weights)
        c = torch.autograd.grad(functional.cross_entropy(model(batch.x), batch.y), weights)
    for (name, _), of_a, of_c in zip(model.named_parameters(), a, c, strict=True):
        cosine = (of_a * of_c).sum() / (of_a.norm() * of_c.norm())
        mixed = cosine * of_c + (1 - cosine) * of_a
        wanted = mixed if cosine > 0 else of_a - (of_a * of_c).sum() / of_c.norm() ** 2 * of_c
        torch.testing.assert_close(found[name], wanted, atol=1e-3 * float(of_a.abs().max()), rtol=1e-3)


def test_the_adversary_is_the_code_s_or_the_base_s(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    trades, pgd_at = (make_method(name).inner(network(), batch)["x_adv"] for name in ("trades", "pgd_at"))
    assert torch.equal(make_method("agr").inner(network(), batch)["x_adv"], pgd_at)
    assert torch.equal(make_method("agr", {"inner": "base"}).inner(network(), batch)["x_adv"], trades)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "tradse"}, 'There is no method "tradse".*trades'),
        ({"base": "sadajem"}, 'The loss of "sadajem" needs more than x_adv'),
        ({"start": 155}, r"options.start is a share of the training in \[0, 1\], not 155"),
        ({"clip": 0.0}, r"options.clip must be positive, not 0"),
        ({"inner": "kl"}, "options.inner"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, make_method: MakeMethod) -> None:
    with pytest.raises(InputError, match=message):
        make_method("agr", options)
