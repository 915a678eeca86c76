"""A process by itself computes as if there were no ranks; what several exchange is tested with trainings on them."""

import torch
from torch import nn

from methods.primitives import ranks
from methods.primitives.batch_norm import synchronise


def test_a_process_by_itself_computes_the_plain_thing() -> None:
    values = torch.randn(37, 3, generator=torch.Generator().manual_seed(0))
    assert (ranks.count(), ranks.rank(), ranks.share(37)) == (1, 0, slice(0, 37))
    assert torch.equal(ranks.mean(values), values.mean())
    assert torch.equal(ranks.mean(values, 0), values.mean(0))
    assert torch.equal(ranks.largest(values), values.max())
    assert ranks.total(values) is values
    assert ranks.agreed(lambda: 3) == 3
    before = values.clone()
    ranks.add_up([values])
    ranks.gather(values)
    assert torch.equal(values, before)


def test_a_layer_by_itself_is_the_layer_it_was() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(16))
    shared = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(16))
    shared.load_state_dict(plain.state_dict())
    synchronise(shared)
    assert isinstance(shared[1], nn.BatchNorm2d)
    assert shared.state_dict().keys() == plain.state_dict().keys()
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        assert torch.equal(shared.train(training)(x), plain.train(training)(x))
    assert all(torch.equal(*pair) for pair in zip(shared.buffers(), plain.buffers(), strict=True))
    with ranks.apart(shared):
        assert torch.equal(shared(x), plain(x))
