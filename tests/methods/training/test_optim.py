"""The learning rate of every step, and the one place that steps the optimiser."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from methods.training.config import TrainConfig
from methods.training.optim import Schedule, Updater, average, learning_rate, momentum, normalisation, optimizer

PER_EPOCH = 7


def rates(config: TrainConfig, epochs: int) -> list[float]:
    """Return the rate of the first step of each epoch, and of the very last step."""
    total = epochs * PER_EPOCH
    return [learning_rate(step, total, config) for step in (*range(0, total, PER_EPOCH), total - 1)]


def test_step_schedule_of_rice() -> None:
    """Epochs 0, drop - 1, drop and last (adversarial-training.md, trap 16): 200 epochs, drops at 100 and 150."""
    found = rates(TrainConfig(lr=0.1, schedule="step", milestones=(1 / 2, 3 / 4)), 200)
    expected = {0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001, 199: 0.001, 200: 0.001}
    assert {epoch: found[epoch] for epoch in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("drop", "epochs"), [(74, 76), (40, 150), (80, 150), (1, 3), (2, 3)])
def test_step_schedule_drops_at_the_first_step_of_an_epoch(drop: int, epochs: int) -> None:
    config = TrainConfig(lr=1.0, schedule="step", milestones=(drop / epochs,), decay=0.2)
    total, first = epochs * PER_EPOCH, drop * PER_EPOCH
    assert learning_rate(first - 1, total, config) == 1.0
    assert learning_rate(first, total, config) == pytest.approx(0.2)
    assert learning_rate(total - 1, total, config) == pytest.approx(0.2)


def test_constant() -> None:
    assert rates(TrainConfig(lr=0.3), 5) == [0.3] * 6


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_warm_up_is_linear_from_zero(schedule: Any) -> None:
    config = TrainConfig(lr=0.5, schedule=schedule, milestones=(0.9,), warmup_steps=10)
    found = [learning_rate(step, 100, config) for step in range(11)]
    assert found == pytest.approx([0.05 * step for step in range(11)])


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_falls_to_zero(warmup: int) -> None:
    config = TrainConfig(lr=0.5, schedule="cosine", warmup_steps=warmup)
    assert learning_rate(warmup, 110, config) == 0.5
    assert learning_rate(warmup + (110 - warmup) // 2, 110, config) == pytest.approx(0.25)
    found = [learning_rate(step, 110, config) for step in range(warmup, 110)]
    assert found == sorted(found, reverse=True)
    assert learning_rate(110, 110, config) == pytest.approx(0.0, abs=1e-15)
    assert 0 < found[-1] < 1e-3


def test_one_cycle_is_that_of_torch() -> None:
    total, warmup = 60, 18
    weight = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    # torch rises over pct_start * total - 1 steps and falls until total - 1; here both ends are one step later.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        reference, max_lr=0.4, total_steps=total + 1, pct_start=(warmup + 1) / (total + 1), cycle_momentum=False
    )
    expected = []
    for _ in range(total):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()
    config = TrainConfig(lr=0.4, schedule="one-cycle", warmup_steps=warmup)
    found = [learning_rate(step, total, config) for step in range(total)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert found[0] == pytest.approx(0.4 / 25)
    assert max(found) == found[warmup] == 0.4
    assert learning_rate(total, total, config) == pytest.approx(0.4 / 25e4)


def test_warm_up_longer_than_the_training_stays_finite() -> None:
    for schedule in ("constant", "cosine", "one-cycle"):
        config = TrainConfig(lr=0.5, schedule=schedule, warmup_steps=100)
        assert all(0 <= learning_rate(step, 10, config) <= 0.5 for step in range(10))


def test_optimizers_take_their_settings() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    sgd = optimizer(weights, TrainConfig(lr=0.2, momentum=0.8, nesterov=True, weight_decay=3e-4))
    assert isinstance(sgd, torch.optim.SGD)
    wanted = {"lr": 0.2, "momentum": 0.8, "nesterov": True, "weight_decay": 3e-4}
    assert {key: sgd.param_groups[0][key] for key in wanted} == wanted
    adam = optimizer(weights, TrainConfig(optimizer="adam", lr=0.2, momentum=0.8, weight_decay=0.0))
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]["betas"] == (0.8, 0.999)


def test_weight_decay_reaches_every_parameter() -> None:
    """Biases and normalisation included (adversarial-training.md, trap 15)."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    groups = optimizer(network.parameters(), TrainConfig(weight_decay=0.1)).param_groups
    assert [len(group["params"]) for group in groups] == [4]


def step_of(clip: float | None, slope: float) -> float:
    weight = nn.Parameter(torch.zeros(2))
    update = Updater(torch.optim.SGD([weight], lr=1.0), clip)
    update((slope * weight).sum())
    return weight.detach().norm().item()


def test_clip_bounds_the_norm_of_the_gradient_alone_where_it_is_larger() -> None:
    assert step_of(None, 30.0) == pytest.approx(30 * math.sqrt(2))
    assert step_of(0.5, 30.0) == pytest.approx(0.5, rel=1e-4)
    assert step_of(0.5, 0.1) == pytest.approx(0.1 * math.sqrt(2))


