"""One computation on several processes, the ranks, each of which holds some rows of every batch.

Ranks share nothing but what this module exchanges. A loss that is written with :func:`mean` has on every rank the value
that it would have on all rows together, and its gradients, added up over the ranks, are those of that value, however
unevenly the rows are dealt out. Where no ranks are :func:`joined`, each function is the plain computation, to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")

_together = False


def count() -> int:
    """Return how many ranks compute together now; 1 for a process by itself."""
    return dist.get_world_size() if _together else 1


def rank() -> int:
    """Return this process's place among the ranks that compute together now, from 0."""
    return dist.get_rank() if _together else 0


@contextmanager
def joined() -> Iterator[None]:
    """Let the functions of this module span the ranks of torch's process group, which must be initialised."""
    with _set(True):
        yield


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Let each rank compute by itself; afterwards the model's running statistics are their mean over the ranks."""
    with _set(False):
        yield
    if count() > 1:
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        statistics = [buffer for layer in layers for buffer in layer.buffers() if buffer.is_floating_point()]
        add_up(statistics)
        for statistic in statistics:
            statistic /= count()


@contextmanager
def _set(together: bool) -> Iterator[None]:
    global _together
    before, _together = _together, together
    try:
        yield
    finally:
        _together = before


def share(rows: int) -> slice:
    """Return which of so many rows are this rank's: contiguous, and at most one more than another rank's."""
    return slice(rows * rank() // count(), rows * (rank() + 1) // count())


def mean(values: Tensor, dim: int | None = None) -> Tensor:
    """Return the mean of all entries [] over all ranks, or over the rows of all ranks (``dim`` 0) [...].

    Its gradient is that of this rank's entries alone; a rank may have none.
    """
    if count() == 1:
        return values.mean() if dim is None else values.mean(dim)
    result: Tensor = _Mean.apply(values if dim == 0 else values.flatten())
    return result


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        sums = torch.cat([values.sum(0).flatten(), values.new_full((1,), len(values))])
        dist.all_reduce(sums)
        ctx.rows, ctx.shape = sums[-1], values.shape
        return (sums[:-1] / sums[-1]).view(values.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient / ctx.rows).expand(ctx.shape)


def largest(values: Tensor) -> Tensor:
    """Return the largest of the entries of all ranks, a scalar; a rank may have none."""
    if count() == 1:
        return values.max()
    top = values.max() if values.numel() else values.new_full((), -torch.inf)
    # Unlike torch's maximum, that of a collective may lose a NaN.
    lost = top.isnan().to(top)
    both = torch.stack([top.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf), lost])
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return torch.where(both[1] > 0, torch.nan, both[0])


def total(value: Tensor) -> Tensor:
    """Return the sum over the ranks of a tensor that has one shape on all of them, without a gradient."""
    if count() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def add_up(tensors: Sequence[Tensor]) -> None:
    """Put into each tensor the sum of what it is on all ranks; one exchange for all of a type."""
    if count() == 1:
        return
    for kind in {(tensor.dtype, tensor.device) for tensor in tensors}:
        chosen = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in chosen])
        dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, values in zip(chosen, flat.split([tensor.numel() for tensor in chosen]), strict=True):
                tensor.copy_(values.view(tensor.shape))


def gather(rows: Tensor) -> None:
    """Put into a tensor that all ranks hold, [n, ...], what each has in its own :func:`share` of the rows."""
    own = share(len(rows))
    for source in range(count() if count() > 1 else 0):
        part = slice(len(rows) * source // count(), len(rows) * (source + 1) // count())
        sent = rows[part].contiguous()
        dist.broadcast(sent, source)
        if part != own:
            rows[part] = sent


def agreed(decide: Callable[[], T]) -> T:
    """Return what rank 0 decides; no other rank is asked. Whatever rank 0 does in ``decide``, the others wait for."""
    if count() == 1:
        return decide()
    decision = [decide() if rank() == 0 else None]
    dist.broadcast_object_list(decision, device=torch.device("cpu"))
    return decision[0]  # pyright: ignore[reportReturnType]
