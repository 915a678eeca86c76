"""TDAT: its loss, the schedule of its labels, and the perturbation that one batch hands to the next."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from methods.backbones import Classifier
from methods.errors import InputError
from methods.primitives.modes import mode
from methods.primitives.threat import ThreatModel
from methods.tdat import TDAT, Config
from methods.training.method import Batch, Method, Task

MakeMethod = Callable[..., Method]
Network = Callable[..., Classifier]


def made(epochs: int = 110, batch_size: int = 16, threat: str = "Linf:0.15", seed: int = 0, **options: Any) -> TDAT:
    task = Task(ThreatModel.parse(threat), 10, (1, 8, 8), seed, batch_size=batch_size, epochs=epochs)
    return TDAT(Config(**options), task)


@pytest.mark.parametrize("reference", ["start", "clean"])
def test_loss_against_the_formula(reference: Any, network: Network, batch: Batch) -> None:
    method, model = made(reference=reference, penalty=0.7), network()
    inner = method.inner(model, batch)
    with mode(model, training=True, track_statistics=False):
        losses = method.loss(model, batch, inner)
        other = model(inner["x_start"] if reference == "start" else batch.x)
        logits = model(inner["x_adv"])
    gamma = 0.6 * math.tan(1)
    adversarial = F.cross_entropy(logits, batch.y, label_smoothing=1 - gamma)
    p_y = other.softmax(1)[torch.arange(16), batch.y]
    robust = (((other - logits) ** 2).sum(1) * torch.tanh(1.0000001 - p_y)).mean()
    torch.testing.assert_close(losses.total, adversarial + 0.7 * robust)
    torch.testing.assert_close(losses.terms["robust"], robust)


def test_both_logits_and_the_weight_carry_a_gradient(batch: Batch) -> None:
    class Shown(torch.nn.Module):
        """Logits that are the parameters of the images shown, the start's first."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.ParameterList([torch.sin(torch.arange(160.0) * k).view(16, 10) for k in (1, 2)])
            self.shown = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.shown += 1
            return self.rows[self.shown - 1]

    model = Shown()
    made().loss(model, batch, {"x_start": batch.x, "x_adv": batch.x}).total.backward()
    reference, logits = (row.detach().requires_grad_() for row in model.rows)
    distance = ((reference - logits) ** 2).sum(1)
    weight = torch.tanh(1.0000001 - reference.softmax(1)[torch.arange(16), batch.y])
    relaxed = F.cross_entropy(logits, batch.y, label_smoothing=1 - 0.6 * math.tan(1))
    (relaxed + 0.6 * (distance * weight).mean()).backward()
    for row, expected in zip(model.rows, (reference, logits), strict=True):
        torch.testing.assert_close(row.grad, expected.grad)


@pytest.mark.parametrize(("schedule", "first", "reached"), [("tan", 0.934, 84), ("tanh", 0.457, 82)])
def test_gamma_falls_to_its_least_value(schedule: Any, first: float, reached: int, batch: Batch) -> None:
    method = made(gamma_schedule=schedule)
    gammas = [method._gamma(replace(batch, progress=(390 * epoch) / (390 * 110))) for epoch in range(110)]
    assert gammas[0] == pytest.approx(first, abs=5e-4)
    assert gammas == sorted(gammas, reverse=True)
    function = math.tan if schedule == "tan" else math.tanh
    assert gammas == [max(0.15, 0.6 * function(1 - epoch / 110)) for epoch in range(110)]
    assert gammas.index(0.15) == reached
    last_step_of_epoch_0 = replace(batch, progress=389 / (390 * 110))
    assert method._gamma(last_step_of_epoch_0) == gammas[0]


