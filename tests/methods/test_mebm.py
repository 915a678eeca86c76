"""M-EBM's density on a head of its own, and the bound on the size of the energies."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.backbones import Classifier
from methods.errors import InputError
from methods.training.config import overlay
from methods.training.method import Batch, Inner, Method

MakeMethod = Callable[..., Method]
Network = Callable[..., Classifier]


@pytest.fixture
def inner(make_method: MakeMethod, network: Network, batch: Batch) -> Inner:
    return make_method("mebm").inner(network(energy_head=True), batch)


def energies(model: Classifier, x: Tensor, head: str) -> Tensor:
    """-h(x), h typed as the linear head of the pooled features; or -log sum_k exp f(x)[k]."""
    if head == "marginal":
        return -model(x).exp().sum(1).log()
    network: Any = model.network
    features = network.features(network.conv((x - model.mean) / model.std))
    return -(features @ network.energy_head.weight[0] + network.energy_head.bias[0])


@pytest.mark.parametrize("head", ["scalar", "marginal"])
@pytest.mark.parametrize(("l2", "w_clean"), [(0.1, 0.0), (0.5, 1.0), (0.0, 2.0)])
def test_loss_is_the_formula(
    head: str, l2: float, w_clean: float, make_method: MakeMethod, network: Network, batch: Batch, inner: Inner
) -> None:
    """The data's energies squared, then averaged; the samples' averaged, then squared (energy-methods.md 3.3)."""
    method = make_method("mebm", {"head": head, "l2": l2, "w_clean": w_clean})
    losses = method.loss(network(energy_head=True), batch, inner)

    model = network(energy_head=True)
    data, samples = energies(model, batch.density, head), energies(model, inner["x_q"], head)
    bound = data.pow(2).sum() / len(data) + (samples.sum() / len(samples)) ** 2
    expected = data.mean() - samples.mean() + l2 * bound
    if w_clean:
        clean = -model(batch.x).softmax(1)[range(len(batch.y)), batch.y].log().mean()
        expected = expected + w_clean * clean
        torch.testing.assert_close(losses.terms["clean"], clean, atol=1e-5, rtol=1e-5)
    assert ("clean" in losses.terms) == ("accuracy_clean" in losses.terms) == bool(w_clean)
    torch.testing.assert_close(losses.total, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.terms["energy_data"], data.mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.terms["energy_samples"], samples.mean(), atol=1e-5, rtol=1e-5)


def test_the_bound_is_not_symmetric(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """With data and samples exchanged, only the spread of the energies tells the bounds apart."""
    method, model = make_method("mebm", {"l2": 1.0}), network(energy_head=True)
    other = batch.x[:12]
    swapped = Batch(batch.x, batch.y, other, 0, 0, 0.0)
    bounds = []
    for each, x_q in ((batch, other), (swapped, batch.density)):
        losses = method.loss(network(energy_head=True), each, {"x_q": x_q})
        bounds.append(losses.total - losses.terms["energy_data"] + losses.terms["energy_samples"])
    spread = [energies(model, x, "scalar").var(correction=0) for x in (batch.density, other)]
    torch.testing.assert_close(bounds[0] - bounds[1], spread[0] - spread[1], atol=1e-5, rtol=1e-3)
    assert (spread[0] - spread[1]).abs() > 1e-4


@pytest.mark.parametrize(("head", "idle"), [("scalar", "network.head"), ("marginal", "network.energy_head")])
def test_without_a_classifier_the_other_head_learns_nothing(
    head: str, idle: str, make_method: MakeMethod, network: Network, batch: Batch, inner: Inner
) -> None:
    model = network(energy_head=True)
    make_method("mebm", {"head": head}).loss(model, batch, inner).total.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"{idle}.weight", f"{idle}.bias"}


def test_chains_go_down_the_energy_of_the_head(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    options: dict[str, Any] = {"negatives": {"mode": "eval", "restart_probability": 0.0}}
    ends = {}
    for head in ("scalar", "marginal"):
        method, model = make_method("mebm", options | {"head": head}), network(energy_head=True)
        sampler = asdict(method.config.negatives.sampler)
        generation = {"energy": head, "mode": "eval", "start": "gaussian", "sampler": sampler}
        assert method.generation == generation
        assert method.samples is not None
        stored = method.samples.clone()
        ends[head] = method.inner(model, batch)["x_q"]
        changed = (stored != method.samples).flatten(1).any(1)
        model.eval()
        with torch.no_grad():
            assert energies(model, method.samples[changed], head).mean() < energies(model, stored[changed], head).mean()
    assert not torch.equal(ends["scalar"], ends["marginal"])


def test_a_network_without_the_head_is_told_what_to_set(
    make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    with pytest.raises(InputError, match=r"set backbone\.energy_head to true") as caught:
        make_method("mebm").inner(network(), batch)
    assert "\n" not in str(caught.value)
    assert make_method("mebm", {"head": "marginal"}).inner(network(), batch)["x_q"].isfinite().all()


def test_m_ebm_is_the_default(make_method: MakeMethod) -> None:
    method = make_method("mebm")
    assert (method.config.head, method.config.l2, method.config.w_clean) == ("scalar", 0.1, 0.0)
    assert isinstance(method, nn.Module)
    with pytest.raises(InputError, match=r"options\.l2 must not be negative, not -0\.1"):
        overlay(method.config, {"l2": -0.1}, "options")
    with pytest.raises(InputError, match=r"options\.head"):
        overlay(method.config, {"head": "scalr"}, "options")
