"""Planted failures: models, and one evaluation, that look robust and are not, or are not evaluated as they should be.

Each wraps an honest classifier, images in [0,1] to logits, and is known to be wrong, so that the detection power of
the masking checks can be measured (:mod:`benchmark.studies.masking_power`): checks that miss one of them cannot vouch
for your model. The kinds are those of Athalye et al. 2018 (arXiv 1802.00420), Pintor et al. 2022 (arXiv 2106.09947,
"Indicators of Attack Failure") and of the threads that evaluation libraries get.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from benchmark.models.subject import Subject
from methods.errors import InputError
from methods.primitives.modes import mode

QUANTISED_LEVELS = 6
LOGIT_FACTOR = 1000.0
WINNERS = 0.3
"""Share of each image's activations that survive a k-WTA layer."""
NOISE = 0.1
"""Standard deviation, in [0,1] pixel units."""
FREQUENCY_STEP = 0.25
"""Quantisation step of the cosine coefficients, which an orthonormal transform leaves in pixel units."""
STALE = 0.9
"""Weight of an untrained network's statistics in those of batch normalisation."""
NEIGHBOURS = 0.5
"""Share of the batch's mean logits that is taken from each image's."""


class Unplantable(InputError):
    """A failure cannot be planted in this model."""


class _Wrapper(nn.Module):
    """Network with something wrong around it, which subclasses define."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class QuantisedInput(_Wrapper):
    """Pixels are rounded to a few levels, so that the gradient is 0 almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * (QUANTISED_LEVELS - 1)).round() / (QUANTISED_LEVELS - 1))


class ScaledLogits(_Wrapper):
    """Logits are so large that the softmax saturates and the cross-entropy has no gradient in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return LOGIT_FACTOR * self.network(x)


class SoftmaxOutputs(_Wrapper):
    """Probabilities are returned where logits are promised, so that losses apply the softmax twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


class KWTA(_Wrapper):
    """Each activation layer keeps its k largest values (Xiao et al. 2020, arXiv 1905.10510): discontinuous."""

    def forward(self, x: Tensor) -> Tensor:
        with _WinnersTakeAll():
            return self.network(x)


class _WinnersTakeAll(TorchFunctionMode):
    """Replacement of activations wherever they are called, since networks call them as functions and as modules."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (F.relu, F.leaky_relu, F.silu, F.gelu):
            return result
        flat = result.flatten(1)
        count = max(1, math.ceil(WINNERS * flat.shape[1]))
        threshold = flat.detach().topk(count, dim=1).values[:, -1:]
        return torch.where(flat >= threshold, flat, 0).view_as(result)


class InputNoise(_Wrapper):
    """Gaussian noise from the global stream is added to every image in every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + NOISE * torch.randn_like(x))


class KilledGradient(_Wrapper):
    """The graph leads from the images to the logits, with a gradient of exactly 0."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.detach()) + 0 * x.flatten(1).sum(1, keepdim=True)


class DetachedInput(_Wrapper):
    """There is no graph from the images to the logits at all."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.detach())


class FrequencyCompression(_Wrapper):
    """Images lose the detail of their cosine transform, as in JPEG, in code that records no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rows, columns = (_cosines(side).to(x) for side in x.shape[2:])
            coefficients = rows @ x @ columns.T
            kept = (coefficients / FREQUENCY_STEP).round() * FREQUENCY_STEP
            compressed = (rows.T @ kept @ columns).clamp(0, 1)
        return self.network(compressed)


class TrainModeBN(_Wrapper):
    """Batch normalisation uses the statistics of the batch at hand and goes on learning them, whatever eval() says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        _batch_norms(network)

    def forward(self, x: Tensor) -> Tensor:
        with mode(self.network, training=True):
            return self.network(x)


