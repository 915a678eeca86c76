"""JEM's chains: in eval mode, without clip or clamp, so that they may leave the range of images."""

from collections.abc import Callable

import torch
from torch import Tensor

from methods.backbones import Classifier
from methods.training.method import Batch, Method


def test_chains_do_not_touch_the_network_and_may_leave_the_range(
    make_method: Callable[..., Method], trained: Classifier, batch: Batch
) -> None:
    method, model = make_method("jem"), trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x_q = method.inner(model, batch)["x_q"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert ((x_q < 0) | (x_q > 1)).any()
    assert method.report()["clip_rate"] == 0
    assert method.samples is not None
    assert method.samples.min() < 0 or method.samples.max() > 1


def test_a_step_of_the_chain_is_the_papers_in_two_sided_units(
    make_method: Callable[..., Method], network: Callable[..., Classifier], batch: Batch
) -> None:
    """u <- u + grad_u logsumexp f + 0.01 N(0, 1), with the noise told apart as what two step sizes share."""
    options = {"negatives": {"sampler": {"steps": 1, "noise": 0.0}, "restart_probability": 0.0}}
    method, model = make_method("jem", options), network()
    assert method.samples is not None
    stored = method.samples.clone()
    x_q = method.inner(model, batch)["x_q"]

    # Eval mode: an image's step does not depend on the others.
    model.eval()
    u = (2 * stored - 1).requires_grad_()
    (ascent,) = torch.autograd.grad(model((u + 1) / 2).logsumexp(1).sum(), u)
    stepped: Tensor = (u.detach() + ascent + 1) / 2
    for image in x_q:
        assert any(torch.allclose(image, one, atol=1e-5) for one in stepped)

    options["negatives"]["sampler"] = {"steps": 1}
    noise = (make_method("jem", options).inner(network(), batch)["x_q"] - x_q).flatten()
    assert 0.0045 < noise.std() < 0.0055
