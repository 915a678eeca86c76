"""The attack with a strategy for each image."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.per_sample_attack import Choices, PerSamplePGD
from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel

LINF = ThreatModel.parse("Linf:0.1")
X = torch.tensor([[0.4, 0.5, 0.6], [0.6, 0.4, 0.5], [0.5, 0.5, 0.02]])


def curved(x: Tensor) -> Tensor:
    """A value whose gradient changes sign on the way, so that every step counts."""
    return (40 * x + torch.arange(3)).sin().sum(1)


def attack(steps: list[int], eps: float = 1.0, step_size: float = 0.25) -> PerSamplePGD:
    count = len(steps)
    return PerSamplePGD(torch.full((count,), eps), torch.full((count,), step_size), torch.tensor(steps))


@pytest.mark.parametrize("threat", ["Linf:0.1", "L2:0.1"])
@pytest.mark.parametrize("start", ["uniform", "normal"])
def test_one_strategy_for_all_is_plain_pgd(threat: str, start: str) -> None:
    ball = ThreatModel.parse(threat)
    ours = replace(attack([4, 4, 4]), start=start)(curved, X, ball, generator(0))
    plain = PGD(steps=4, step_size=0.25, start=start)(curved, X, ball, generator(0))  # type: ignore[arg-type]
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)


def test_an_image_stops_after_its_own_steps() -> None:
    """adversarial-training.md, trap 11: with 3 steps it is the same whether others go on or not."""
    mixed = attack([3, 9, 1])(curved, X, LINF, generator(0))
    for index, steps in enumerate((3, 9, 1)):
        alone = attack([steps] * 3)(curved, X, LINF, generator(0))
        assert torch.equal(mixed[index], alone[index])
    assert not torch.equal(mixed, attack([9, 9, 9])(curved, X, LINF, generator(0)))


def test_as_many_passes_as_the_longest_strategy_has_steps() -> None:
    seen = []
    attack([3, 7, 1])(lambda x: (seen.append(len(x)), curved(x))[1], X, LINF, generator(0))
    assert seen == [3] * 7


@pytest.mark.parametrize("threat", ["Linf:0.1", "L2:0.1"])
def test_every_image_has_its_own_ball(threat: str) -> None:
    ball = ThreatModel.parse(threat)
    eps = torch.tensor([0.375, 1.0, 1.875])
    climb = PerSamplePGD(eps, torch.full((3,), 0.5), torch.full((3,), 10))
    x_adv = climb(lambda x: x[:, :2].sum(1), X, ball, generator(0))
    torch.testing.assert_close(ball.distance(x_adv, X), 0.1 * eps, atol=1e-6, rtol=0)
    assert not x_adv.requires_grad
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_choices_by_name() -> None:
    choices = Choices(eps=(0.5, 1.0), step_size=(0.25,), steps=(3, 5, 7))
    values = choices.values([torch.tensor([1, 0]), torch.tensor([2, 1]), torch.tensor([0, 0])])
    assert {name: value.tolist() for name, value in values.items()} == {
        "eps": [1.0, 0.5],
        "step_size": [0.25, 0.25],
        "steps": [7, 5],
    }
    assert list(Choices(beta=(5.0,)).named) == ["eps", "steps", "step_size", "beta"]


@pytest.mark.parametrize(("name", "values"), [("eps", ()), ("steps", (3, 0)), ("step_size", (-1.0,)), ("beta", (0.0,))])
def test_impossible_choices_are_refused(name: str, values: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=name):
        Choices(**{name: values})  # type: ignore[arg-type]
