"""Each planted failure does what its line says, and nothing to the model it is planted in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.models.subject import Subject, weights_digest
from benchmark.studies import planted_failures
from benchmark.studies.planted_failures import FAILURES, Failure, Unplantable, plant

CPU = torch.device("cpu")
BY_NAME = {failure.name: failure for failure in FAILURES}
HARMLESS = ("killed_gradient", "detached_input", "wrong_units")
"""Those that change no output."""


@pytest.fixture
def subject(golden_network: Callable[[], nn.Sequential]) -> Subject:
    model: nn.Sequential = golden_network().eval().requires_grad_(False)
    return Subject("honest", model, 10, (3, 8, 8), CPU, weights_digest(model), "code", "checkpoint")


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).square().sum(), leaf)[0]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_planting_leaves_the_model_as_it_was(
    failure: Failure, subject: Subject, golden_images: dict[str, Tensor]
) -> None:
    x = golden_images["x"]
    before = subject.model(x)
    guilty = plant(failure, subject)
    guilty.model(x)
    assert torch.equal(subject.model(x), before)
    assert weights_digest(subject.model) == subject.digest
    assert guilty.model(x).shape == before.shape
    assert not any(module.training for module in guilty.model.modules())
    assert (torch.equal(guilty.model(x), before)) == (failure.name in HARMLESS)
    assert guilty.code != subject.code
    assert failure.caught_by


def test_names_are_distinct() -> None:
    assert len(BY_NAME) == len(FAILURES)


def test_quantised_input_has_few_levels_and_no_gradient(subject: Subject, golden_images: dict[str, Tensor]) -> None:
    model, x = plant(BY_NAME["quantised_input"], subject).model, golden_images["x"]
    levels = torch.linspace(0, 1, planted_failures.QUANTISED_LEVELS)
    nearest = levels[(x[..., None] - levels).abs().argmin(-1)]
    assert torch.allclose(model(x), subject.model(nearest), atol=1e-5)
    assert not gradient(model, x).any()


def test_scaled_logits_starve_the_cross_entropy(subject: Subject, golden_images: dict[str, Tensor]) -> None:
    model, x = plant(BY_NAME["scaled_logits"], subject).model, golden_images["x"]
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()
    assert gradient(model, x).any()


def test_softmax_outputs_sum_to_one(subject: Subject, golden_images: dict[str, Tensor]) -> None:
    outputs = plant(BY_NAME["softmax_outputs"], subject).model(golden_images["x"])
    assert torch.allclose(outputs.sum(1), torch.ones(4))


@pytest.mark.parametrize("activation", [F.relu, F.leaky_relu, nn.SiLU(), nn.ReLU()])
def test_k_wta_keeps_the_largest_activations_of_each_image(activation: Callable[[Tensor], Tensor]) -> None:
    class Activated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return activation(x)

    x = torch.arange(1.0, 11.0)[torch.randperm(10, generator=torch.Generator().manual_seed(0))].repeat(
        2, 1
    ) * torch.tensor([[1.0], [0.1]])
    out = planted_failures.KWTA(Activated())(x)
    kept = out != 0
    assert kept.sum(1).tolist() == [10 * planted_failures.WINNERS] * 2
    assert torch.equal(out[kept], activation(x)[kept])
    assert float(x[kept].view(2, -1).amin(1)[0]) == 8
    assert torch.equal(F.relu(x), x), "outside the model, activations are as they were"


def test_input_noise_follows_the_global_stream(subject: Subject, golden_images: dict[str, Tensor]) -> None:
    model, x = plant(BY_NAME["input_noise"], subject).model, golden_images["x"]
    torch.manual_seed(0)
    first, second = model(x), model(x)
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, model(x))


def test_killed_gradient_is_zero_and_detached_input_has_none(
    subject: Subject, golden_images: dict[str, Tensor]
) -> None:
    x = golden_images["x"]
    assert not gradient(plant(BY_NAME["killed_gradient"], subject).model, x).any()
    for name in ("detached_input", "frequency_compression"):
        assert not plant(BY_NAME[name], subject).model(x.clone().requires_grad_()).requires_grad


def test_frequency_compression_rounds_the_cosine_transform(golden_images: dict[str, Tensor]) -> None:
    x = 0.4 + 0.2 * golden_images["x"]  # so that nothing is cut to [0, 1]
    compressed = planted_failures.FrequencyCompression(nn.Identity())(x)
    position, frequency = torch.arange(8.0), torch.arange(8.0)[:, None]
    basis = torch.cos(torch.pi * (position + 0.5) * frequency / 8)
    basis = basis / basis.norm(dim=1, keepdim=True)
    steps = torch.einsum("fi,gj,bcij->bcfg", basis, basis, compressed) / planted_failures.FREQUENCY_STEP
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert 0 < float((compressed - x).abs().max()) < 0.25


def test_train_mode_bn_uses_the_batch_and_ignores_eval(subject: Subject, golden_images: dict[str, Tensor]) -> None:
    model, x = plant(BY_NAME["train_mode_bn"], subject).model, golden_images["x"]
    before = weights_digest(model)
    assert torch.allclose(model(x), subject.model.train()(x), atol=1e-5)
    assert not torch.allclose(model(x)[:2], model(x[:2]), atol=1e-2)
    assert weights_digest(model) != before


def test_stale_statistics_are_nearly_those_of_an_untrained_network(subject: Subject) -> None:
    before = subject.model.state_dict()
    after = plant(BY_NAME["stale_statistics"], subject).model.state_dict()
    for name, value in before.items():
        stale = {"running_mean": 0.1 * value, "running_var": 0.1 * value + 0.9}.get(name.rpartition(".")[2], value)
        assert torch.allclose(after[f"network.{name}"], stale)


@pytest.mark.parametrize("name", ["train_mode_bn", "stale_statistics"])
def test_batch_normalisation_must_be_there_to_fail(name: str) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(Unplantable, match="no batch normalisation"):
        plant(BY_NAME[name], Subject("plain", plain, 10, (3, 8, 8), CPU, "", "", "external"))


def test_batch_dependent_logits_move_with_the_neighbours(subject: Subject, golden_images: dict[str, Tensor]) -> None:
    model, x = plant(BY_NAME["batch_dependent_logits"], subject).model, golden_images["x"]
    logits = subject.model(x)
    assert torch.allclose(model(x), logits - planted_failures.NEIGHBOURS * logits.mean(0), atol=1e-5)
    assert torch.allclose(model(x[:1]), (1 - planted_failures.NEIGHBOURS) * logits[:1], atol=1e-4)


def test_signed_domain_is_right_about_signed_images(subject: Subject, golden_images: dict[str, Tensor]) -> None:
    model, x = plant(BY_NAME["signed_domain"], subject).model, golden_images["x"]
    assert torch.allclose(model(2 * x - 1), subject.model(x), atol=1e-4)


def test_wrong_units_attack_at_half_the_radius() -> None:
    assert [(failure.name, failure.radius) for failure in FAILURES if failure.radius != 1] == [("wrong_units", 0.5)]
