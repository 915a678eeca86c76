import math
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.errors import InputError
from methods.primitives.random import generator
from methods.primitives.samplers import SGLD, ReplayBuffer


def quadratic(x: Tensor) -> Tensor:
    """The energy of N(0, 1/2)."""
    return (x**2).flatten(1).sum(1)


def test_sgld_has_the_stationary_variance_of_its_recursion() -> None:
    sgld = SGLD(steps=200, step_size=0.05, clip=None, noise=math.sqrt(0.1), clamp=False)
    x = sgld(quadratic, torch.full((500, 20), 3.0), generator(0))
    contraction = 1 - 0.05 * 2
    assert x.mean().item() == pytest.approx(0, abs=0.02)
    assert x.var().item() == pytest.approx(0.1 / (1 - contraction**2), rel=0.03)


def test_sgld_without_noise_is_gradient_descent_and_draws_nothing() -> None:
    stream = generator(0)
    before = stream.get_state()
    x = SGLD(steps=3, step_size=0.1, clip=None, clamp=False)(quadratic, torch.full((2, 1, 2, 2), 0.5), stream)
    torch.testing.assert_close(x, torch.full((2, 1, 2, 2), 0.5 * 0.8**3))
    assert torch.equal(before, stream.get_state()) and not x.requires_grad


def test_sgld_clips_the_gradient_and_clamps_each_step() -> None:
    def steep(x: Tensor) -> Tensor:
        return (x * torch.tensor([100.0, -100.0, 0.4])).sum(1)

    start = torch.tensor([[0.9, 0.4, 0.5]])
    x = SGLD(steps=1, step_size=0.25, clip=2.0)(steep, start, generator(0))
    torch.testing.assert_close(x, torch.tensor([[0.4, 0.9, 0.4]]))
    x = SGLD(steps=2, step_size=0.25, clip=2.0)(steep, start, generator(0))
    torch.testing.assert_close(x, torch.tensor([[0.0, 1.0, 0.3]]))
    x = SGLD(steps=2, step_size=0.25, clip=2.0, clamp=False)(steep, start, generator(0))
    torch.testing.assert_close(x, torch.tensor([[-0.1, 1.4, 0.3]]))


def test_sgld_in_unit_images_equals_the_papers_computation_in_two_sided_ones() -> None:
    w = 3 * torch.randn(4, 12, generator=generator(0, "w"))

    def energy_u(u: Tensor) -> Tensor:
        return (w * u.sin()).sum(1)

    u = 2 * torch.rand(4, 12, generator=generator(0, "x")) - 1
    x = (u + 1) / 2
    noise = generator(1)
    for _ in range(5):
        leaf = u.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy_u(leaf).sum(), leaf)
        step = -1.0 * gradient.clamp(-1, 1) + 0.01 * torch.randn(u.shape, generator=noise)
        u = (u + step).clamp(-1, 1)
    sampled = SGLD(steps=5, step_size=0.25, clip=2.0, noise=0.005)(
        lambda image: energy_u(2 * image - 1), x, generator(1)
    )
    torch.testing.assert_close(sampled, (u + 1) / 2, atol=1e-5, rtol=0)


def test_no_steps_return_the_start() -> None:
    x = torch.rand(2, 3, generator=generator(0))
    assert torch.equal(SGLD(steps=0)(quadratic, x, generator(0)), x)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": -1},
        {"step_size": 0.0},
        {"step_size": math.nan},
        {"clip": 0.0},
        {"noise": -0.1},
        {"noise": math.inf},
        {"inner_steps": 0},
    ],
)
def test_bad_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="SGLD"):
        SGLD(**fields)


class Linear:
    """A first layer and a curved energy behind it, which count their calls."""

    def __init__(self, curved: bool = False) -> None:
        self.weight = torch.randn(6, 5, generator=generator(0, "layer"))
        self.curved = curved
        self.layers = self.energies = 0

    def first(self, x: Tensor) -> Tensor:
        self.layers += 1
        hidden = x @ self.weight
        return hidden.tanh() if self.curved else hidden

    def energy(self, hidden: Tensor) -> Tensor:
        self.energies += 1
        return hidden.pow(4).sum(1)


