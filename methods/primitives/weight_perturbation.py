"""Adversarial weight perturbation: worse weights nearby, tensor by tensor in proportion to their size."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from methods.primitives.ranks import add_up

Perturbation = dict[nn.Parameter, Tensor]
"""What is added to each weight."""


def weight_perturbation(total: Tensor, model: nn.Module, gamma: float) -> Perturbation:
    """Return v = gamma |w| g / (|g| + 1e-20) for each convolution or linear weight w, g its gradient of ``total``.

    Wu et al. 2020 (csdongxian/AWP at a7acf5d). As in their code, biases and whatever else has fewer than two
    dimensions, such as BatchNorm's weights, have no v; it is 0 where ``total`` does not depend on a weight.
    """
    weights = [
        weight
        for name, weight in model.named_parameters()
        if name.rpartition(".")[2] == "weight" and weight.dim() > 1 and weight.requires_grad
    ]
    uphill = torch.autograd.grad(total, weights, materialize_grads=True)
    add_up(uphill)
    with torch.no_grad():
        return {w: gamma * w.norm() / (g.norm() + 1e-20) * g for w, g in zip(weights, uphill, strict=True)}


@contextmanager
def perturbed(perturbation: Perturbation) -> Iterator[None]:
    """Hold the weights at w + v; on leaving, the same v is taken off, so that a step taken inside stays."""
    with torch.no_grad():
        for weight, v in perturbation.items():
            weight.add_(v)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, v in perturbation.items():
                weight.sub_(v)
