from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.primitives.modes import fixed_statistics, frozen, mode, restored

X = torch.linspace(-1, 2, 4 * 3 * 5 * 5).reshape(4, 3, 5, 5)


def mixed_model() -> nn.Sequential:
    """A model in a state that no single call of train() or eval() produces."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Sequential(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2)),
    )
    model[2].eval()
    model[3].eval()
    nested = model[3]
    assert isinstance(nested, nn.Sequential)
    nested[2].train()
    model[0].weight.requires_grad_(False)
    return model


def flags(model: nn.Module) -> list[Any]:
    modules = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    return [*modules, *(p.requires_grad for p in model.parameters()), *(p.grad for p in model.parameters())]


def buffers(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def unchanged(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True))


@pytest.mark.parametrize("context", [mode, frozen])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("track_statistics", [False, True])
def test_everything_is_restored(
    context: Callable[..., AbstractContextManager[nn.Module]], training: bool, track_statistics: bool
) -> None:
    model = mixed_model()
    before = flags(model)
    with context(model, training=training, track_statistics=track_statistics) as inner:
        assert inner is model
        assert all(module.training == training for module in model.modules())
        assert flags(model) != before
    assert flags(model) == before


def test_everything_is_restored_when_the_body_raises() -> None:
    model = mixed_model()
    before = flags(model)
    with pytest.raises(RuntimeError, match="inner"), frozen(model, training=True, track_statistics=False):
        raise RuntimeError("inner")
    assert flags(model) == before


def test_nested_contexts_unwind_in_order() -> None:
    model = mixed_model()
    before = flags(model)
    with frozen(model, training=True, track_statistics=False):
        outer = flags(model)
        with mode(model, training=False):
            assert not model[1].training
        assert flags(model) == outer
    assert flags(model) == before


def test_frozen_takes_no_weight_gradient_and_an_input_gradient() -> None:
    model = mixed_model()
    x = X.clone().requires_grad_()
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model(x).sin().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mode_leaves_weight_gradients_on() -> None:
    model = nn.Linear(3, 1)
    with mode(model, training=False):
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_graph_recorded_before_still_reaches_the_parameters() -> None:
    model = nn.Linear(3, 1)
    loss = model(torch.ones(1, 3)).sum()
    with frozen(model):
        model(torch.ones(1, 3))
    loss.backward()
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad, torch.ones(1, 3))


def test_eval_mode_uses_running_statistics_and_leaves_them() -> None:
    model = nn.BatchNorm2d(3)
    before = buffers(model)
    with frozen(model):
        output = model(X)
    assert unchanged(model, before)
    torch.testing.assert_close(output, X / (1 + model.eps) ** 0.5)


def test_train_mode_updates_running_statistics() -> None:
    model = nn.BatchNorm2d(3).eval()
    with frozen(model, training=True):
        model(X)
    assert model.running_mean is not None and model.num_batches_tracked is not None
    torch.testing.assert_close(model.running_mean, 0.1 * X.mean((0, 2, 3)))
    assert model.num_batches_tracked == 1 and not model.training


def test_batch_statistics_without_touching_a_buffer() -> None:
    model = nn.BatchNorm2d(3).eval()
    before = buffers(model)
    with frozen(model, training=True, track_statistics=False):
        output = model(X)
    assert unchanged(model, before)
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_fixed_statistics_leave_modes_gradients_and_buffers() -> None:
    model = mixed_model()
    before, stored = flags(model), buffers(model)
    with fixed_statistics(model) as inner:
        assert inner is model
        assert [flag[0] for flag in flags(model)[:7]] == [flag[0] for flag in before[:7]]
        model(X).sin().sum().backward()
    assert unchanged(model, stored)
    assert any(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    assert flags(model) == before
    model(X)
    assert not unchanged(model, stored)


@pytest.mark.parametrize("training", [True, False])
def test_fixed_statistics_change_no_value(training: bool) -> None:
    model, other = nn.BatchNorm2d(3).train(training), nn.BatchNorm2d(3).train(training)
    with fixed_statistics(model):
        output = model(X)
    assert torch.equal(output, other(X))


def test_fixed_statistics_are_let_go_when_the_body_raises() -> None:
    model = mixed_model()
    before = flags(model)
    with pytest.raises(RuntimeError, match="inner"), fixed_statistics(model):
        raise RuntimeError("inner")
    assert flags(model) == before


def test_restored_gives_weights_and_statistics_back_bit_for_bit() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with restored(model):
        model(torch.arange(12.0).view(4, 3)).square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "bias" in name)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
