"""What the JEM family shares: one loss, one buffer, and networks it cannot work with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods import get
from methods.backbones import Classifier
from methods.data import Dataset
from methods.errors import InputError
from methods.training.config import overlay
from methods.training.density import DensityMethod
from methods.training.method import Batch, Method

FAMILY = ("jem", "jempp", "sadajem")
LITERAL = {"negatives": {"sampler": {"inner_steps": 5, "step_size": 0.05}}}


def energies(model: nn.Module, x: Tensor) -> Tensor:
    """-log sum_k exp f(x)[k]."""
    return -model(x).exp().sum(1).log()


@pytest.mark.parametrize(("w_density", "w_clean"), [(1.0, 1.0), (0.45, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("name", FAMILY)
def test_loss_is_the_formula(
    name: str,
    w_density: float,
    w_clean: float,
    make_method: Callable[..., Method],
    network: Callable[..., Classifier],
    batch: Batch,
) -> None:
    method, model = make_method(name, {"w_density": w_density, "w_clean": w_clean}), network()
    assert isinstance(method, DensityMethod)
    inner = method.inner(network(), batch)
    assert inner["x_q"].shape == batch.density.shape
    losses = method.loss(model, batch, inner)

    reference = network()
    data, samples = (energies(reference, x).mean() for x in (batch.density, inner["x_q"]))
    clean = -reference(batch.x).softmax(1)[range(len(batch.y)), batch.y].log().mean()
    expected = {
        "energy_data": data,
        "energy_samples": samples,
        "energy_clean": energies(reference, batch.x).mean(),
        "clean": clean,
        "accuracy_clean": 100 * (reference(batch.x).argmax(1) == batch.y).float().mean(),
    }
    assert losses.terms.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(losses.terms[key], value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.total, w_density * (data - samples) + w_clean * clean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_a_descent_lowers_the_data_against_the_samples(
    name: str, make_method: Callable[..., Method], network: Callable[..., Classifier], batch: Batch
) -> None:
    """Energy is low where data are: the sign of the whole family."""
    method, model = make_method(name, {"w_clean": 0.0}), network()
    inner = method.inner(model, batch)

    def gap() -> Tensor:
        terms = method.loss(model, batch, inner).terms
        return terms["energy_data"] - terms["energy_samples"]

    before = gap()
    total = method.loss(model, batch, inner).total
    gradients = torch.autograd.grad(total, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= 1e-3 * gradient
    assert gap() < before


@pytest.mark.parametrize(
    ("name", "mode", "begin", "sampler"),
    [
        # In [-1, 1]: steps, step size, clip, noise, clamp (energy-methods.md, section 0).
        ("jem", "eval", "uniform", (20, 1.0, None, 0.01, False)),
        ("jempp", "train", "class_gaussian", (10, 5 * 0.2, 1.0, 0.0, True)),
        ("sadajem", "train", "class_gaussian", (5, 1.0, 1.0, 0.0, True)),
        ("mebm", "train", "gaussian", (2, 1.0, 1.0, 0.0, True)),
        ("jeat", "train", "class_gaussian", (10, 1.0, 1.0, 0.0, True)),
    ],
)
def test_chains_of_the_papers_are_the_defaults(
    name: str, mode: str, begin: str, sampler: tuple[int, float, float | None, float, bool]
) -> None:
    chains = get(name).Config().negatives
    assert (chains.mode, chains.start) == (mode, begin)
    assert (chains.buffer_size, chains.restart_probability) == (10_000, 0.05)
    own = chains.sampler
    clip = None if own.clip is None else own.clip / 2
    assert (own.steps, 4 * own.step_size, clip, 2 * own.noise, own.clamp) == sampler


@pytest.mark.parametrize("name", [*FAMILY, "mebm", "jeat"])
def test_buffer_smaller_than_the_batch_is_refused(name: str, make_method: Callable[..., Method]) -> None:
    make_method(name, density_batch=40)
    with pytest.raises(InputError, match="buffer_size is 40, fewer than the 41 chains"):
        make_method(name, density_batch=41)


def test_runs_of_another_seed_begin_with_other_chains(make_method: Callable[..., Method], digits: Dataset) -> None:
    buffers = []
    for seed in (0, 0, 1):
        method = make_method("jempp")
        method.task = replace(method.task, seed=seed)
        method.prepare(digits.train)
        buffers.append(method.samples)
    assert torch.equal(buffers[0], buffers[1])
    assert not torch.equal(buffers[0], buffers[2])


@pytest.mark.parametrize(
    ("name", "options"),
    [("jempp", LITERAL), ("ebjdat", {"host_options": LITERAL}), ("mebm", {}), ("mebm", {"w_clean": 1.0})],
)
def test_networks_that_lack_a_part_are_refused_before_the_training(
    name: str, options: dict[str, Any], make_method: Callable[..., Method], network: Callable[..., Classifier]
) -> None:
    method = make_method(name, options)
    with torch.device("meta"):
        timm, plain, headed = network(architecture="timm:resnet10t"), network(), network(energy_head=True)
    method.check(headed)
    assert {parameter.device.type for parameter in headed.parameters()} == {"meta"}
    for lacking in [timm, plain] if name == "mebm" else [timm]:
        with pytest.raises(InputError, match="energy head") as caught:
            method.check(lacking)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="literal inner loop"):
        make_method("jempp", LITERAL).check(nn.Flatten())


@pytest.mark.parametrize("name", [*FAMILY, "ebjdat", "jeat", "standard", "weat"])
def test_other_networks_are_accepted(
    name: str, make_method: Callable[..., Method], network: Callable[..., Classifier]
) -> None:
    with torch.device("meta"):
        timm = network(architecture="timm:resnet10t")
    make_method(name).check(timm)


def test_literal_loop_has_no_scalar_energy() -> None:
    config = get("mebm").Config()
    with pytest.raises(InputError, match=r"inner_steps above 1 needs options\.head: marginal"):
        overlay(config, LITERAL, "options")
    assert overlay(config, LITERAL | {"head": "marginal"}, "options").negatives.sampler.inner_steps == 5
