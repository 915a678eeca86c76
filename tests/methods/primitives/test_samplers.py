import math
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.errors import InputError
from methods.primitives.random import generator
from methods.primitives.samplers import SGLD, ClassGaussian, ReplayBuffer


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
    ],
)
def test_bad_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="SGLD"):
        SGLD(**fields)


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


def gaussian_data() -> tuple[Tensor, Tensor]:
    """Correlated pixels well inside [0, 1], so that the clamp does not bite; the classes are interleaved."""
    z = torch.randn(40, 4, generator=generator(0, "data"))
    mix = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, -0.5, 0.0], [0.0, 0.0, 1.0, 0.2], [0.0, 0.0, 0.0, 1.0]])
    labels = torch.arange(40) % 2
    images = 0.4 + 0.1 * labels[:, None] + 0.03 * z @ mix
    return images.view(40, 1, 2, 2), labels


@pytest.mark.parametrize("label", [0, 1])
def test_class_gaussian_has_the_mean_and_covariance_of_the_class(label: int) -> None:
    images, labels = gaussian_data()
    gaussian = ClassGaussian(images, labels, num_classes=2, ridge=0.01)
    x = gaussian.sample(torch.full((40000,), label), generator(1)).flatten(1)
    members = images[labels == label].flatten(1)
    torch.testing.assert_close(x.mean(0), members.mean(0), atol=1e-3, rtol=0)
    covariance = members.T.cov(correction=0) + 0.01**2 * torch.eye(4)
    torch.testing.assert_close(x.T.cov(), covariance, atol=5e-5, rtol=0)


def test_class_gaussian_keeps_the_order_of_the_labels() -> None:
    images, labels = gaussian_data()
    gaussian = ClassGaussian(images, labels, num_classes=2)
    x = gaussian.sample(torch.tensor([1, 0] * 500), generator(1))
    difference = x[0::2].mean() - x[1::2].mean()
    assert difference.item() == pytest.approx(
        (images[labels == 1].mean() - images[labels == 0].mean()).item(), abs=5e-3
    )


def test_class_gaussian_reads_uint8_as_unit_images() -> None:
    images, labels = gaussian_data()
    coded = (images * 255).round().to(torch.uint8)
    y = torch.tensor([0, 1, 1])
    from_bytes = ClassGaussian(coded, labels, num_classes=2).sample(y, generator(1))
    from_floats = ClassGaussian(coded.float() / 255, labels, num_classes=2).sample(y, generator(1))
    torch.testing.assert_close(from_bytes, from_floats, atol=1e-6, rtol=0)


def test_class_gaussian_clamps_and_adds_the_ridge() -> None:
    black = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    x = ClassGaussian(black, torch.zeros(3, dtype=torch.int64), num_classes=1, ridge=0.005).sample_any(
        500, generator(1)
    )
    assert x.shape == (500, 1, 8, 8) and x.min() == 0
    assert x[x > 0].square().mean().sqrt().item() == pytest.approx(0.005, rel=0.03)
    assert (x == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_sample_any_draws_classes_uniformly() -> None:
    images = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(4, 1, 1, 1)
    gaussian = ClassGaussian(images, torch.tensor([0, 1, 2, 2]), num_classes=3, ridge=0.0)
    x = gaussian.sample_any(6000, generator(1)).flatten()
    assert torch.isclose(x, torch.tensor(0.2)).float().mean().item() == pytest.approx(1 / 3, abs=0.03)
    assert torch.isclose(x, torch.tensor(0.4)).float().mean().item() == pytest.approx(1 / 3, abs=0.03)


def test_class_gaussian_keeps_the_training_set_out_of_checkpoints() -> None:
    images, labels = gaussian_data()
    assert not ClassGaussian(images, labels, num_classes=2).state_dict()


def test_class_gaussian_needs_every_class() -> None:
    images, labels = gaussian_data()
    with pytest.raises(InputError, match="class 2 has none"):
        ClassGaussian(images, labels, num_classes=3)
