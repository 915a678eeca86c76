import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.losses import kl_divergence
from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel

LINF = ThreatModel("Linf", Fraction(8, 255))
L2 = ThreatModel("L2", Fraction(1, 2))
SHAPE = (3, 2, 4, 4)
W = torch.randn(SHAPE, generator=generator(0, "w"))
X = torch.full(SHAPE, 0.5)
EDGES = torch.rand(SHAPE, generator=generator(0, "x")).round(decimals=1)
STARTS = ("uniform", "normal", "zero")


def linear(x: Tensor) -> Tensor:
    """A linear model's margin: its optimum in a ball is known."""
    return (W * x).flatten(1).sum(1)


def curved(x: Tensor) -> Tensor:
    return (W * (9 * x).sin()).flatten(1).sum(1)


def constant_slope(slope: float, x: Tensor) -> Tensor:
    return slope * x.flatten(1).sum(1)


@pytest.mark.parametrize("start", STARTS)
def test_linear_model_linf_reaches_the_corner(start: Any) -> None:
    x_adv = PGD(steps=10, step_size=0.25, start=start)(linear, X, LINF, generator(1))
    torch.testing.assert_close(x_adv, X + LINF.radius * W.sign(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("start", STARTS)
def test_linear_model_l2_reaches_the_analytic_optimum(start: Any) -> None:
    x_adv = PGD(steps=60, step_size=0.25, start=start)(linear, X, L2, generator(1))
    norm = W.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_adv, X + L2.radius * W / norm, atol=1e-4, rtol=0)


def test_corner_inside_the_cube() -> None:
    x_adv = PGD(steps=10)(linear, EDGES, LINF, generator(1))
    torch.testing.assert_close(x_adv, (EDGES + LINF.radius * W.sign()).clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("threat", [LINF, L2])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("keep", ["last", "best"])
def test_result_lies_in_the_ball_and_in_the_cube(threat: ThreatModel, start: Any, keep: Any) -> None:
    x_adv = PGD(steps=3, step_size=0.7, start=start, keep=keep)(curved, EDGES, threat, generator(1))
    assert threat.distance(x_adv, EDGES).max() <= threat.radius + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert not x_adv.requires_grad


def test_step_size_is_a_fraction_of_eps() -> None:
    x_adv = PGD(steps=1, step_size=0.25, start="zero")(linear, X, LINF, generator(1))
    torch.testing.assert_close(x_adv, X + 2 / 255 * W.sign())
    x_adv = PGD(steps=1, step_size=0.25, start="zero")(linear, X, L2, generator(1))
    torch.testing.assert_close(L2.distance(x_adv, X), torch.full((3,), 0.125))


def test_directions_of_a_step() -> None:
    loose = PGD(steps=1, step_size=0.5, start="zero", project=False)
    norm = W.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for direction, ascent in (("steepest", W.sign()), ("gradient", W), ("normalised", W / norm)):
        pgd = dataclasses.replace(loose, direction=direction)
        torch.testing.assert_close(pgd(linear, X, LINF, generator(1)), X + 0.5 * LINF.radius * ascent)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("start", STARTS)
def test_eps_zero_returns_x(norm: str, start: Any) -> None:
    threat = ThreatModel.parse(f"{norm}:0")
    assert torch.equal(PGD(start=start)(linear, EDGES, threat, generator(1)), EDGES)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_flat_objective_moves_nothing(norm: str) -> None:
    threat = ThreatModel.parse(f"{norm}:0.1")
    x_adv = PGD(start="zero")(lambda x: 0 * x.flatten(1).sum(1), EDGES, threat, generator(1))
    torch.testing.assert_close(x_adv, EDGES, atol=1e-7, rtol=0)


def test_same_seed_same_bits_other_seed_other_start() -> None:
    pgd = PGD(steps=3, step_size=0.1)
    first = pgd(curved, EDGES, LINF, generator(1))
    assert torch.equal(first, pgd(curved, EDGES, LINF, generator(1)))
    assert not torch.equal(first, pgd(curved, EDGES, LINF, generator(2)))


def test_zero_start_draws_nothing() -> None:
    stream = generator(1)
    before = stream.get_state()
    PGD(start="zero")(linear, X, LINF, stream)
    assert torch.equal(before, stream.get_state())


@pytest.mark.parametrize(("start", "share"), [("uniform", 1.0), ("normal", None)])
def test_what_the_objective_sees_first(start: Any, share: float | None) -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return linear(x)

    PGD(steps=1, start=start)(watch, EDGES, LINF, generator(1))
    delta = seen[0] - EDGES
    if share is None:
        assert 0.0005 < delta.std() < 0.002
        assert seen[0].min() < 0 or seen[0].max() > 1
    else:
        assert 0.5 * LINF.radius < delta.abs().max() <= LINF.radius + 1e-6
        assert seen[0].min() >= 0 and seen[0].max() <= 1


def test_start_scale_shrinks_the_uniform_start() -> None:
    pgd = PGD(steps=1, step_size=1e-9, start_scale=0.5)
    distance = LINF.distance(pgd(linear, X, LINF, generator(1)), X)
    assert distance.max() <= 0.5 * LINF.radius + 1e-6 and distance.min() > 0.4 * LINF.radius


def test_without_projection_only_the_cube_binds() -> None:
    x_adv = PGD(steps=5, step_size=0.25, start="zero", project=False)(linear, EDGES, LINF, generator(1))
    torch.testing.assert_close(x_adv, (EDGES + 5 * 2 / 255 * W.sign()).clamp(0, 1))


def test_x_start_replaces_the_first_start_only() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return linear(x)

    carried = X + 0.01
    PGD(steps=1, restarts=2)(watch, X, LINF, generator(1), x_start=carried)
    torch.testing.assert_close(seen[0], carried)
    assert not torch.equal(seen[2], carried)
    x_adv = PGD(steps=1, step_size=1e-9)(linear, X, LINF, generator(1), x_start=X + 1)
    torch.testing.assert_close(x_adv, X + LINF.radius)


def test_done_images_are_frozen_where_they_are() -> None:
    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        shift = (x - X).flatten(1).amax(1) / LINF.radius
        return constant_slope(1.0, x), shift > torch.tensor([-1.0, 0.4, 9.0])

    x_adv = PGD(steps=10, step_size=0.25, start="zero")(objective, X, LINF, generator(1))
    moved = (x_adv - X).flatten(1).amax(1) / LINF.radius
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.5, 1.0]))


