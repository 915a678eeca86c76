"""Finding of a probe, and the context in which a probe calls a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

Severity = Literal["problem", "doubt", "fine"]
REPEATED = 1e-5
"""Difference of two passes on the same images, relative to the largest output, above which it is more than rounding."""


@dataclass(frozen=True)
class Finding:
    """Outcome of one probe: what it measured, held against a bound."""

    name: str
    severity: Severity
    """"problem": measurements are wrong; "doubt": they may be wrong; "fine": nothing speaks against the model."""
    measured: float | None
    bound: float | None
    """Number that ``measured`` is held against."""
    sentence: str
    """Description of what was seen: a clause without capital and full stop, like the flags of a subject."""

    @property
    def fine(self) -> bool:
        """Whether nothing speaks against the model."""
        return self.severity == "fine"


@contextmanager
def undisturbed(model: nn.Module, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the model's function, images to float32 logits, for probing it without a trace.

    The images are copied before every pass, torch's streams seeded, and they and the model's buffers put back. As in an
    evaluation, convolutions are deterministic and in full float32, lest rounding pass for dependence on the batch.
    """
    cudnn = torch.backends.cudnn
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with (
        torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []),
        cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        torch.manual_seed(0)
        try:
            yield lambda images: model(images.clone()).float()
        finally:
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    setattr(module, name, buffer.copy_(before))


def output_scale(logits: Tensor) -> float:
    """Return the largest absolute logit, but at least 1: what differences of outputs are relative to."""
    return max(1.0, float(logits.abs().max()))


def in_double(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model's function in float64, on copies of its weights and buffers."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    doubled = {name: value.detach().double() if value.is_floating_point() else value for name, value in tensors.items()}
    return lambda x: functional_call(model, doubled, (x,))