def test_gradient_replaces_and_apply_uses_what_is_there() -> None:
    weight = nn.Parameter(torch.zeros(()))
    update = Updater(torch.optim.SGD([weight], lr=1.0), None)
    update.gradient(3 * weight)
    update.gradient(5 * weight)
    assert weight.grad is not None
    assert weight.grad.item() == 5
    assert weight.item() == 0
    weight.grad.mul_(2)
    update.apply()
    assert weight.item() == -10


@pytest.mark.parametrize("clip", [None, 0.5])
def test_gradient_norm_is_that_of_the_applied_gradient_before_the_clip(clip: float | None) -> None:
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(3))]
    update = Updater(torch.optim.SGD(weights, lr=1.0), clip)
    update.gradient(100 * weights[1])
    # The third has no gradient.
    update((3 * weights[0]).sum() + 4 * weights[1])
    assert update.gradient_norm.item() == pytest.approx(math.sqrt(9 + 9 + 16))
    update.gradient(7 * weights[1])
    assert update.gradient_norm.item() == pytest.approx(math.sqrt(34))
    update.apply()
    assert update.gradient_norm.item() == pytest.approx(7)


def test_one_cycle_stepped_once_an_epoch_is_that_of_torch_momentum_included() -> None:
    """Trap 16: imrahulr/adversarial_robustness_pytorch steps torch's scheduler once an epoch."""
    epochs = 40
    weight = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=0.4, total_steps=epochs, pct_start=0.1)
    expected = []
    for epoch in range(epochs):
        expected.append((reference.param_groups[0]["lr"], reference.param_groups[0]["momentum"]))
        reference.step()
        if epoch < epochs - 1:
            scheduler.step()
    config = TrainConfig(
        lr=0.4,
        schedule="one-cycle",
        warmup_steps=4 * PER_EPOCH,
        epoch_schedule=True,
        momentum_cycle=(0.85, 0.95),
        nesterov=True,
    )
    ours = optimizer([weight], config)
    schedule = Schedule(config, epochs * PER_EPOCH, PER_EPOCH)
    found = []
    for step in range(epochs * PER_EPOCH):
        assert schedule.set(ours, step) == ours.param_groups[0]["lr"]
        found.append((ours.param_groups[0]["lr"], ours.param_groups[0]["momentum"]))
    for epoch, (rate, value) in enumerate(expected):
        assert set(found[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH]) == {found[epoch * PER_EPOCH]}
        assert found[epoch * PER_EPOCH] == pytest.approx((rate, value), rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_momentum_is_cycled_only_where_the_recipe_says_so(schedule: Any) -> None:
    config = TrainConfig(schedule=schedule, warmup_steps=3)
    ours = optimizer([nn.Parameter(torch.zeros(1))], config)
    for step in range(10):
        Schedule(config, 10, 1).set(ours, step)
        assert ours.param_groups[0]["momentum"] == momentum(step, 10, config) == 0.9


def test_each_milestone_may_have_its_own_factor() -> None:
    """LBGAT: .02 in the first epoch, .1, then .01 from epoch 76 and .001 from 91 (counted from 1) of 100."""
    config = TrainConfig(lr=0.02, schedule="step", milestones=(1 / 100, 75 / 100, 90 / 100), decay=(5.0, 0.1, 0.1))
    found = rates(config, 100)
    expected = {0: 0.02, 1: 0.1, 74: 0.1, 75: 0.01, 89: 0.01, 90: 0.001, 99: 0.001}
    assert {epoch: found[epoch] for epoch in expected} == pytest.approx(expected)


def test_normalisation_can_be_spared_from_weight_decay() -> None:
    """adversarial-training.md, trap 15: by the kind of layer, and not by a name that one architecture has."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.GroupNorm(1, 2)), nn.Linear(2, 2))
    assert normalisation(network) == ["1.weight", "1.bias", "2.0.weight", "2.0.bias"]
    spared = [network.get_parameter(name) for name in normalisation(network)]
    found = optimizer(network.parameters(), TrainConfig(weight_decay=0.5), spared)
    decays = {id(p): group["weight_decay"] for group in found.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert decays[id(parameter)] == (0.0 if name in normalisation(network) else 0.5), name
    assert len(optimizer(network.parameters(), TrainConfig()).param_groups) == 1


def test_average_after_a_warm_up() -> None:
    """decay = min(tau, (1 + n)/(10 + n)) after n steps beyond the warm-up, typed again; a copy before (trap 8)."""
    total, tau = 200, 0.7
    weight = nn.Linear(1, 1, bias=False)
    model = torch.optim.swa_utils.AveragedModel(
        weight, multi_avg_fn=average(TrainConfig(ema=tau, ema_warmup=0.025), total)
    )
    expected = 0.0
    for step in range(1, 40):
        nn.init.constant_(weight.weight, float(step))
        model.update_parameters(weight)
        n = step - 5
        decay = min(tau, (1 + n) / (10 + n)) if n >= 0 else 0.0
        expected = decay * expected + (1 - decay) * step
        (found,) = model.parameters()
        assert found.item() == pytest.approx(expected, rel=1e-5), step
