"""Pieces change neither values nor gradients, and only one of them is ever in memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from methods.backbones import BackboneConfig, build
from methods.errors import InputError
from methods.primitives.splitting import in_pieces


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    config = BackboneConfig(depth=10, widen=1, normalize="half")
    return build(config, 3, (1, 8, 8), (0.5,), (0.5,)).eval()


def images(n: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def seen(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> list[Tensor]:
    """Return value, input gradient and weight gradients of a loss that weighs rows differently."""
    x = x.clone().requires_grad_()
    logits = function(x)
    loss = (logits.logsumexp(1) * torch.arange(1.0, len(x) + 1)).sum()
    return [logits.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.parametrize("n", [1, 3, 4, 10])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_whole(network: nn.Module, n: int, autocast: torch.dtype | None) -> None:
    network.__dict__["autocast"] = autocast
    rtol, atol = (1e-4, 1e-5) if autocast is None else (0.1, 0.02)
    whole, pieced = (seen(function, images(n), network) for function in (network, in_pieces(network, 3)))
    for wanted, got in zip(whole, pieced, strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


def test_no_rows_give_no_rows(network: nn.Module) -> None:
    assert in_pieces(network, 3)(images(0)).shape == (0, 3)


def test_a_gradient_can_be_taken_once_for_each_class(network: nn.Module) -> None:
    x = images(5).requires_grad_()
    logits = in_pieces(network, 2)(x)
    got = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=k < 2)[0] for k in range(3)]
    wanted = [torch.autograd.grad(network(x)[:, k].sum(), x)[0] for k in range(3)]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rows", "most"), [(2, 2), (3, 3), (8, 8), (100, 8)])
def test_a_graph_of_one_piece_is_kept_at_a_time(rows: int, most: int) -> None:
    kept: list[tuple[StorageWeakRef, int]] = []
    peak = 0

    def function(x: Tensor) -> Tensor:
        nonlocal peak
        hidden = x.exp()
        kept.append((StorageWeakRef(hidden.untyped_storage()), len(x)))
        peak = max(peak, sum(n for reference, n in kept if not reference.expired()))
        return hidden.sin().sum(1)

    x = torch.rand(8, 5, requires_grad=True)
    in_pieces(function, rows)(x).sum().backward()
    assert peak == most
    assert x.grad is not None
    torch.testing.assert_close(x.grad, x.exp().cos() * x.exp())


def test_without_gradients_nothing_is_computed_twice() -> None:
    calls: list[int] = []

    def function(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    with torch.no_grad():
        in_pieces(function, 3)(torch.zeros(7, 2))
    assert calls == [3, 3, 1]


def test_a_piece_has_a_row() -> None:
    with pytest.raises(InputError, match="at least 1 row, not 0"):
        in_pieces(torch.exp, 0)
