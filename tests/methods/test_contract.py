"""What every method owes the trainer: one test body for the whole catalogue."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from methods import get, names
from methods.backbones import Classifier
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen
from methods.training.config import TrainConfig
from methods.training.method import Batch, Card, Losses, Method
from methods.training.optim import Updater, optimizer

Network = Callable[[], Classifier]
MakeMethod = Callable[..., Method]

# Passes a step cannot do without. PGD-AT: 10 attack, 1 loss. TRADES: clean prediction (forward only), 10 attack,
# 2 losses. EB-JDAT: 10 sampler, 5 attack, and x_p, x_q, x, x_adv once each in the loss.
PASSES = {
    "standard": {"forward": 1, "backward": 1},
    "pgd_at": {"forward": 11, "backward": 11},
    "trades": {"forward": 13, "backward": 12},
    "ebjdat": {"forward": 19, "backward": 19},
}


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter[str]]:
    """Count the passes through a model; a backward pass is one gradient that reaches one forward's output."""
    passes: Counter[str] = Counter()

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes["forward"] += 1
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.update(["backward"]))

    handle = model.register_forward_hook(after)
    try:
        yield passes
    finally:
        handle.remove()


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()]


def test_card_is_complete(name: str) -> None:
    card = get(name).card
    assert isinstance(card, Card)
    hints = get_type_hints(Card)
    for item in fields(Card):
        value = getattr(card, item.name)
        assert value, item.name
        choices = get_args(hints[item.name])
        assert not choices or value in choices, item.name
    assert card.code == "none" or " at " in card.code


def test_config_is_frozen_and_has_defaults(name: str) -> None:
    cls = get(name)
    assert is_dataclass(cls.Config)
    config = cls.Config()
    for item in fields(cls.Config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, item.name, None)


def test_three_steps_leave_finite_weights_and_the_flags_as_they_were(
    name: str, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    method, model = make_method(name), network()
    # One odd flag of each kind: what is restored is each module's own, not a common one.
    batch_norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    batch_norm.eval()
    parameter = next(model.parameters())
    parameter.requires_grad_(False)
    before, weights = flags(model), {key: value.clone() for key, value in model.named_parameters()}

    update = Updater(optimizer(model.parameters(), TrainConfig(lr=0.01)), None)
    for step in range(3):
        losses = method.step(model, Batch(batch.x, batch.y, batch.x_density, step, 0, step / 3), update)
        assert losses.total.ndim == 0
        assert losses.total.isfinite()
        assert all(term.ndim == 0 and not term.requires_grad for term in losses.terms.values())

    assert flags(model) == before
    assert all(value.isfinite().all() for value in model.state_dict().values())
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, weights[key])}
    assert moved == {key for key, value in model.named_parameters() if value.requires_grad}


def test_inner_leaves_no_trace(name: str, make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method(name), network()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    inner = method.inner(model, batch)
    assert not any(value.requires_grad or value.grad_fn is not None for value in inner.values())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    for key, value in inner.items():
        assert value.min() >= 0, key
        assert value.max() <= 1, key
    if "x_adv" in inner:
        assert method.task.threat.distance(inner["x_adv"], batch.x).max() <= method.task.threat.radius + 1e-6


def test_a_step_repeats_itself(name: str, make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """The same seed and step give the same bits, and another step other ones (adversarial-training.md, trap 20)."""
    first = make_method(name).inner(network(), batch)
    again = make_method(name).inner(network(), batch)
    other = make_method(name).inner(network(), Batch(batch.x, batch.y, batch.x_density, 1, 0, 0.5))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def gradients(model: nn.Module, losses: Losses) -> list[Tensor]:
    return list(torch.autograd.grad(losses.total, list(model.parameters())))


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_pure(name: str, training: bool, make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method(name), network()
    inner = method.inner(model, batch)
    model.train(training)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    passed = {key: value.clone() for key, value in inner.items()}
    # Batch statistics move the running ones, on which nothing computed here in train mode depends.
    first = method.loss(model, batch, inner)
    second = method.loss(model, batch, inner)
    assert torch.equal(first.total, second.total)
    pairs = zip(gradients(model, first), gradients(model, second), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert all(torch.equal(value, method.state_dict()[key]) for key, value in state.items())
    assert all(torch.equal(value, inner[key]) for key, value in passed.items())


def test_passes_per_step_are_minimal(name: str, make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method(name), network()
    update = Updater(optimizer(model.parameters(), TrainConfig(lr=0.01)), None)
    with counted(model) as passes:
        method.step(model, batch, update)
    assert passes == PASSES[name]


def test_without_room_for_the_adversary_the_loss_is_the_clean_one(
    name: str, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """adversarial-training.md, trap 3; EB-JDAT keeps its energies, and its two cross-entropies agree."""
    method, model = make_method(name, threat="Linf:0"), network()
    inner = method.inner(model, batch)
    losses = method.loss(model, batch, inner)
    clean = cross_entropy(model(batch.x), batch.y).mean()
    reduced = losses.terms["adversarial"] if name == "ebjdat" else losses.total
    torch.testing.assert_close(reduced, clean, atol=1e-6, rtol=1e-6)
    if "x_adv" in inner:
        assert torch.equal(inner["x_adv"], batch.x)


def test_the_adversary_works_against_the_model(
    name: str, make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    inner = make_method(name).inner(trained, batch)
    if "x_adv" not in inner:
        pytest.skip("no adversary")
    with frozen(trained), torch.no_grad():
        clean = cross_entropy(trained(batch.x), batch.y).mean()
        adversarial = cross_entropy(trained(inner["x_adv"]), batch.y).mean()
    assert adversarial > 2 * clean
