"""What every method owes the trainer: of each variant three steps are recorded, and every check reads the record."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from methods import get, names
from methods.backbones import Classifier
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen
from methods.training.config import TrainConfig
from methods.training.method import Batch, Card, Inner, Losses, Method, Update
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
ROUNDING = 576 * 2**-24
"""Relative, of a loss in float32 whose images passed in batches of another size: the longest sums of the network are
576 products, each rounded by 2^-24, and its ten layers normalise what comes in, so that their errors add up as random
ones, to less than the worst case of one layer."""
CARRIES_ITS_START = "tdat"
"""Whose start is that of the batch before, and so the same for every first step of a run."""


def described(variant: str) -> Variant:
    return VARIANTS.get(variant, Variant(variant))


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


@dataclass
class Recorded:
    """Three training steps of a variant, taken once: what every check below looks at.

    One flag of each kind is odd, a BatchNorm in eval mode and a frozen parameter: what a step restores is each module's
    own, not a common one.
    """

    variant: str
    make: Callable[..., Method]
    """Make the method of the variant anew; a threat model may be given."""
    batch: Batch
    network: Network
    method: Method
    """As it is after the steps."""
    model: Classifier
    flags_before: list[bool] = field(default_factory=list)
    flags_after: list[bool] = field(default_factory=list)
    models: list[dict[str, Tensor]] = field(default_factory=list)
    """State of the network before each step."""
    after: dict[str, Tensor] = field(default_factory=dict)
    """State of the network after the last step."""
    states: list[dict[str, Tensor]] = field(default_factory=list)
    """State of the method before each step and after the last."""
    reports: list[dict[str, Tensor]] = field(default_factory=list)
    """The method's report after each step."""
    losses: list[Losses] = field(default_factory=list)
    inners: list[dict[str, Tensor]] = field(default_factory=list)
    passes: Counter[str] = field(default_factory=Counter)
    """Passes through the network in the first step."""
    samples: Tensor | None = None
    """The replay buffer before the first step."""
    traces: list[str] = field(default_factory=list)
    """What an inner problem left behind: gradients, moved weights, a moved global generator."""

    def fresh(self, state: dict[str, Tensor]) -> Classifier:
        """Return the network with a state of another time, and with the odd flags."""
        model = odd(self.network(energy_head=self.energy_head))
        model.load_state_dict(state)
        return model

    @property
    def energy_head(self) -> bool:
        return described(self.variant).method == "mebm"

    @property
    def farthest(self) -> float:
        return self.method.task.threat.radius * WIDER.get(self.variant, 1)


def odd(model: Classifier) -> Classifier:
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    next(model.parameters()).requires_grad_(False)
    return model


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names under which two mappings do not hold the same bits."""
    assert one.keys() == other.keys()
    return [key for key, value in one.items() if not torch.equal(value, other[key])]


def record(variant: str, make_method: MakeMethod, network: Network, batch: Batch, cls: type | None = None) -> Recorded:
    """Take three steps and note what happens; ``cls``: a class in place of the variant's own."""
    run = taken(variant, make_method, network, batch, cls)
    if not run.inners:
        # A step of the method's own that shares passes of inner and loss shows no inner problem.
        shown = taken(variant, make_method, network, batch, cls, Method.step)
        run = replace(shown, losses=run.losses, passes=run.passes, flags_after=run.flags_after, after=run.after)
    return run


def taken(
    variant: str,
    make_method: MakeMethod,
    network: Network,
    batch: Batch,
    cls: type | None,
    step: Callable[..., Losses] | None = None,
) -> Recorded:
    chosen = described(variant)

    def make(**settings: Any) -> Method:
        made = make_method(chosen.method, chosen.options, **settings)
        if cls is not None:
            made.__class__ = cls
        return made

    model = odd(network(energy_head=chosen.method == "mebm"))
    run = Recorded(variant, make, batch, network, make(), model, flags(model))
    run.samples = None if run.method.samples is None else run.method.samples.clone()
    inner = run.method.inner

    def watched(model: Classifier, batch: Batch) -> Inner:
        weights = copied(dict(run.model.named_parameters()))
        random_state = torch.get_rng_state()
        for parameter in run.model.parameters():
            parameter.grad = None
        found = inner(model, batch)
        run.traces += [f"{key} has a graph" for key, value in found.items() if value.requires_grad or value.grad_fn]
        run.traces += [f"{name} has a gradient" for name, p in run.model.named_parameters() if p.grad is not None]
        run.traces += [f"{name} moved" for name in different(weights, dict(run.model.named_parameters()))]
        run.traces += [] if torch.equal(torch.get_rng_state(), random_state) else ["the global generator moved"]
        run.inners.append(copied(found))
        return found

    update = updater(model)
    for number in range(3):
        run.models.append(copied(model.state_dict()))
        run.states.append(copied(run.method.state_dict()))
        with pytest.MonkeyPatch.context() as patch, counted(model) as passes:
            patch.setattr(run.method, "inner", watched)
            stepped = run.method.step if step is None else partial(step, run.method)
            run.losses.append(stepped(model, at(batch, number), update))
        run.passes = run.passes or passes
        run.reports.append(copied(run.method.report()))
    run.after = copied(model.state_dict())
    run.states.append(copied(run.method.state_dict()))
    run.flags_after = flags(model)
    return run


