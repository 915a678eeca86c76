"""Batch normalisation over several ranks: what cannot be synchronised is refused."""

import pytest
from torch import nn

from methods.errors import InputError
from methods.primitives.batch_norm import synchronise


class Fused(nn.BatchNorm2d):
    """Normalises in a way of its own."""


def test_a_layer_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r'The layer "1" normalises batches in a way of its own \(Fused\)'):
        synchronise(nn.Sequential(nn.Conv2d(1, 2, 3), Fused(2)))


def test_a_second_time_changes_nothing() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    synchronise(network)
    kind = type(network[0])
    synchronise(network)
    assert type(network[0]) is kind
