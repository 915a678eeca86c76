from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones import Classifier
from methods.dhat import DHAT
from methods.errors import InputError
from methods.primitives.modes import frozen
from methods.training.config import TrainConfig
from methods.training.method import Batch, Method
from methods.training.optim import Updater, optimizer

Network = Callable[..., Classifier]
MakeMethod = Callable[..., Method]


def images_of(batch: Batch) -> dict[str, Tensor]:
    """Three sets of images that differ, in place of what the inner problem makes."""
    x = batch.x
    return {"x_adv": (x + 0.1).clamp(0, 1), "x_inverse": (x - 0.05).clamp(0, 1), "x_background": x.flip(3) / 2}


@pytest.mark.parametrize("orthogonality", ["residual", "projection"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 2.0)])
def test_loss_is_the_formula(
    orthogonality: str, weights: tuple[float, float], make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    options = {"orthogonality": orthogonality, "w_align": weights[0], "w_orthogonal": weights[1]}
    model, inner = network(), images_of(batch)
    losses = make_method("dhat", options).loss(model, batch, inner)

    z_adv, z, c = (model(inner[name]).double() for name in ("x_adv", "x_inverse", "x_background"))
    cross_entropy = -F.log_softmax(z_adv, 1)[torch.arange(16), batch.y].mean()
    p, q = F.softmax(z_adv, 1), F.softmax(z - c, 1)
    align = (p * (p / q).log()).sum() / 16
    mixed = torch.zeros_like(z)
    gram = torch.stack([torch.stack([a @ b for b in c]) for a in c])
    for i in range(16):
        for j in range(16):
            mixed[i] += (z[i] @ c[j]) / gram.square().sum().sqrt() * c[j]
    lowered = z - mixed if orthogonality == "residual" else mixed
    orthogonal = lowered.square().sum().sqrt() / 16
    for name, value in (("adversarial", cross_entropy), ("align", align), ("orthogonal", orthogonal)):
        torch.testing.assert_close(losses.terms[name].double(), value, atol=1e-5, rtol=1e-5)
    total = cross_entropy + weights[0] * align + weights[1] * orthogonal
    torch.testing.assert_close(losses.total.double(), total, atol=1e-5, rtol=1e-5)


def test_what_is_all_but_impossible_costs_no_more_than_the_floor(make_method: MakeMethod, batch: Batch) -> None:
    """KL of p + 1e-12: at most 12 log 10 where the debiased logits exclude what the network says."""
    says, excludes = torch.zeros(16, 10), torch.zeros(16, 10)
    says[:, 3], excludes[:, 3] = 80.0, -80.0
    logits = {0.1: says, 0.2: excludes, 0.3: -excludes}

    def model(x: Tensor) -> Tensor:
        return logits[round(float(x[0, 0, 0, 0]), 1)]

    inner = {name: torch.full_like(batch.x, value) for name, value in zip(images_of(batch), logits, strict=True)}
    losses = make_method("dhat").loss(model, batch, inner)  # type: ignore[arg-type]
    assert losses.terms["align"].item() == pytest.approx(12 * torch.tensor(10.0).log().item(), rel=1e-4)


def test_inverse_attack_helps_the_model_in_half_the_ball(
    make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    trained.eval()
    inner = make_method("dhat", {"attack_mode": "eval"}).inner(trained, batch)
    assert 0.07 < (inner["x_inverse"] - batch.x).abs().max() <= 0.075 + 1e-6
    with torch.no_grad():
        x_inverse, x, x_adv = (
            F.cross_entropy(trained(images), batch.y) for images in (inner["x_inverse"], batch.x, inner["x_adv"])
        )
    assert x_inverse < 0.8 * x < 0.5 * x_adv


def test_inverse_attack_descends_its_objective(make_method: MakeMethod, trained: Classifier, batch: Batch) -> None:
    """CE + KL(clean || .) - KL(adversarial || .), by one step of the whole radius against the gradient's sign."""
    options = {"attack_mode": "eval", "inverse": {"steps": 1, "step_size": 1.0, "start": "zero"}}
    x_adv, x_inverse, _ = make_method("dhat", options).inner(trained, batch).values()
    with frozen(trained):
        x = batch.x.clone().requires_grad_()
        p, p_adv, logs = trained(batch.x).softmax(1), trained(x_adv).softmax(1), trained(x).log_softmax(1)
        value = F.nll_loss(logs, batch.y, reduction="sum") + ((p_adv - p) * logs).sum()
        (gradient,) = torch.autograd.grad(value, x)
    expected = (batch.x - 0.075 * gradient.sign()).clamp(0, 1)
    clear = gradient.abs() > 1e-5
    assert clear.float().mean() > 0.5
    torch.testing.assert_close(x_inverse[clear], expected[clear], atol=1e-6, rtol=0)


def test_background_is_what_the_frozen_network_does_not_look_at(
    make_method: MakeMethod, network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make_method("dhat", {"threshold": 0.4})
    assert isinstance(method, DHAT)
    cam = torch.rand(16, 1, 8, 8)
    seen: list[tuple[Tensor, Tensor]] = []

    def stand_in(maps: Any, from_maps: Any, x: Tensor, y: Tensor) -> Tensor:
        seen.append((x, y))
        return cam

    monkeypatch.setattr("methods.dhat.grad_cam", stand_in)
    inner = method.inner(network(), batch)
    assert torch.equal(inner["x_background"], torch.where(cam > 0.4, 0.0, inner["x_inverse"]))
    ((x, y),) = seen
    assert torch.equal(x, batch.x)
    assert torch.equal(y, batch.y)


@pytest.mark.parametrize(("mode", "passes"), [("train", 22), ("eval", 0), ("train-frozen-statistics", 0)])
def test_which_attacks_move_the_statistics(
    mode: str, passes: int, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    model = network()
    make_method("dhat", {"attack_mode": mode}).inner(model, batch)
    assert model.get_buffer("network.norm.num_batches_tracked").item() == passes
    assert torch.equal(model.get_buffer("network.norm.running_mean"), torch.zeros(64)) == (passes == 0)


def test_steps_leave_the_frozen_network_alone(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method("dhat"), network()
    assert not any(parameter.requires_grad for parameter in method.parameters())
    update = Updater(optimizer(model.parameters(), TrainConfig(lr=0.1)), None)
    method.step(model, batch, update)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.step(model, replace(batch, step=1), update)
    assert all(torch.equal(value, method.state_dict()[name]) for name, value in before.items())
    assert not any(module.training for module in method.get_submodule("auxiliary.network").modules())
    assert all(parameter.grad is None for parameter in method.parameters())


def test_network_that_hides_its_maps_is_refused_before_training(make_method: MakeMethod) -> None:
    method = make_method("dhat", {"auxiliary": {"backbone": {"architecture": "timm:test_byobnet"}}})
    with pytest.raises(InputError, match="no timm backbone does"):
        method.check(nn.Identity())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "options.threshold must not be negative, not -0.1"),
        ({"inverse_radius": -1.0}, "options.inverse_radius must not be negative"),
        ({"w_align": -1.0}, "options.w_align"),
        ({"orthogonality": "sign"}, "options.orthogonality"),
        ({"auxiliary": {"epochs": 0}}, "at least one epoch, not 0"),
        ({"auxiliary": {"backbone": {"architecture": "resnet", "depth": 10}}}, 'depth of "resnet" is 18, not 10'),
        ({"auxiliary": {"checkpoint": "no/such/run"}}, "There is no checkpoint at no/such/run"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, make_method: MakeMethod) -> None:
    with pytest.raises(InputError, match=message):
        make_method("dhat", options)
