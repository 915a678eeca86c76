"""What every method owes the trainer: one test body for the whole catalogue."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

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

Network = Callable[..., Classifier]
MakeMethod = Callable[..., Method]


@dataclass(frozen=True)
class Variant:
    """A method under options that change what it does, and its passes through the network in a step."""

    method: str
    passes: tuple[int, int] = (0, 0)
    """Forward and backward passes that a step cannot do without."""
    options: dict[str, Any] = field(default_factory=dict)


def _ebjdat_on(host: str) -> dict[str, Any]:
    return {"host": host, "host_options": {"negatives": {"sampler": {"steps": 10}}}}


_FEW_CHAINS = {"negatives": {"buffer_size": 40}}
_LAS = {"label_mass": 1.0, "choices": {"steps": [10]}}
_LAS_TRADES = {
    **{"base": "trades", "objective": "divergence", "start": "normal", "label_mass": 1.0},
    "choices": {"steps": [10], "beta": [5.0, 6.0, 7.0]},
}
_EVERY_STEP = {"every": 1, "reward": {"attack": {"steps": 1}}}

# Each image of the loss passes once. Beside these, PGD-AT: 10 attack. TRADES and WEAT: 10 attack and the clean
# prediction, forward only. JEM, JEM++, SADA-JEM and M-EBM: 20, 10, 5 and 2 sampler, and SADA-JEM its loss twice.
# TDAT: its attack shares the pass of x_0 with the loss, and in the paper's reading has its own. SCORE and generated
# data: as TRADES, without the clean prediction in the pgd form and with CutMix.
# JEAT: 10 attack, 10 sampler. EB-JDAT: 5 attack, 10 sampler, and on SADA-JEM its loss twice. MART: 10 attack.
# AWP: the loss inside twice. AGR: 10 attack; the clean loss has a pass of its own where the loss inside has none, and
# else, since its gradient is taken apart, a backward one.
# LBGAT: as TRADES, and at beta 0 the clean images for the statistics alone. LAS around PGD-AT and TRADES: as they, with
# the longest strategy. A step of its policy: 10 attack; the loss forward; one step; 2 starts of one step, each with its
# gradient and its end; two accuracies.
# DHAT: 10 attack, 10 inverse attack, and forward only the clean and the adversarial images of the latter.
VARIANTS = {
    "standard": Variant("standard", (1, 1)),
    "pgd_at": Variant("pgd_at", (11, 11)),
    "trades": Variant("trades", (13, 12)),
    "weat": Variant("weat", (13, 12)),
    "weat, natural": Variant("weat", (13, 12), {"variant": "natural"}),
    "jem": Variant("jem", (23, 23)),
    "jempp": Variant("jempp", (13, 13)),
    "jempp, literal": Variant("jempp", (13, 13), {"negatives": {"sampler": {"inner_steps": 5, "step_size": 0.05}}}),
    "sadajem": Variant("sadajem", (5 + 3 + 3, 5 + 3 + 3)),
    "mebm": Variant("mebm", (2 + 2, 2 + 2)),
    "mebm, mjem": Variant("mebm", (5 + 3, 5 + 3), {"w_clean": 1.0, "negatives": {"sampler": {"steps": 5}}}),
    "mebm, marginal": Variant("mebm", (2 + 3, 2 + 3), {"w_clean": 1.0, "head": "marginal"}),
    "jeat": Variant("jeat", (22, 22)),
    "jeat, clean": Variant("jeat", (23, 23), {"positives": "clean"}),
    "dhat": Variant("dhat", (10 + 2 + 10 + 3, 10 + 10 + 3)),
    "dhat, projection": Variant("dhat", (25, 23), {"orthogonality": "projection", "attack_mode": "eval"}),
    "ebjdat": Variant("ebjdat", (19, 19)),
    "ebjdat, jem": Variant("ebjdat", (19, 19), _ebjdat_on("jem")),
    "tdat": Variant("tdat", (2, 1 + 2)),
    "tdat, paper": Variant(
        "tdat",
        (1 + 2, 1 + 2),
        {"reference": "clean", "momentum": 0.75, "gamma_schedule": "tanh", "attack_mode": "train"},
    ),
    "score": Variant("score", (13, 12)),
    "score, clipped": Variant("score", (13, 12), {"beta": 6.0, "clip": 0.3, "clip_on": "sum", "attack_mode": "eval"}),
    "score, pgd": Variant("score", (11, 11), {"form": "pgd", "clip": 0.4, "attack_mode": "train"}),
    "gen_data": Variant("gen_data", (13, 12)),
    "gen_data, cutmix": Variant("gen_data", (12, 12), {"cutmix": True}),
    "ebjdat, sadajem": Variant("ebjdat", (10 + 5 + 4 + 4, 10 + 5 + 4 + 4), _ebjdat_on("sadajem")),
    "lbgat": Variant("lbgat", (13, 11)),
    "lbgat, beta 6": Variant("lbgat", (13, 12), {"beta": 6.0}),
    "las_at": Variant("las_at", (11, 11), _LAS),
    "las_at, policy": Variant("las_at", (11 + 10 + 1 + 1 + 4 + 2, 11 + 10 + 1 + 2), _LAS | _EVERY_STEP),
    "las_at, trades": Variant("las_at", (13, 12), _LAS_TRADES),
    "las_at, clipped": Variant("las_at", (11, 11), _LAS | {"clip": True}),
    "las_at, awp": Variant("las_at", (12, 12), _LAS | {"base": "awp", "clip": True}),
    "mart": Variant("mart", (12, 12)),
    "awp": Variant("awp", (12, 12)),
    "awp, trades": Variant("awp", (15, 14), {"base": "trades"}),
    "awp, mart": Variant("awp", (14, 14), {"base": "mart"}),
    "awp, sadajem": Variant("awp", (5 + 3 + 3 + 3, 5 + 3 + 3 + 3), {"base": "sadajem", "base_options": _FEW_CHAINS}),
    "agr": Variant("agr", (12, 12)),
    "agr, active": Variant("agr", (12, 13), {"start": 0.0}),
    "agr, as the base attacks": Variant("agr", (13, 13), {"start": 0.0, "inner": "base"}),
    "agr, pgd_at": Variant("agr", (12, 12), {"start": 0.0, "base": "pgd_at"}),
    "agr, mart": Variant("agr", (12, 13), {"start": 0.0, "base": "mart"}),
    "agr, awp": Variant("agr", (13, 13), {"start": 0.0, "base": "awp"}),
}
UNBOUNDED = {"jem", "ebjdat, jem"}
"""Whose chains may leave [0, 1]."""
WIDER: dict[str, float] = {"las_at": 15 / 8, "las_at, policy": 15 / 8, "las_at, trades": 15 / 8}
"""Whose adversary may go beyond eps, as in the code, and by how much."""
CLASSIFIES_NOTHING = "mebm"
OTHER_CLEAN_LOSS = ("tdat", "score", "gen_data", "lbgat")
"""Methods whose clean loss is not the cross-entropy of the labels: their own tests reduce them."""
CARRIES_ITS_START = "tdat"
"""Whose start is that of the batch before, and so the same for every first step of a run."""


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=VARIANTS | dict.fromkeys(names()))
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


def described(variant: str) -> Variant:
    return VARIANTS.get(variant, Variant(variant))


@pytest.fixture
def method(variant: str, make_method: MakeMethod) -> Method:
    return make_method(described(variant).method, described(variant).options)


@pytest.fixture
def model(variant: str, network: Network) -> Classifier:
    return network(energy_head=described(variant).method == "mebm")


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter[str]]:
    """Count the passes through a model; a backward pass is one gradient that reaches one forward's output."""
    passes: Counter[str] = Counter()

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes["forward"] += 1
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.update(["backward"]))

    # Logits, the energy head and PYLD's second half all go through the blocks.
    handle = model.get_submodule("network.stages").register_forward_hook(after)
    try:
        yield passes
    finally:
        handle.remove()


