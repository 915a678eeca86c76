import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.random import generator
from methods.primitives.sharpness import SAM

CURVATURE = torch.tensor([1.0, 4.0, 9.0])
WEIGHT = torch.tensor([2.0, -1.0, 0.5])


def parabola() -> tuple[nn.Parameter, ...]:
    """Return weights in two tensors, their gradients those of sum a w^2 / 2."""
    parameters = nn.Parameter(WEIGHT[:2].clone()), nn.Parameter(WEIGHT[2:].clone())
    (torch.cat(parameters).square() @ CURVATURE / 2).backward()
    return parameters


@pytest.mark.parametrize("rho", [0.05, 2.0])
@pytest.mark.parametrize("adaptive", [True, False])
def test_climb_of_a_parabola(adaptive: bool, rho: float) -> None:
    """g = a w. SAM: e = rho g / |g|. ASAM: e = rho w^2 g / | |w| g |, over both tensors together."""
    parameters = parabola()
    g = CURVATURE * WEIGHT
    e = rho * g / g.norm()
    if adaptive:
        e = rho * WEIGHT**2 * g / (WEIGHT.abs() * g).norm()
    with SAM(rho, adaptive).climbed(parameters):
        torch.testing.assert_close(torch.cat(parameters).detach(), WEIGHT + e)
        climbed = torch.cat(parameters).detach()
    assert climbed.square() @ CURVATURE > WEIGHT.square() @ CURVATURE


def test_asam_does_not_see_how_a_weight_is_scaled() -> None:
    """e / w is the same for the weights c w of a network that divides them by c (Kwon et al. 2021)."""
    climbs = []
    for c in (1.0, 8.0):
        parameter = nn.Parameter(c * WEIGHT)
        ((parameter / c).square() @ CURVATURE).backward()
        with SAM(0.5).climbed([parameter]):
            climbs.append(parameter.detach() / c)
    torch.testing.assert_close(*climbs)


@pytest.mark.parametrize("adaptive", [True, False])
def test_radius_0_stays(adaptive: bool) -> None:
    parameters = parabola()
    with SAM(0.0, adaptive).climbed(parameters):
        assert torch.equal(torch.cat(parameters).detach(), WEIGHT)


@pytest.mark.parametrize("adaptive", [True, False])
def test_no_gradient_is_no_direction(adaptive: bool) -> None:
    parameter = nn.Parameter(WEIGHT.clone())
    parameter.grad = torch.zeros(3)
    with SAM(2.0, adaptive).climbed([parameter]):
        assert torch.equal(parameter.detach(), WEIGHT)


def test_weights_come_back_bit_for_bit() -> None:
    """w + e - e is another number than w in floating point: here for weights next to a climb 10^4 as large."""
    weights = torch.randn(1000, generator=generator(0))
    parameter = nn.Parameter(weights.clone())
    parameter.grad = torch.randn(1000, generator=generator(1))
    gradient = parameter.grad.clone()
    with SAM(1e6, adaptive=False).climbed([parameter]):
        e = parameter.detach() - weights
    assert not torch.equal(weights + e - e, weights)
    assert torch.equal(parameter.detach(), weights)
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, gradient)


def test_weights_come_back_when_the_body_raises_and_gradients_taken_inside_stay() -> None:
    parameters = parabola()
    before = [parameter.data_ptr() for parameter in parameters]
    with pytest.raises(RuntimeError, match="inside"), SAM().climbed(parameters):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 7.0)
        raise RuntimeError("inside")
    assert torch.equal(torch.cat(parameters).detach(), WEIGHT)
    assert [parameter.data_ptr() for parameter in parameters] == before
    assert all((parameter.grad == 7).all() for parameter in parameters if parameter.grad is not None)


@pytest.mark.parametrize("rho", [2.0, 0.5])
def test_weights_without_a_gradient_stay_and_do_not_count(rho: float) -> None:
    idle, model = nn.Parameter(torch.full((4,), 100.0)), parabola()
    with SAM(rho).climbed([model[0], idle, model[1]]):
        assert torch.equal(idle.detach(), torch.full((4,), 100.0))
        beside = torch.cat(model).detach()
    with SAM(rho).climbed(model):
        assert torch.equal(torch.cat(model).detach(), beside)


def test_any_iterable_is_climbed_and_inside_the_weights_have_gradients() -> None:
    model = nn.Linear(3, 1)
    model(torch.ones(1, 3)).sum().backward()
    with SAM(0.1).climbed(model.parameters()):
        loss: Tensor = model(torch.ones(1, 3)).square().sum()
        assert torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("fields", [{"rho": -0.1}, {"rho": math.nan}, {"rho": math.inf}])
def test_bad_radius(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="rho"):
        SAM(**fields)
