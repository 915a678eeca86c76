"""JEM++'s proximal inner loop, and chains whose batch statistics couple them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.backbones import Classifier
from methods.errors import InputError
from methods.training.method import Batch, Method

LITERAL = {"inner_steps": 5, "step_size": 0.05}


def chains(make_method: Callable[..., Method], model: Classifier, batch: Batch, **sampler: Any) -> Tensor:
    method = make_method("jempp", {"negatives": {"sampler": sampler}}).to(model.mean.dtype)
    return method.inner(model, batch)["x_q"]


@pytest.mark.parametrize("settings", [{"architecture": "jem-wrn", "normalize": "half"}, {}])
def test_literal_loop_is_the_exact_step(
    settings: dict[str, Any], make_method: Callable[..., Method], network: Callable[..., Classifier], batch: Batch
) -> None:
    """energy-methods.md 3.1: x <- clamp(x + N 0.2 clamp(grad LSE, -1, 1), -1, 1), exactly.

    Behind many steps rounding moves the chains apart; of two, in train mode, they agree to 1e-5.
    """
    step = chains(make_method, network(**settings), batch, steps=2)
    literal = chains(make_method, network(**settings), batch, steps=2, **LITERAL)
    torch.testing.assert_close(literal, step, atol=1e-5, rtol=0)
    shorter = chains(make_method, network(**settings), batch, steps=2, step_size=0.05)
    assert (shorter - step).abs().max() > 1e-3


def test_ten_steps_of_either_end_alike(
    make_method: Callable[..., Method],
    network: Callable[..., Classifier],
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In float64 throughout: in float32 rounding moves a unit over the kink of its activation within so many steps.
    monkeypatch.setattr(Classifier, "_cast", lambda self, function, x: function(x))
    ends = [chains(make_method, network().double(), batch, **sampler) for sampler in ({}, LITERAL)]
    torch.testing.assert_close(ends[1], ends[0], atol=1e-9, rtol=0)


def test_literal_loop_moves_the_statistics_as_the_step_does(
    make_method: Callable[..., Method], network: Callable[..., Classifier], batch: Batch
) -> None:
    models = [network(), network()]
    for model, sampler in zip(models, ({}, LITERAL), strict=True):
        chains(make_method, model, batch, steps=3, **sampler)
    for one, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not all(torch.equal(*pair) for pair in zip(models[0].buffers(), network().buffers(), strict=True))


def test_literal_loop_needs_a_wide_residual_network(
    make_method: Callable[..., Method], network: Callable[..., Classifier], batch: Batch
) -> None:
    model = network(architecture="timm:resnet10t")
    with pytest.raises(InputError, match="Only wide residual networks") as caught:
        chains(make_method, model, batch, **LITERAL)
    assert "\n" not in str(caught.value)
    assert chains(make_method, model, batch).isfinite().all()