def flags(model: nn.Module) -> list[bool]:
    batch_norms = [module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return [
        *(module.training for module in model.modules()),
        *batch_norms,
        *(parameter.requires_grad for parameter in model.parameters()),
    ]


def updater(model: nn.Module, lr: float = 0.01) -> Updater:
    return Updater(optimizer(model.parameters(), TrainConfig(lr=lr)), None)


def at(batch: Batch, step: int) -> Batch:
    return Batch(batch.x, batch.y, batch.x_density, step, 0, step / 3)


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
    variant: str, method: Method, model: Classifier, batch: Batch
) -> None:
    # One odd flag of each kind: what is restored is each module's own, not a common one.
    batch_norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    batch_norm.eval()
    parameter = next(model.parameters())
    parameter.requires_grad_(False)
    before, weights = flags(model), {key: value.clone() for key, value in model.named_parameters()}

    update = updater(model)
    for step in range(3):
        losses = method.step(model, at(batch, step), update)
        assert losses.total.ndim == 0
        assert losses.total.isfinite()
        assert all(term.ndim == 0 and term.isfinite() for term in losses.terms.values())

    assert flags(model) == before
    assert all(value.isfinite().all() for value in model.state_dict().values())
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, weights[key])}
    idle = {"network.head.weight", "network.head.bias"} if variant == CLASSIFIES_NOTHING else set()
    if variant == "mebm, marginal":
        idle = {"network.energy_head.weight", "network.energy_head.bias"}
    assert moved == {key for key, value in model.named_parameters() if value.requires_grad} - idle