class StaleStatistics(_Wrapper):
    """Batch normalisation's running statistics are nearly those of an untrained network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        for layer in _batch_norms(network):
            for statistic, initial in ((layer.running_mean, 0.0), (layer.running_var, 1.0)):
                if statistic is not None:
                    statistic.lerp_(torch.full_like(statistic, initial), STALE)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        raise Unplantable("The network has no batch normalisation.")
    return layers


class BatchDependentLogits(_Wrapper):
    """Logits of an image depend on its neighbours in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits - NEIGHBOURS * logits.mean(0)


class SignedDomain(_Wrapper):
    """The network wants images in [-1,1] and is given images in [0,1] as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x + 1) / 2)


def _cosines(side: int) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II) [side, side], a row for each frequency."""
    frequency, place = torch.arange(side)[:, None], torch.arange(side)[None]
    rows = torch.cos(math.pi * frequency * (2 * place + 1) / (2 * side)) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows


def _unchanged(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True)
class Failure:
    """A failure that can be planted."""

    name: str
    meaning: str
    """Description in one line."""
    caught_by: tuple[str, ...]
    """Masking checks (:mod:`benchmark.attacks.masking_checks`), any of which should catch it."""
    wrap: Callable[[nn.Module], nn.Module] = _unchanged
    """Network -> the network with the failure, which may change it; raises Unplantable where this one is unfit."""
    radius: Fraction = Fraction(1)
    """Share of the stated eps that the attacks get: 1, unless the failure is one of the evaluation."""


FAILURES = (
    Failure(
        "quantised_input",
        f"pixels are rounded to {QUANTISED_LEVELS} levels",
        ("zero gradients", "finite differences", "Square", "random noise", "unbounded"),
        QuantisedInput,
    ),
    Failure(
        "scaled_logits",
        f"logits are multiplied by {LOGIT_FACTOR:g}",
        ("zero gradients", "logit scale", "Square", "unbounded"),
        ScaledLogits,
    ),
    Failure("softmax_outputs", "probabilities are returned for logits", ("probabilities",), SoftmaxOutputs),
    Failure(
        "k_wta",
        f"activation layers keep the largest {100 * WINNERS:g} % of their outputs",
        ("finite differences",),
        KWTA,
    ),
    Failure(
        "input_noise",
        f"Gaussian noise of deviation {NOISE:g} is added to the image in every pass",
        ("determinism",),
        InputNoise,
    ),
    Failure(
        "killed_gradient",
        "the gradient is exactly zero",
        ("zero gradients", "finite differences", "Square", "transfer", "unbounded"),
        KilledGradient,
    ),
    Failure("detached_input", "the graph is cut at the image", ("gradient",), DetachedInput),
    Failure(
        "frequency_compression",
        "images are compressed as in JPEG, without a gradient",
        ("gradient", "Square", "random noise"),
        FrequencyCompression,
    ),
    Failure("train_mode_bn", "BatchNorm ignores eval mode", ("batch dependence", "state"), TrainModeBN),
    Failure(
        "stale_statistics",
        f"BatchNorm's running statistics are {100 * STALE:g} % those of an untrained network",
        ("batch norm mode",),
        StaleStatistics,
    ),
    Failure(
        "batch_dependent_logits",
        f"{100 * NEIGHBOURS:g} % of the batch's mean logits are subtracted",
        ("batch dependence",),
        BatchDependentLogits,
    ),
    Failure("signed_domain", "a network for [-1,1] is given images in [0,1]", ("input domain",), SignedDomain),
    Failure(
        "wrong_units",
        "eps is taken for one in [-1,1] units, which is half of it in pixels",
        ("budget",),
        radius=Fraction(1, 2),
    ),
)


def plant(failure: Failure, subject: Subject) -> Subject:
    """Return a subject with the failure in a copy of the model.

    Raises:
        Unplantable: the model has no place for it.
    """
    model = failure.wrap(copy.deepcopy(subject.model)).eval()
    # What is stored of it is measured again when the failures of this file change.
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    code = hashlib.sha256(f"{subject.code} {failure.name} {source}".encode()).hexdigest()
    return replace(subject, name=f"{subject.name} with {failure.name}", model=model, code=code, kind="external")
