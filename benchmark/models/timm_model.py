"""timm's classifiers as models to evaluate, ``--model timm:NAME --weights FILE``: from pixels, and never downloaded."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from torch import nn

from benchmark.models.input_domain import Domain

PREFIX = "timm:"
_UNUSED_MOMENTUM = 0.1
"""Momentum of batch normalisations; unused, since they are evaluated with the statistics of the weights file."""


def factory(name: str) -> Callable[..., nn.Module]:
    """Return a factory of timm's network ``name``, with random weights and timm's normalisation for it in front.

    The factory takes ``num_classes`` and ``image_shape`` and raises InputError where timm has no such model or it does
    not take such images. The names in its state dict are timm's own.
    """

    from methods.backbones.timm_adapter import timm_network

    def make(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        network = timm_network(name, num_classes, image_shape, _UNUSED_MOMENTUM)
        domain = _domain(name, image_shape[0])

        def normalise(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return domain(inputs[0]), *inputs[1:]

        # A layer around the network would rename its weights.
        network.register_forward_pre_hook(normalise)
        return network.eval()

    return make


def _domain(name: str, channels: int) -> Domain:
    """Return the input domain of timm's configuration; its means over the channels where there are other channels."""
    import timm

    config = timm.get_pretrained_cfg(name)
    statistics = [] if config is None else [tuple(map(Fraction, map(str, v))) for v in (config.mean, config.std)]
    if any(len(values) != channels for values in statistics):
        statistics = [(sum(values, Fraction(0)) / len(values),) for values in statistics]
    return Domain(f"{PREFIX}{name}", *statistics)
