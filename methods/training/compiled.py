"""A classifier whose passes are compiled once for each situation that recurs in a training step, and never again.

A bare ``torch.compile`` compiles the network anew for every combination of flags and batch size, and after eight of
them runs it uncompiled without a word. Here each situation has a graph of its own, and what has none runs as it is.
"""

from collections.abc import Callable, Hashable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.backbones import Classifier
from methods.errors import InputError

GRAPHS = 12
"""Most graphs of one classifier; EB-JDAT on SADA-JEM, with two batch sizes, needs six."""

Backend = str | Callable[..., Callable[..., object]]
_Part = Callable[[Tensor], Tensor]


class Compiled(Classifier):
    """A second view of a classifier, which runs the same modules, parameters and buffers through compiled graphs.

    A situation is: the part of the network (all of it, or what :meth:`first`, :meth:`rest`, ... run), the shape of its
    input, whether gradients of the input and of each parameter are wanted, and each module's mode. Its graph is
    compiled when it first occurs. Another batch size than those named, another BatchNorm momentum than at first, and
    situations beyond :data:`GRAPHS` run uncompiled. The compiler's own guards stay in force: a graph never sees other
    flags than it was made for.

    Args:
        model: the classifier; its modules are fixed from now on, their values and flags are not.
        batches: batch sizes of the images that steps usually have.
        backend: of torch.compile.
        train_mode: whether passes in train mode are compiled too; not where BatchNorm's statistics are exchanged
            between devices, which no graph can hold.

    Raises:
        InputError: nothing can be compiled for the model's device (no C++ compiler, no Triton), or, from a forward
            pass, this network cannot.
    """

    def __init__(
        self, model: Classifier, batches: Iterable[int], backend: Backend = "inductor", train_mode: bool = True
    ) -> None:
        nn.Module.__init__(self)
        self.network = model.network
        self.num_classes, self.image_shape, self.autocast = model.num_classes, model.image_shape, model.autocast
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)
        self._batches, self._backend, self._train_mode = frozenset(batches), backend, train_mode
        self._parts = list(model.network.modules())
        self._norms = [module for module in self._parts if isinstance(module, _BatchNorm)]
        self._weights = list(model.network.parameters())
        self._momenta = [norm.momentum for norm in self._norms]
        self._channels_last = any(
            weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
            for weight in self._weights
        )
        self._graphs: dict[Hashable, _Part] = {}
        _probe(model.mean, backend)

    def _cast(self, function: _Part, x: Tensor) -> Tensor:
        if len(x) not in self._batches or [norm.momentum for norm in self._norms] != self._momenta:
            return super()._cast(function, x)
        training = tuple(module.training for module in self._parts)
        if any(training) and not self._train_mode:
            return super()._cast(function, x)
        situation = (
            function,
            x.shape,
            x.dtype,
            torch.is_grad_enabled(),
            torch.is_grad_enabled() and x.requires_grad,
            training,
            tuple(norm.track_running_stats for norm in self._norms),
            tuple(weight.requires_grad for weight in self._weights),
        )
        if situation in self._graphs:
            return super()._cast(self._graphs[situation], self._laid_out(x))
        if len(self._graphs) == GRAPHS:
            return super()._cast(function, x)
        graph = self._graphs[situation] = _graph(function, self._backend)
        return super()._cast(partial(_first_call, graph), self._laid_out(x))

    def _laid_out(self, x: Tensor) -> Tensor:
        """Return ``x`` with the one layout that graphs are compiled for."""
        if not torch.is_grad_enabled():
            x = x.detach()
        channels_last = self._channels_last and x.dim() == 4
        layout = torch.channels_last if channels_last else torch.contiguous_format
        # Strides along a side of 1 are arbitrary, and is_contiguous() ignores what a graph does not.
        strides = torch.empty(x.shape, device="meta", memory_format=layout).stride()
        return x if x.stride() == strides else x.clone(memory_format=layout)


def _graph(function: _Part, backend: Backend) -> _Part:
    def run(x: Tensor) -> Tensor:
        return function(x)

    # Graphs belong to code objects, and so does the limit of eight: a copy for each keeps them apart.
    run.__code__ = run.__code__.replace()
    # "reduce-overhead" (CUDA graphs) is out: the next pass of a graph overwrites its last output, and a loss holds the
    # logits of several passes until its backward one. "max-autotune" takes minutes a graph for matrix shapes that
    # cuDNN and cuBLAS serve well already.
    return torch.compile(run, fullgraph=True, dynamic=False, backend=backend)


def _first_call(graph: _Part, x: Tensor) -> Tensor:
    """Call ``graph``, which compiles it, or say in a sentence why it cannot be compiled."""
    # Importing the compiler takes a second, which whoever only reads this module need not spend.
    from torch._dynamo.exc import TorchDynamoException
    from torch._functorch import config

    try:
        # A donated buffer is gone after the first of several backward passes (AGR, TDAT).
        with config.patch(donated_buffer=False):
            return graph(x)
    except TorchDynamoException as error:
        reason = _reason(error)
        raise InputError(f"train.compile cannot compile this network ({reason}); set it to false.") from error


def _probe(like: Tensor, backend: Backend) -> None:
    """Compile a trifle, so that a missing compiler is noticed before anything is trained."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        _graph(lambda x: x.sin() + 1, backend)(torch.ones_like(like))
    except TorchDynamoException as error:
        raise InputError(
            f"train.compile needs a working compiler for {like.device.type} ({_reason(error)}); set it to false."
        ) from error
    if backend == "inductor" and like.device.type == "cpu":
        _name_the_processor()


def _name_the_processor() -> None:
    """Say for which vector width kernels are compiled: that which would be chosen anyway.

    What the compiler has cached is found again by its configuration, which says nothing of the processor unless it is
    told. A graph for AVX-512 that is taken up where AVX2 is in use reads its weights in the wrong order, silently.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    width = pick_vec_isa().bit_width() if config.cpp.simdlen is None else 0
    if width > 0:
        config.cpp.simdlen = width


def _reason(error: BaseException) -> str:
    """Return the first line of what the compiler says, without the full stop."""
    return str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__