def test_literal_loop_freezes_the_gradient_at_the_first_layer() -> None:
    """PYLD by hand: x <- clamp(x - rate clip(J(x)^T p)), p the energy's gradient at the layer's output of x_0."""
    network, x = Linear(curved=True), torch.rand(3, 6, generator=generator(0, "x"))
    sgld = SGLD(steps=2, step_size=0.05, clip=0.7, inner_steps=3)
    found = sgld(network.energy, x, generator(0), network.first)
    assert network.energies == 2

    expected = x
    for _ in range(2):
        p = 4 * (expected @ network.weight).tanh().pow(3)
        for _ in range(3):
            slope = 1 - (expected @ network.weight).tanh().square()
            expected = (expected - 0.05 * ((slope * p) @ network.weight.T).clamp(-0.7, 0.7)).clamp(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clamp", [True, False])
def test_literal_loop_behind_a_linear_layer_is_one_longer_step(clamp: bool) -> None:
    network, x = Linear(), torch.rand(4, 6, generator=generator(0, "x"))
    loop = SGLD(steps=3, step_size=0.05, clip=2.0, clamp=clamp, inner_steps=5)
    step = SGLD(steps=3, step_size=0.25, clip=2.0, clamp=clamp)
    expected = step(lambda image: network.energy(network.first(image)), x, generator(0))
    torch.testing.assert_close(loop(network.energy, x, generator(0), network.first), expected, atol=1e-5, rtol=1e-5)


def test_literal_loop_adds_its_noise_once_a_step() -> None:
    network, x = Linear(), torch.full((2000, 6), 0.5)
    loop = SGLD(steps=1, step_size=1e-6, clip=1e-6, noise=0.01, inner_steps=5)
    assert (loop(network.energy, x, generator(0), network.first) - x).std().item() == pytest.approx(0.01, rel=0.03)


def test_literal_loop_needs_a_first_layer() -> None:
    with pytest.raises(InputError, match="inner_steps above 1"):
        SGLD(inner_steps=2)(quadratic, torch.rand(1, 4), generator(0))


@pytest.mark.parametrize("inner_steps", [1, 5])
@pytest.mark.parametrize(("clip", "rate"), [(2.0, 2 / 3), (1e3, 0.0), (0.1, 1.0), (None, 0.0)])
def test_trace_tells_the_share_of_clipped_entries(clip: float | None, rate: float, inner_steps: int) -> None:
    def steep(x: Tensor) -> Tensor:
        return (x * torch.tensor([100.0, -100.0, 0.4])).sum(1)

    trace: dict[str, Tensor] = {}
    sgld, x = SGLD(steps=3, clip=clip, inner_steps=inner_steps), torch.rand(2, 3, generator=generator(0))
    sgld(steep, x, generator(0), (lambda image: image) if inner_steps > 1 else None, trace)
    assert trace["clip_rate"].item() == pytest.approx(rate)


SLOTS = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 2, 2) / 10


def never(count: int) -> Tensor:
    raise AssertionError(f"{count} fresh samples were asked for")


def test_buffer_draws_uniformly_and_copies() -> None:
    buffer = ReplayBuffer(SLOTS)
    index, x = buffer.draw(20000, 0.0, never, generator(0))
    assert torch.equal(x, SLOTS[index])
    assert (index.bincount(minlength=10) - 2000).abs().max() < 250
    x.fill_(9)
    assert torch.equal(buffer.images, SLOTS)


def test_buffer_restarts_with_the_given_probability_and_calls_fresh_for_those_only() -> None:
    asked: list[int] = []

    def fresh(count: int) -> Tensor:
        asked.append(count)
        return -1 - torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    index, x = ReplayBuffer(SLOTS).draw(20000, 0.05, fresh, generator(0))
    restarted = x[:, 0, 0, 0] < 0
    assert asked == [int(restarted.sum())]
    assert restarted.float().mean().item() == pytest.approx(0.05, abs=0.006)
    assert torch.equal(x[restarted], -1 - torch.arange(float(asked[0])).view(-1, 1, 1, 1).expand(-1, 1, 2, 2))
    assert torch.equal(x[~restarted], SLOTS[index[~restarted]])


def test_buffer_restarts_all_or_none() -> None:
    buffer = ReplayBuffer(SLOTS)
    _, x = buffer.draw(5, 1.0, lambda count: torch.full((count, 1, 2, 2), 0.77), generator(0))
    torch.testing.assert_close(x, torch.full((5, 1, 2, 2), 0.77))


def test_buffer_update_writes_back_and_the_last_of_a_repeated_slot_wins() -> None:
    buffer = ReplayBuffer(SLOTS)
    chains = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2).clone().requires_grad_()
    buffer.update(torch.tensor([5, 2, 5, 0]), chains)
    expected = SLOTS.clone()
    expected[0], expected[2], expected[5] = 4.0, 2.0, 3.0
    assert torch.equal(buffer.images, expected) and not buffer.images.requires_grad


def test_buffer_does_not_alias_its_first_contents_and_is_checkpointed() -> None:
    images = SLOTS.clone()
    buffer = ReplayBuffer(images)
    images.fill_(0)
    assert torch.equal(buffer.state_dict()["images"], SLOTS)


def test_buffer_statistics() -> None:
    images = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(2, 1, 1, 2)
    statistics = ReplayBuffer(images).statistics()
    assert statistics == pytest.approx({"mean": 0.5, "std": math.sqrt(0.125), "saturated": 0.5})


def test_buffer_statistics_keep_up_with_its_contents() -> None:
    """Each slot has moments of its own; together they are those of all images, at any time and after a resume."""
    random = generator(0, "images")
    buffer = ReplayBuffer(torch.rand(10, 2, 3, 3, generator=random))
    for _ in range(50):
        index = torch.randint(10, (6,), generator=random)
        images = (1.5 * torch.rand(6, 2, 3, 3, generator=random) - 0.25).clamp(0, 1)
        buffer.update(index, images)
    resumed = ReplayBuffer(torch.zeros(10, 2, 3, 3))
    resumed.load_state_dict(buffer.state_dict())
    resumed.update(torch.tensor([3]), torch.full((1, 2, 3, 3), 0.125))
    for each in (buffer, resumed):
        images = each.images
        expected = {
            "mean": images.mean().item(),
            "std": images.std(correction=0).item(),
            "saturated": ((images == 0) | (images == 1)).float().mean().item(),
        }
        assert {name: value.item() for name, value in each.statistics().items()} == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(buffer.images, resumed.images)


def test_dead_buffer_has_no_spread() -> None:
    statistics = ReplayBuffer(torch.full((7, 3, 4, 4), 0.3)).statistics()
    assert statistics["std"] < 1e-3
    assert statistics["std"].isfinite()