def check_weights_are_finite_and_moved(run: Recorded) -> None:
    assert run.flags_after == run.flags_before
    for losses in run.losses:
        assert losses.total.ndim == 0
        assert losses.total.isfinite()
        assert all(term.ndim == 0 and term.isfinite() for term in losses.terms.values())
    before, after = run.models[0], run.after
    assert all(value.isfinite().all() for value in after.values())
    weights = dict(run.model.named_parameters())
    idle = {"network.head.weight", "network.head.bias"} if run.variant == CLASSIFIES_NOTHING else set()
    if run.variant == "mebm, marginal":
        idle = {"network.energy_head.weight", "network.energy_head.bias"}
    wanted = {key for key, value in weights.items() if value.requires_grad} - idle
    assert set(different(before, after)) & weights.keys() == wanted


def check_what_a_step_logs(run: Recorded) -> None:
    assert len(run.inners) == len(run.losses) == 3
    for losses, inner in zip(run.losses, run.inners, strict=True):
        terms = losses.terms
        assert ("inner_nonfinite" in terms) == bool(inner)
        assert ("delta_max" in terms) == ("x_adv" in inner)
        assert ("buffer_std" in terms) == ("clip_rate" in terms) == ("x_q" in inner) == (run.method.samples is not None)
        assert terms.get("inner_nonfinite", 0) == 0
        if "x_adv" in inner:
            assert 0.9 * run.method.task.threat.radius < terms["delta_max"] <= run.farthest + 1e-6
        assert all(0 <= terms[key] <= 100 for key in terms if key.startswith("accuracy"))


def check_samples_and_how_to_draw_more(run: Recorded) -> None:
    samples, generation = run.method.samples, run.method.generation
    assert json.loads(json.dumps(generation)) == generation
    assert set(generation) == {"energy", "mode", "start", "sampler"}
    assert generation["energy"] == ("scalar" if run.variant in ("mebm", "mebm, mjem") else "marginal")
    assert (generation["start"] is None) == (generation["sampler"] is None) == (samples is None)
    if samples is not None:
        assert samples.shape == (40, *run.batch.x.shape[1:])
        assert samples.dtype == torch.float32
        seen = [run.samples] if run.variant in UNBOUNDED else [run.samples, samples]
        assert all(0 <= images.min() < images.max() <= 1 for images in seen if images is not None)


def check_inner_leaves_no_trace(run: Recorded) -> None:
    assert run.traces == []
    for inner in run.inners:
        for key, value in inner.items():
            if (key == "x_q" and run.variant in UNBOUNDED) or value.dim() < 4:
                continue
            assert value.min() >= 0, key
            assert value.max() <= 1, key
        if "x_adv" in inner:
            clean = inner.get("x", run.batch.x)
            assert run.method.task.threat.distance(inner["x_adv"], clean).max() <= run.farthest + 1e-6


def check_a_step_repeats_itself(run: Recorded) -> None:
    """The same seed and step give the same bits, and another step other ones (adversarial-training.md, trap 20)."""
    first = run.inners[0]
    assert different(first, run.make().inner(run.fresh(run.models[0]), at(run.batch, 0))) == []
    if described(run.variant).method != CARRIES_ITS_START:
        other = run.make().inner(run.fresh(run.models[0]), at(run.batch, 1))
        assert set(different(first, other)) == first.keys()


def check_state_dict_is_all_that_a_step_depends_on(run: Recorded) -> None:
    resumed = run.make()
    resumed.load_state_dict(run.states[2])
    inner = resumed.inner(run.fresh(run.models[2]), at(run.batch, 2))
    assert different(run.inners[2], inner) == []
    # Of the steps before, the report knows what the state knows.
    resumed.load_state_dict(run.states[3])
    assert different(run.reports[2], resumed.report()) == []