def test_the_first_start_is_a_corner_that_depends_on_the_seed(batch: Batch) -> None:
    delta = made().delta
    assert torch.equal(delta.abs(), torch.full((16, 1, 8, 8), 0.15))
    assert 0.3 < (delta > 0).float().mean() < 0.7
    assert torch.equal(delta, made().delta)
    assert not torch.equal(delta, made(seed=1).delta)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_the_next_start_is_the_last_perturbation(momentum: float, network: Network, batch: Batch) -> None:
    method, model = made(momentum=momentum), network()
    before = method.delta.clone()
    inner = method.inner(model, batch)
    torch.testing.assert_close(method.delta, momentum * before + (1 - momentum) * (inner["x_adv"] - batch.x))
    other = replace(batch, x=batch.x.flip(0), y=batch.y.flip(0), step=1)
    start = (other.x + method.delta).clamp(0, 1)
    torch.testing.assert_close(method.inner(model, other)["x_start"], start)


def test_a_start_is_an_image_of_the_new_batch(network: Network, batch: Batch) -> None:
    """Trap 12: the perturbation that is carried was clamped to the bounds of other images."""
    method, model = made(), network()
    light = replace(batch, x=torch.full_like(batch.x, 0.05))
    dark = replace(batch, x=torch.full_like(batch.x, 0.95))
    for images in (light, dark, light):
        inner = method.inner(model, images)
        assert inner["x_start"].min() >= 0
        assert inner["x_start"].max() <= 1
        assert method.task.threat.distance(inner["x_start"], images.x).max() <= 0.15 + 1e-6


def test_a_smaller_batch_uses_the_first_rows(network: Network, batch: Batch) -> None:
    """Trap 12: the batch size may differ from that of the perturbation."""
    method, model = made(), network()
    before = method.delta.clone()
    last = replace(batch, x=batch.x[:5], y=batch.y[:5])
    inner = method.inner(model, last)
    torch.testing.assert_close(inner["x_start"], (last.x + before[:5]).clamp(0, 1))
    torch.testing.assert_close(method.delta[:5], inner["x_adv"] - last.x)
    assert torch.equal(method.delta[5:], before[5:])


def test_the_attack_raises_the_loss_of_the_inner_labels(network: Network, batch: Batch) -> None:
    """One step of eps along the gradient's sign at the start; at the least gamma the inner label has .15, not .235."""
    method, model = made(epochs=1, gamma_scale=0.0), network()
    x_start = (batch.x + method.delta).clamp(0, 1).requires_grad_()
    target = torch.full((16, 10), 0.85 / 9)
    target[torch.arange(16), batch.y] = 0.15
    with mode(model, training=True, track_statistics=False):
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_start), target), x_start)
    expected = (x_start + 0.15 * gradient.sign()).clamp(batch.x - 0.15, batch.x + 0.15).clamp(0, 1)
    torch.testing.assert_close(method.inner(model, batch)["x_adv"], expected.detach())


def test_a_step_moves_the_statistics_by_the_passes_of_the_code(network: Network, batch: Batch) -> None:
    """The code's one pass of x_0, then that of x_adv."""
    method, model, other = made(), network(), network()
    inner = method.inner(model, batch)
    method.loss(model, batch, inner)
    other(inner["x_start"])
    other(inner["x_adv"])
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), other.buffers(), strict=True))


def test_at_eps_0_it_is_the_relaxed_cross_entropy(network: Network, batch: Batch) -> None:
    """Trap 3."""
    method, model = made(threat="Linf:0"), network()
    inner = method.inner(model, batch)
    assert torch.equal(inner["x_adv"], batch.x)
    losses = method.loss(model, batch, inner)
    expected = F.cross_entropy(model(batch.x), batch.y, label_smoothing=1 - 0.6 * math.tan(1))
    torch.testing.assert_close(losses.total, expected)
    assert losses.terms["robust"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": -1}, "options.penalty"),
        ({"momentum": 1.0}, "options.momentum"),
        ({"gamma_scale": 0.7}, "gamma leaves"),
        ({"gamma_min": -0.1}, "gamma leaves"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**options)
