from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.energy import marginal_energy
from methods.primitives.negatives import Chains, Negatives
from methods.primitives.random import generator
from methods.primitives.samplers import SGLD
from methods.primitives.starts import Uniform

LABELS = torch.arange(12) % 3


def images() -> Tensor:
    return torch.rand(12, 1, 4, 4, generator=generator(0, "images"))


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 3))


class ByClass(Uniform):
    """Starts that tell their class: images of label / 10."""

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return (y / 10).view(-1, 1, 1, 1).expand(-1, *self.image_shape).clone()


def negatives(start: Any = Uniform, **settings: Any) -> Negatives:
    chains = Chains(**{"buffer_size": 20, "sampler": SGLD(steps=2)} | settings)
    return Negatives(chains, start(images(), LABELS, 3), generator(0, "buffer"))


def sampled(chains: Negatives, model: nn.Module, n: int = 6, step: int = 0) -> Tensor:
    return chains.sample(model, lambda x: marginal_energy(model(x)), n, generator(step, "sampler"))


def buffers(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.buffers()]


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("eval", False)])
def test_mode_decides_the_statistics_whatever_the_model_is_in(mode: str, moves: bool, outside: bool) -> None:
    model = network().train(outside)
    before, weights = buffers(model), [parameter.clone() for parameter in model.parameters()]
    chains = negatives(mode=mode, restart_probability=0.0)
    x = sampled(chains, model)
    moved = [not torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True)]
    assert moved == [moves] * 3
    if moves:
        # Momentum 0.1, one pass a step: the chains are coupled by batch statistics, the running ones only follow.
        assert [value.item() for value in model.buffers() if not value.dim()] == [2]
    assert all(module.training == outside for module in model.modules())
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not x.requires_grad


def test_chains_couple_in_train_mode_only() -> None:
    ends = {}
    for mode in ("train", "eval"):
        for n in (6, 1):
            chains = negatives(mode=mode, restart_probability=0.0)
            stored = chains.buffer.images.clone()
            x = sampled(chains, network(), n)
            first = int(torch.randint(20, (n,), generator=generator(0, "sampler"))[0])
            ends[mode, n] = x[0] - stored[first]
    torch.testing.assert_close(ends["eval", 6], ends["eval", 1], atol=1e-6, rtol=0)
    assert not torch.allclose(ends["train", 6], ends["train", 1], atol=1e-4)


def test_chains_go_on_from_the_buffer_and_are_written_back() -> None:
    chains, model = negatives(mode="eval", restart_probability=0.0), network()
    stored = chains.buffer.images.clone()
    x = sampled(chains, model)
    changed = (stored != chains.buffer.images).flatten(1).any(1)
    assert 1 <= changed.sum() <= 6 == len(x)
    assert all(any(torch.equal(image, end) for end in x) for image in chains.buffer.images[changed])
    with torch.no_grad():
        model.eval()
        before, after = (marginal_energy(model(images[changed])) for images in (stored, chains.buffer.images))
    assert (after < before).all()


@pytest.mark.parametrize(("probability", "known"), [(0.0, 6), (1.0, 0)])
def test_restarts(probability: float, known: int) -> None:
    """Chains of no step show where they begin."""
    chains = negatives(restart_probability=probability, sampler=SGLD(steps=0))
    stored = chains.buffer.images.clone()
    x = sampled(chains, network())
    assert sum(any(torch.equal(end, image) for image in stored) for end in x) == known
    assert all(any(torch.equal(end, image) for image in chains.buffer.images) for end in x)


def test_buffer_begins_with_equally_many_of_each_class() -> None:
    values = negatives(ByClass, buffer_size=21).buffer.images[:, 0, 0, 0]
    assert [int(torch.isclose(values, torch.tensor(label / 10)).sum()) for label in range(3)] == [7, 7, 7]


def test_a_sample_is_a_function_of_its_stream() -> None:
    first, again, other = (sampled(negatives(), network(), step=step) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_state_is_the_buffer_alone() -> None:
    assert set(negatives().state_dict()) == {"buffer.images", "buffer.moments"}


def test_report_shows_the_buffer_and_the_last_chains() -> None:
    chains = negatives()
    assert set(chains.report()) == {"buffer_mean", "buffer_std", "buffer_saturated"}
    sampled(chains, network())
    report = chains.report()
    assert set(report) == {"buffer_mean", "buffer_std", "buffer_saturated", "clip_rate"}
    assert all(value.ndim == 0 and value.isfinite() for value in report.values())
    assert report["buffer_mean"].item() == pytest.approx(chains.buffer.images.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": "gausian"}, 'not "gausian". Did you mean "gaussian"'),
        ({"buffer_size": 0}, "buffer_size must be at least 1, not 0"),
        ({"restart_probability": -0.1}, r"in \[0, 1\], not -0.1"),
        ({"restart_probability": 1.1}, r"in \[0, 1\], not 1.1"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Chains(**settings)


def test_buffer_smaller_than_a_draw_is_refused() -> None:
    Chains(buffer_size=64).check(64)
    with pytest.raises(InputError, match="buffer_size is 63, fewer than the 64 chains of a step"):
        Chains(buffer_size=63).check(64)
