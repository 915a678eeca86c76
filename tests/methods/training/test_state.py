"""The state of a training: the format of the files it is saved in, and what a rollback leaves alone."""

from collections.abc import Callable

import pytest
import torch

from methods.data import Dataset
from methods.training.config import Experiment
from methods.training.setup import set_up
from methods.training.state import Best, History, TrainState

Make = Callable[..., Experiment]

LEARNT = ["done", "best", "model", "method", "optimizer", "ema"]
HISTORY = ["seconds", "commits", "log_bytes", "interventions", "snapshots"]


@pytest.fixture
def make_state(make_experiment: Make, digits: Dataset) -> Callable[..., TrainState]:
    """Make the state of a training that has not begun."""
    return lambda **train: set_up(make_experiment("jem", **train), digits, torch.device("cpu")).state


def test_keys_are_those_of_files_that_exist(make_state: Callable[..., TrainState]) -> None:
    """Trainings that were interrupted under an earlier version have these keys in state.pt and good-*.pt."""
    state = make_state()
    assert list(state.learnt()) == LEARNT
    assert list(state.state_dict()) == LEARNT + HISTORY
    assert list(state.state_dict()["best"]) == ["score", "epoch", "validation"]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_round_trip(ema: float | None, make_state: Callable[..., TrainState]) -> None:
    state, other = make_state(ema=ema), make_state(ema=ema)
    with torch.no_grad():
        for tensor in [*state.model.parameters(), *state.method.buffers(), *state.result.parameters()]:
            tensor.add_(1)
    state.done, state.best = 7, Best(50.0, 2, {"clean": 90.0, "robust": 50.0})
    state.history = History(1.5, ["a", "b"], 99, [{"to": 3}], ["good-1-6.pt"])
    other.history.commits = ["b", "c"]
    other.load_state_dict(state.state_dict())
    assert (other.done, other.best, other.restarts) == (7, state.best, 1)
    # The code that goes on is added, once.
    assert other.history == History(1.5, ["a", "b", "c"], 99, [{"to": 3}], ["good-1-6.pt"])
    for part in ("model", "method", "result"):
        found, wanted = (getattr(owner, part).state_dict() for owner in (other, state))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), part


def test_rollback_leaves_the_history_alone(make_state: Callable[..., TrainState]) -> None:
    state, other = make_state(), make_state()
    state.done = 7
    other.history = History(1.5, ["a"], 99, [{"to": 3}], ["good-1-6.pt"])
    other.load_learnt(state.state_dict())
    assert other.done == 7
    assert other.history == History(1.5, ["a"], 99, [{"to": 3}], ["good-1-6.pt"])


@pytest.mark.parametrize("missing", LEARNT[:-1] + HISTORY)
def test_state_without_a_part_is_refused(missing: str, make_state: Callable[..., TrainState]) -> None:
    state = make_state()
    saved = state.state_dict()
    del saved[missing]
    with pytest.raises(KeyError, match=missing):
        state.load_state_dict(saved)