def gradients(model: nn.Module, losses: Losses) -> list[Tensor]:
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(losses.total, wanted, materialize_grads=True))


def check_loss_is_pure(run: Recorded) -> None:
    for training in (True, False):
        model, inner = run.fresh(run.after).train(training), copied(run.inners[-1])
        state = copied(run.method.state_dict())
        # Batch statistics move the running ones, on which nothing computed here in train mode depends.
        first = run.method.loss(model, at(run.batch, 2), inner)
        second = run.method.loss(model, at(run.batch, 2), inner)
        assert torch.equal(first.total, second.total)
        pairs = zip(gradients(model, first), gradients(model, second), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
        assert different(state, dict(run.method.state_dict())) == []
        assert different(run.inners[-1], inner) == []


def check_passes_are_minimal(run: Recorded) -> None:
    assert (run.passes["forward"], run.passes["backward"]) == VARIANTS[run.variant].passes


def check_without_room_for_the_adversary_the_loss_is_the_clean_one(run: Recorded) -> None:
    """adversarial-training.md, trap 3; what has energies or weights keeps them, and its cross-entropies agree."""
    method, model, batch = run.make(threat="Linf:0"), run.network(energy_head=run.energy_head), run.batch
    inner = method.inner(model, batch)
    if "x_adv" in inner:
        assert torch.equal(inner["x_adv"], inner.get("x", batch.x))
    if described(run.variant).method in OTHER_CLEAN_LOSS:
        return
    losses = method.loss(model, batch, inner)
    clean = cross_entropy(model(batch.x), batch.y).mean()
    reduced = [losses.terms[key] for key in ("clean", "adversarial") if key in losses.terms]
    if run.variant in ("standard", "pgd_at", "trades") or described(run.variant).method == "las_at":
        reduced.append(losses.total)
    assert bool(reduced) == (run.variant != CLASSIFIES_NOTHING)
    for value in reduced:
        torch.testing.assert_close(value, clean, atol=0, rtol=ROUNDING)


CHECKS = (
    check_weights_are_finite_and_moved,
    check_what_a_step_logs,
    check_samples_and_how_to_draw_more,
    check_inner_leaves_no_trace,
    check_a_step_repeats_itself,
    check_state_dict_is_all_that_a_step_depends_on,
    check_loss_is_pure,
    check_passes_are_minimal,
    check_without_room_for_the_adversary_the_loss_is_the_clean_one,
)


def failures(run: Recorded) -> list[Exception]:
    """Run every check on the record; return the errors of those that fail, each with the name of its check."""
    found: list[Exception] = []
    for check in CHECKS:
        try:
            check(run)
        except Exception as error:
            error.add_note(f"[{run.variant}] {check.__name__}")
            found.append(error)
    return found


@pytest.mark.parametrize("variant", VARIANTS | dict.fromkeys(names()))
def test_contract(variant: str, make_method: MakeMethod, network: Network, batch: Batch) -> None:
    found = failures(record(variant, make_method, network, batch))
    if found:
        raise ExceptionGroup(f"{variant} breaks {len(found)} parts of the contract", found)


PGD_AT = get("pgd_at")


class Unmoved(PGD_AT):
    def descend(self, model: nn.Module, batch: Batch, update: Update, loss: Callable[[], Losses]) -> Losses:
        return loss()


class LeavesEvalMode(PGD_AT):
    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        found = super().inner(model, batch)
        model.eval()
        return found


class LogsShares(PGD_AT):
    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        losses = super().loss(model, batch, inner)
        return Losses(losses.total, losses.terms | {"accuracy_adv": 100 + losses.terms["accuracy_adv"]})


class HidesItsSampler(PGD_AT):
    @property
    def generation(self) -> dict[str, Any]:
        return super().generation | {"sampler": {"steps": 1}}


class KeepsAGraph(PGD_AT):
    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        return {key: value.requires_grad_() for key, value in super().inner(model, batch).items()}


class LeavesGradients(PGD_AT):
    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        list(model.parameters())[-1].grad = torch.zeros(10)
        return super().inner(model, batch)


class DrawsGlobally(PGD_AT):
    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        torch.rand(1)
        return super().inner(model, batch)


class LeavesTheImages(PGD_AT):
    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        return {key: value - 0.01 for key, value in super().inner(model, batch).items()}


class SameEveryStep(PGD_AT):
    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        return super().inner(model, replace(batch, step=0))


class Remembers(PGD_AT):
    """Its attack knows how often it was called, and no state dict says so."""

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        self.calls = vars(self).get("calls", -1) + 1
        return super().inner(model, replace(batch, seed=self.calls))


class WritesIntoInner(PGD_AT):
    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        losses = super().loss(model, batch, inner)
        inner["x_adv"].mul_(0.999)
        return losses


class CountsItsLosses(PGD_AT):
    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        losses = super().loss(model, batch, inner)
        self.calls = vars(self).get("calls", 0) + 1
        return Losses(losses.total * (1 + self.calls / 8), losses.terms)


class PassesOnceMore(PGD_AT):
    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        with torch.no_grad():
            model(batch.x)
        return super().loss(model, batch, inner)


class AddsAnother(PGD_AT):
    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        losses = super().loss(model, batch, inner)
        more = losses.total + 1e-3
        return Losses(more, losses.terms | {"adversarial": more})


FAULTS: dict[type, set[Callable[[Recorded], None]]] = {
    PGD_AT: set(),
    Unmoved: {check_weights_are_finite_and_moved, check_passes_are_minimal},
    LeavesEvalMode: {check_weights_are_finite_and_moved},
    LogsShares: {check_what_a_step_logs},
    HidesItsSampler: {check_samples_and_how_to_draw_more},
    KeepsAGraph: {check_inner_leaves_no_trace},
    LeavesGradients: {check_inner_leaves_no_trace},
    DrawsGlobally: {check_inner_leaves_no_trace},
    LeavesTheImages: {
        check_what_a_step_logs,
        check_inner_leaves_no_trace,
        check_without_room_for_the_adversary_the_loss_is_the_clean_one,
    },
    SameEveryStep: {check_a_step_repeats_itself},
    Remembers: {check_state_dict_is_all_that_a_step_depends_on},
    WritesIntoInner: {check_what_a_step_logs, check_loss_is_pure},
    CountsItsLosses: {check_loss_is_pure},
    PassesOnceMore: {check_passes_are_minimal},
    AddsAnother: {check_without_room_for_the_adversary_the_loss_is_the_clean_one},
}
"""Methods that break the contract, and the checks that must see it."""


def test_a_broken_contract_is_seen(
    make_method: MakeMethod, network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "quick", Variant("pgd_at", (3, 3), {"attack": {"steps": 2, "step_size": 1.0}}))
    for fault, checks in FAULTS.items():
        found = failures(record("quick", make_method, network, batch, fault))
        said = {note.partition("] ")[2] for error in found for note in error.__notes__}
        assert said == {check.__name__ for check in checks}, (fault.__name__, found)


def test_cards_are_complete() -> None:
    hints = get_type_hints(Card)
    wrong: list[str] = []
    for name in names():
        card = get(name).card
        assert isinstance(card, Card), name
        for item in fields(Card):
            value, choices = getattr(card, item.name), get_args(hints[item.name])
            if not value or (choices and value not in choices):
                wrong.append(f"{name}: card.{item.name} is {value!r}")
        if card.code != "none" and " at " not in card.code:
            wrong.append(f"{name}: card.code names no commit")
    assert wrong == []


def test_configs_are_frozen_and_have_defaults() -> None:
    wrong: list[str] = []
    for name in names():
        cls = get(name)
        assert is_dataclass(cls.Config), name
        config = cls.Config()
        for item in fields(cls.Config):
            try:
                setattr(config, item.name, None)
                wrong.append(f"{name}: Config.{item.name} can be set")
            except FrozenInstanceError:
                pass
    assert wrong == []


def test_the_adversary_works_against_the_model(make_method: MakeMethod, fitted: Classifier, batch: Batch) -> None:
    weak: list[str] = []
    tried = 0
    for variant in VARIANTS | dict.fromkeys(names()):
        name, options = described(variant).method, dict(described(variant).options)
        if not hasattr(get(name).Config(), "attack"):
            continue
        # Chains in train mode would move the statistics that the classifier is measured with.
        without_chains = {"negatives": {"sampler": {"steps": 0}}}
        options |= {"jeat": without_chains, "ebjdat": {"host_options": without_chains}}.get(name, {})
        if name == "tdat":
            # Against a label of less mass than the network's confidence, to raise the loss is to raise the confidence.
            options["gamma_min"] = 1.0
        trained = deepcopy(fitted)
        inner = make_method(name, options).inner(trained, batch)
        with frozen(trained), torch.no_grad():
            clean = cross_entropy(trained(batch.x), batch.y).mean()
            adversarial = cross_entropy(trained(inner["x_adv"]), batch.y).mean()
        tried += 1
        if not adversarial > 2 * clean:
            weak.append(f"{variant}: cross-entropy {float(clean):.3g} clean, {float(adversarial):.3g} attacked")
    assert weak == []
    assert tried >= 27