def test_what_a_step_logs(variant: str, method: Method, model: Classifier, batch: Batch) -> None:
    terms = method.step(model, batch, updater(model)).terms
    inner = method.inner(model, at(batch, 1))
    assert ("inner_nonfinite" in terms) == bool(inner)
    assert ("delta_max" in terms) == ("x_adv" in inner)
    assert ("buffer_std" in terms) == ("clip_rate" in terms) == ("x_q" in inner) == (method.samples is not None)
    assert terms.get("inner_nonfinite", 0) == 0
    if "x_adv" in inner:
        radius = method.task.threat.radius
        assert 0.9 * radius < terms["delta_max"] <= radius * WIDER.get(variant, 1) + 1e-6
    assert all(0 <= terms[key] <= 100 for key in terms if key.startswith("accuracy"))


def test_samples_and_how_to_draw_more(variant: str, method: Method, model: Classifier, batch: Batch) -> None:
    generation = method.generation
    assert json.loads(json.dumps(generation)) == generation
    assert set(generation) == {"energy", "mode", "start", "sampler"}
    assert generation["energy"] == ("scalar" if variant in ("mebm", "mebm, mjem") else "marginal")
    assert (generation["start"] is None) == (generation["sampler"] is None) == (method.samples is None)
    if method.samples is not None:
        assert method.samples.shape == (40, *batch.x.shape[1:])
        assert method.samples.dtype == torch.float32
        assert 0 <= method.samples.min() < method.samples.max() <= 1


def test_inner_leaves_no_trace(variant: str, method: Method, model: Classifier, batch: Batch) -> None:
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    inner = method.inner(model, batch)
    assert not any(value.requires_grad or value.grad_fn is not None for value in inner.values())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    for key, value in inner.items():
        if (key == "x_q" and variant in UNBOUNDED) or value.dim() < 4:
            continue
        assert value.min() >= 0, key
        assert value.max() <= 1, key
    if "x_adv" in inner:
        radius, clean = method.task.threat.radius * WIDER.get(variant, 1), inner.get("x", batch.x)
        assert method.task.threat.distance(inner["x_adv"], clean).max() <= radius + 1e-6


