"""LAS-AT: the loss around its bases, the order of its two updates, and the reward."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.backbones import Classifier
from methods.errors import InputError
from methods.las_at import LASAT
from methods.primitives.modes import frozen
from methods.training.config import TrainConfig
from methods.training.method import Batch
from methods.training.optim import Updater, optimizer
from methods.training.reward import Reward

MakeMethod = Callable[..., LASAT]
Network = Callable[..., Classifier]
TRADES = {
    "base": "trades",
    "objective": "divergence",
    "start": "normal",
    "label_mass": 1.0,
    "choices": {"beta": [5.0, 9.0]},
}


def updater(model: Classifier, lr: float = 0.05) -> Updater:
    return Updater(optimizer(model.parameters(), TrainConfig(lr=lr)), None)


def state_of(model: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: Classifier, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_loss_is_smoothed_cross_entropy(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method("las_at"), network()
    inner = method.inner(model, batch)
    log_p = model(inner["x_adv"]).log_softmax(1)
    target = torch.full((16, 10), 0.3 / 9).scatter(1, batch.y[:, None], 0.7)
    torch.testing.assert_close(method.loss(model, batch, inner).total, -(target * log_p).sum(1).mean())


def test_every_image_has_its_own_beta(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method("las_at", TRADES), network()
    inner = method.inner(model, batch)
    assert set(inner["beta"].tolist()) == {5.0, 9.0}
    clean, adversarial = model(batch.x), model(inner["x_adv"])
    p, q = clean.softmax(1), adversarial.softmax(1)
    natural = -clean.log_softmax(1)[range(16), batch.y].mean()
    robust = (inner["beta"] * (p * (p / q).log()).sum(1)).mean()
    torch.testing.assert_close(method.loss(model, batch, inner).total, natural + robust)


def test_every_image_has_its_own_attack(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """Radii are multiples of the threat's eps, and the images reach them unless they are clipped."""
    choices = {"eps": [0.5, 1.5], "steps": [8], "step_size": [0.5]}
    for clip, far in ((False, 1.5), (True, 1.0)):
        method = make_method("las_at", {"choices": choices, "clip": clip})
        distance = method.task.threat.distance(method.inner(network(), batch)["x_adv"], batch.x) / 0.15
        assert sorted({round(value, 4) for value in distance.tolist()}) == [0.5, far]


@pytest.mark.parametrize("base", ["pgd_at", "awp"])
def test_the_policy_learns_every_so_many_steps(
    base: str, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    method, model = make_method("las_at", {"base": base, "every": 3}), network()
    update = updater(model)
    moved = []
    for step in range(6):
        before = torch.nn.utils.parameters_to_vector(method.policy.network.parameters())
        method.step(model, replace(batch, step=step), update)
        moved.append(not torch.equal(torch.nn.utils.parameters_to_vector(method.policy.network.parameters()), before))
    assert moved == [False, False, True, False, False, True]


def test_the_policy_learns_before_the_model(
    make_method: MakeMethod, network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's batch is crafted by the policy after its step, on the model before its own."""
    order: list[str] = []
    method, model = make_method("las_at", {"every": 1}), network()
    start = state_of(model)
    learn, inner = method.policy.learn, method.inner

    def learning(*arguments: Any) -> Tensor:
        order.append("policy")
        return learn(*arguments)

    def crafting(trained: Classifier, images: Batch) -> dict[str, Tensor]:
        assert same(trained, start)
        order.append("model")
        return inner(trained, images)

    monkeypatch.setattr(method.policy, "learn", learning)
    monkeypatch.setattr(method, "inner", crafting)
    method.step(model, batch, updater(model))
    assert order == ["policy", "model"]


def test_the_policy_changes_nothing_of_the_model(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """A rate of 0 for the policy: the model's step is then that of a training without one, bit for bit."""
    without, within = network(), network()
    make_method("las_at", {"every": 2, "optimizer": {"lr": 0.0}}).step(without, batch, updater(without))
    method = make_method("las_at", {"every": 1, "optimizer": {"lr": 0.0}})
    statistics = {name: value.clone() for name, value in method.policy.network.named_buffers()}
    original = method.policy.learn

    def learn(*arguments: Any) -> Tensor:
        loss = original(*arguments)
        for name, value in method.policy.network.named_buffers():
            value.copy_(statistics[name])
        return loss

    method.policy.learn = learn  # type: ignore[method-assign]
    method.step(within, batch, updater(within))
    assert same(within, without.state_dict())


def test_the_trainers_optimiser_holds_none_of_the_policy(make_method: MakeMethod) -> None:
    assert not any(parameter.requires_grad for parameter in make_method("las_at").parameters())


@pytest.mark.parametrize("label_mass", [0.7, 1.0])
def test_the_reward(
    label_mass: float, make_method: MakeMethod, trained: Classifier, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss as the model is; then the accuracies of a copy after a step of its own."""
    method = make_method("pgd_at")
    before = state_of(trained)
    inner = {"x_adv": (batch.x + 0.1).clamp(0, 1)}
    reward = Reward(w_robust=3.0, w_clean=2.0, label_mass=label_mass)
    seen: list[dict[str, Tensor]] = []
    attack = reward.attack
    original = type(attack).__call__

    def watching(self: Any, *arguments: Any) -> Tensor:
        seen.append(state_of(trained))
        return original(self, *arguments)

    monkeypatch.setattr(type(attack), "__call__", watching)
    damage, robust, clean = reward(method, trained, batch, inner, 0.1).tolist()
    assert same(trained, before)
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert trained.training

    with frozen(trained), torch.no_grad():
        log_p = trained(inner["x_adv"]).log_softmax(1)
    assert damage == pytest.approx(-log_p[range(16), batch.y].mean().item(), rel=1e-5)
    target = torch.full((16, 10), (1 - label_mass) / 9).scatter(1, batch.y[:, None], label_mass)
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    (-(target * trained(inner["x_adv"]).log_softmax(1)).sum(1).mean()).backward()
    optimizer.step()
    (stepped,) = seen
    for name, value in trained.named_parameters():
        torch.testing.assert_close(stepped[name], value.detach())
    assert 0 <= robust / 3 <= 1
    assert 0 <= clean / 2 <= 1
    assert robust / 3 <= clean / 2


def test_the_loss_in_the_reward_is_limited(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    reward = Reward(limit=0.5)
    assert reward(make_method("pgd_at"), network(), batch, {"x_adv": batch.x}, 0.0)[0] == 0.5


def test_the_log_names_choices_and_rewards(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method = make_method("las_at", TRADES | {"every": 1})
    model = network()
    terms = method.step(model, batch, updater(model)).terms
    assert 5 <= terms["chosen_beta"] <= 9
    assert 3 <= terms["chosen_steps"] <= 14
    assert terms["reward_loss"] > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"every": 0}, "options.every"),
        ({"label_mass": 0.0}, "options.label_mass"),
        ({"base": "jem"}, "jem"),
        ({"base": "nothing"}, "nothing"),
        ({"strategy": {"normalize": "dataset"}}, "options.strategy"),
        ({"reward": {"w_clean": -1.0}}, "w_clean"),
        ({"reward": {"label_mass": 2.0}}, "label_mass"),
        ({"objective": "margin"}, "options.objective"),
        ({"choices": {"steps": []}}, "steps"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], named: str, make_method: MakeMethod) -> None:
    with pytest.raises(InputError, match=named):
        make_method("las_at", options)