def test_done_images_are_frozen_when_images_share_their_value_as_under_batch_statistics() -> None:
    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        return linear(x).mean().expand(3), torch.tensor([True, False, True])

    x_adv = PGD(start="zero")(objective, X, LINF, generator(1))
    assert [torch.equal(after, before) for after, before in zip(x_adv, X, strict=True)] == [True, False, True]


def test_the_attack_ends_when_all_images_are_done() -> None:
    calls = 0

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return linear(x), torch.ones(len(x), dtype=torch.bool)

    PGD(steps=10)(objective, X, LINF, generator(1))
    assert calls == 1


def test_an_image_done_at_an_unclamped_start_is_still_confined() -> None:
    corner = torch.zeros(SHAPE)
    x_adv = PGD(start="normal")(lambda x: (linear(x), linear(x) < 9e9), corner, LINF, generator(1))
    assert x_adv.min() >= 0


def overshooting(x: Tensor) -> Tensor:
    """Highest at a shift of 0.3 eps, which steps of 0.25 eps pass."""
    return -(((x - X) / LINF.radius - 0.3).flatten(1).mean(1) ** 2)


def test_best_keeps_the_highest_iterate() -> None:
    last = PGD(steps=2, step_size=0.25, start="zero")(overshooting, X, LINF, generator(1))
    best = PGD(steps=2, step_size=0.25, start="zero", keep="best")(overshooting, X, LINF, generator(1))
    torch.testing.assert_close((last - X) / LINF.radius, torch.full(SHAPE, 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close((best - X) / LINF.radius, torch.full(SHAPE, 0.25), atol=1e-4, rtol=0)


def test_best_counts_the_start() -> None:
    x_adv = PGD(steps=3, step_size=1.0, start="zero", keep="best")(overshooting, X, LINF, generator(1))
    assert torch.equal(x_adv, X)


def test_best_prefers_a_done_image_to_a_higher_value() -> None:
    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        shift = ((x - X) / LINF.radius).flatten(1).mean(1)
        return -shift.abs() + 0 * linear(x), (shift > 0.9) | (shift < -0.9)

    x_start = X + 0.2 * LINF.radius
    x_adv = PGD(steps=1, step_size=2.0, keep="best")(objective, X, LINF, generator(1), x_start=x_start)
    torch.testing.assert_close((x_adv - X) / LINF.radius, torch.full(SHAPE, -1.0), atol=1e-4, rtol=0)


def test_best_costs_one_more_evaluation() -> None:
    calls = 0

    def objective(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return linear(x)

    PGD(steps=4)(objective, X, LINF, generator(1))
    assert calls == 4
    PGD(steps=4, keep="best")(objective, X, LINF, generator(1))
    assert calls == 4 + 5


def test_restarts_never_lower_an_image_and_raise_some() -> None:
    one = PGD(steps=2, step_size=0.05)
    many = dataclasses.replace(one, restarts=8)
    single, several = (curved(pgd(curved, EDGES, LINF, generator(1))) for pgd in (one, many))
    assert (several >= single - 1e-6).all() and (several > single + 1e-3).any()


def test_a_nan_value_is_never_kept() -> None:
    def objective(x: Tensor) -> Tensor:
        value = constant_slope(1.0, x)
        return value.masked_fill(value > constant_slope(1.0, X) + 0.6, float("nan"))

    x_adv = PGD(steps=10, step_size=0.25, start="zero", keep="best")(objective, X, LINF, generator(1))
    assert objective(x_adv).isfinite().all() and (x_adv > X).all()


def test_gradients_are_taken_of_the_images_only() -> None:
    weight = W.clone().requires_grad_()
    with torch.no_grad():
        x_adv = PGD()(lambda x: (weight * x).flatten(1).sum(1), X, LINF, generator(1))
    assert weight.grad is None and not X.requires_grad
    torch.testing.assert_close(x_adv, X + LINF.radius * W.sign(), atol=1e-6, rtol=0)


def test_kl_is_flat_at_the_clean_image_so_that_the_random_start_matters() -> None:
    def objective(x: Tensor) -> Tensor:
        """KL(p(X) || p(x)) of two classes with logits s and -s, s = <W, x - X>: log cosh s."""
        s = linear(x - X)
        return kl_divergence(torch.zeros(3, 2), torch.stack([s, -s], 1))

    assert torch.equal(PGD(start="zero")(objective, X, LINF, generator(1)), X)
    corner = (LINF.radius * W.flatten(1).abs().sum(1)).cosh().log()
    for start in ("normal", "uniform"):
        x_adv = PGD(start=start)(objective, X, LINF, generator(1))
        torch.testing.assert_close(objective(x_adv), corner, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("step_size", 0.0),
        ("step_size", float("nan")),
        ("step_size", float("inf")),
        ("start", "uniforme"),
        ("start_scale", -1.0),
        ("restarts", 0),
        ("keep", "first"),
        ("direction", "sign"),
    ],
)
def test_bad_fields(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        PGD(**{field: value})  # pyright: ignore[reportArgumentType]


def test_bad_start_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match='Did you mean "uniform"'):
        PGD(start="uniforme")  # pyright: ignore[reportArgumentType]


def test_restarts_need_a_random_start() -> None:
    with pytest.raises(InputError, match="random"):
        PGD(restarts=2, start="zero")