def test_a_step_repeats_itself(variant: str, make_method: MakeMethod, model: Classifier, batch: Batch) -> None:
    """The same seed and step give the same bits, and another step other ones (adversarial-training.md, trap 20)."""
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def inner(step: int) -> dict[str, Tensor]:
        model.load_state_dict(state)
        return make_method(described(variant).method, described(variant).options).inner(model, at(batch, step))

    first, again, other = inner(0), inner(0), inner(1)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    if described(variant).method != CARRIES_ITS_START:
        assert not any(torch.equal(first[key], other[key]) for key in first)


def test_state_dict_is_all_that_a_step_depends_on(
    variant: str, method: Method, make_method: MakeMethod, model: Classifier, batch: Batch
) -> None:
    for step in range(2):
        method.inner(model, at(batch, step))
    resumed = make_method(described(variant).method, described(variant).options)
    resumed.load_state_dict(method.state_dict())
    model.eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    expected = method.inner(model, at(batch, 2))
    model.load_state_dict(weights)
    found = resumed.inner(model, at(batch, 2))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    reported = method.report()
    assert reported.keys() == resumed.report().keys()
    assert all(torch.equal(value, reported[key]) for key, value in resumed.report().items())


def gradients(model: nn.Module, losses: Losses) -> list[Tensor]:
    return list(torch.autograd.grad(losses.total, list(model.parameters()), materialize_grads=True))


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_pure(training: bool, method: Method, model: Classifier, batch: Batch) -> None:
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


def test_passes_per_step_are_minimal(variant: str, method: Method, model: Classifier, batch: Batch) -> None:
    update = updater(model)
    with counted(model) as passes:
        method.step(model, batch, update)
    assert (passes["forward"], passes["backward"]) == VARIANTS[variant].passes


def test_without_room_for_the_adversary_the_loss_is_the_clean_one(
    variant: str, make_method: MakeMethod, model: Classifier, batch: Batch
) -> None:
    """adversarial-training.md, trap 3; what has energies or weights keeps them, and its cross-entropies agree."""
    method = make_method(described(variant).method, described(variant).options, threat="Linf:0")
    inner = method.inner(model, batch)
    if "x_adv" in inner:
        assert torch.equal(inner["x_adv"], inner.get("x", batch.x))
    if described(variant).method in OTHER_CLEAN_LOSS:
        return
    losses = method.loss(model, batch, inner)
    clean = cross_entropy(model(batch.x), batch.y).mean()
    reduced = [losses.terms[key] for key in ("clean", "adversarial") if key in losses.terms]
    if variant in ("standard", "pgd_at", "trades") or described(variant).method == "las_at":
        reduced.append(losses.total)
    assert bool(reduced) == (variant != CLASSIFIES_NOTHING)
    for value in reduced:
        torch.testing.assert_close(value, clean, atol=1e-6, rtol=1e-6)


def test_the_adversary_works_against_the_model(
    variant: str, make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    name, options = described(variant).method, dict(described(variant).options)
    if not hasattr(get(name).Config(), "attack"):
        pytest.skip("no adversary")
    # Chains in train mode would move the statistics that the classifier is measured with.
    without_chains = {"negatives": {"sampler": {"steps": 0}}}
    options |= {"jeat": without_chains, "ebjdat": {"host_options": without_chains}}.get(name, {})
    if name == "tdat":
        # Against a label of less mass than the network's confidence, to raise the loss is to raise the confidence.
        options["gamma_min"] = 1.0
    inner = make_method(name, options).inner(trained, batch)
    with frozen(trained), torch.no_grad():
        clean = cross_entropy(trained(batch.x), batch.y).mean()
        adversarial = cross_entropy(trained(inner["x_adv"]), batch.y).mean()
    assert adversarial > 2 * clean
