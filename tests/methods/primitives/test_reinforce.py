"""The policy: what it draws, what it learns, and that it resumes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.random import generator
from methods.primitives.reinforce import Policy, PolicySGD

X = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.5, 0.4]])


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))


def policy(**settings: Any) -> Policy:
    return Policy(network(), [2, 3], PolicySGD(**settings))


def learn(made: Policy, step: int, reward: float = 2.0, progress: float = 0.0) -> tuple[list[Tensor], Tensor]:
    picked: list[Tensor] = []

    def value(picks: list[Tensor]) -> Tensor:
        picked.extend(picks)
        return torch.tensor(reward)

    loss = made.learn(X, generator(0, "policy", step), value, progress)
    return picked, loss


def test_choices_follow_the_probabilities_of_each_group() -> None:
    made = policy()
    many = X[:1].expand(4000, 2)
    picks = made.sample(many, generator(0))
    assert [pick.shape for pick in picks] == [(4000,), (4000,)]
    logits = made.network.eval()(X[:1])[0]
    for pick, expected in zip(picks, (logits[:2].softmax(0), logits[2:].softmax(0)), strict=True):
        found = torch.bincount(pick, minlength=len(expected)) / 4000
        torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"clip": 0.1}])
def test_a_step_is_sgd_on_reward_times_surprise(settings: dict[str, Any]) -> None:
    made, twin = policy(lr=0.5, **settings), network()
    clip = settings.pop("clip", 1.0)
    plain = torch.optim.SGD(twin.parameters(), lr=0.5, **settings)
    for step in range(3):
        (first, second), loss = learn(made, step)
        log_p = twin(X)[:, :2].log_softmax(1), twin(X)[:, 2:].log_softmax(1)
        expected = -2 * sum(p.gather(1, pick[:, None]).mean() for p, pick in zip(log_p, (first, second), strict=True))
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(loss, expected.detach())
        plain.zero_grad()
        expected.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), clip)
        plain.step()
        for ours, theirs in zip(made.network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_rewarded_choices_become_likely() -> None:
    made = policy(lr=0.5)
    for step in range(60):
        made.learn(X, generator(0, step), lambda picks: (picks[1] == 2).float().mean() - 0.5, 0.0)
    assert (made.sample(X.repeat(100, 1), generator(1))[1] == 2).float().mean() > 0.9


def test_nobody_else_moves_the_network() -> None:
    made = policy()
    wanted = [parameter.requires_grad for parameter in made.parameters()]
    learn(made, 0)
    made.sample(X, generator(0))
    assert not any(wanted)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in made.parameters())


def test_running_statistics_move_when_it_learns_and_not_when_it_chooses() -> None:
    made = policy(lr=0.0)
    before = made.network[1].running_mean.clone()  # type: ignore[index]
    made.sample(X, generator(0))
    assert torch.equal(made.network[1].running_mean, before)  # type: ignore[index]
    learn(made, 0)
    assert not torch.equal(made.network[1].running_mean, before)  # type: ignore[index]


def test_its_state_dict_is_all_that_it_depends_on() -> None:
    made, resumed = policy(momentum=0.9), policy(momentum=0.9)
    for step in range(2):
        learn(made, step)
    resumed.load_state_dict(made.state_dict())
    learn(made, 2)
    learn(resumed, 2)
    for key, value in made.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])


def test_the_rate_falls_at_milestones() -> None:
    made, late = policy(lr=0.1, milestones=(0.5, 0.75)), policy(lr=0.1, milestones=(0.5, 0.75))
    start = torch.nn.utils.parameters_to_vector(made.parameters())
    learn(made, 0, progress=0.49)
    learn(late, 0, progress=0.75)
    moved = [torch.nn.utils.parameters_to_vector(one.parameters()) - start for one in (made, late)]
    torch.testing.assert_close(moved[0], 100 * moved[1], atol=1e-4, rtol=0.05)


@pytest.mark.parametrize("field", [{"lr": -1.0}, {"momentum": 1.0}, {"clip": 0.0}, {"milestones": (1.5,)}])
def test_bad_settings_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="policy"):
        PolicySGD(**field)
