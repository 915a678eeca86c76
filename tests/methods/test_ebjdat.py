"""Each disagreement between paper and code is an option, and the option does what its name says."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from methods import ebjdat, get
from methods.backbones import Classifier
from methods.errors import InputError
from methods.primitives.energy import joint_energy, marginal_energy
from methods.primitives.energy_attack import EnergyAttack
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen
from methods.primitives.threat import ThreatModel
from methods.training.config import TrainConfig, overlay
from methods.training.method import Batch, Inner, Losses, Method, Task
from methods.training.optim import Updater, optimizer

Network = Callable[..., Classifier]
MakeMethod = Callable[..., Method]

PIXEL = 1 / 255
HOSTS = ("jempp", "sadajem", "jem")

Attack = Callable[..., Tensor]


@pytest.fixture
def attack(make_method: MakeMethod, trained: Classifier, batch: Batch) -> Attack:
    """Attack the trained network under options; no sampler moves its running statistics before."""

    def compute(images: Batch = batch, threat: str = "Linf:0.15", start: str = "uniform", **options: Any) -> Tensor:
        own = {"attack": options | {"start": start}, "host_options": {"negatives": {"sampler": {"steps": 0}}}}
        method = make_method("ebjdat", own, threat)
        return method.inner(trained, images)["x_adv"]

    return compute


def measured(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    with frozen(model), torch.no_grad():
        logits = model(x)
    values = {
        "ce": cross_entropy(logits, y),
        "joint_energy": joint_energy(logits, y),
        "marginal_energy": marginal_energy(logits),
    }
    return {name: value.mean().item() for name, value in values.items()}


@pytest.mark.parametrize("objective", ["joint_energy", "ce", "marginal_energy"])
def test_inner_objective_is_raised(objective: str, attack: Attack, trained: Classifier, batch: Batch) -> None:
    x_adv = attack(objective=objective)
    before, after = measured(trained, batch.x, batch.y), measured(trained, x_adv, batch.y)
    assert after[objective] > before[objective] + 0.1
    assert after["ce"] > 2 * before["ce"]


def grey(batch: Batch) -> Batch:
    """Images far from 0 and 1, where nothing is clamped."""
    return Batch(0.3 + 0.4 * batch.x, batch.y, batch.x_density, batch.step, batch.seed, batch.progress)


def test_each_objective_raises_itself_the_most(attack: Attack, trained: Classifier, batch: Batch) -> None:
    """One small sign step is, to first order, the best there is for the value whose gradient it follows."""
    names, batch = ["joint_energy", "ce", "marginal_energy"], grey(batch)
    step = {"start": "zero", "steps": 1, "step_size": 0.002}
    reached = {name: measured(trained, attack(batch, objective=name, **step), batch.y) for name in names}
    for name in names:
        assert max(names, key=lambda other: reached[other][name]) == name


def test_code_literal_lowers_the_energy_of_the_label(attack: Attack, trained: Classifier, batch: Batch) -> None:
    """energy-methods.md 5.2: the released adversary is helpful."""
    x_adv = attack(objective="code_literal")
    before, after = measured(trained, batch.x, batch.y), measured(trained, x_adv, batch.y)
    assert after["joint_energy"] < before["joint_energy"] - 0.1
    assert after["ce"] < before["ce"] / 2


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({"scale": "eps-8"}, 8 * PIXEL),
        # Start 4/255 and five steps of 1/255, nothing projected (energy-methods.md 5.2: 9/255, measured).
        ({"scale": "faithful"}, 9 * PIXEL),
        ({"scale": "faithful", "project": True, "steps": 9}, 8 * PIXEL),
        ({"scale": "eps-8", "project": False}, 18 * PIXEL),
        ({"scale": "faithful", "step_size": 1 / 4}, 14 * PIXEL),
    ],
)
def test_scale_and_projection(options: dict[str, Any], largest: float, attack: Attack, batch: Batch) -> None:
    batch = grey(batch)
    delta = (attack(batch, "Linf:8/255", **options) - batch.x).abs().max().item()
    assert delta <= largest + 1e-6
    assert delta >= 0.97 * largest


def test_direction_of_the_step(attack: Attack, trained: Classifier, batch: Batch) -> None:
    # In float64: in float32 another order of a sum turns the sign of a gradient that is nearly 0.
    batch = replace(grey(batch), x=grey(batch).x.double())
    trained.double()
    with frozen(trained):
        x = batch.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(joint_energy(trained(x), batch.y).sum(), x)
    norms = gradient.flatten(1).norm(dim=1)
    expected = {
        "steepest": gradient.sign(),
        "gradient": gradient,
        "normalised": gradient / norms.view(-1, 1, 1, 1),
    }
    for direction, step in expected.items():
        x_adv = attack(batch, start="zero", direction=direction, steps=1, step_size=0.01)
        moved = (x_adv - batch.x) / (0.01 * 0.15)
        torch.testing.assert_close(moved, step, atol=1e-3, rtol=1e-3)


def test_logit_cosine_turns_the_logits_away(attack: Attack, trained: Classifier, batch: Batch) -> None:
    def cosine(**options: Any) -> float:
        x_adv = attack(objective="code_literal", **options)
        with frozen(trained), torch.no_grad():
            return nn.functional.cosine_similarity(trained(batch.x), trained(x_adv)).mean().item()

    without = cosine()
    assert cosine(perceptual="logit_cos", perceptual_weight=0.0) == pytest.approx(without, abs=1e-6)
    assert cosine(perceptual="logit_cos", perceptual_weight=100.0) < without - 0.05


class Squared(nn.Module):
    """LPIPS's interface around the squared distance of images in [-1, 1]."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, left: Tensor, right: Tensor, normalize: bool = False) -> Tensor:
        assert normalize, "images in [0, 1] must be announced"
        return self.scale * (2 * left - 2 * right).square().sum((1, 2, 3), keepdim=True)


def test_lpips_pulls_the_adversary_back_and_is_no_part_of_the_state(
    monkeypatch: pytest.MonkeyPatch, trained: Classifier, batch: Batch
) -> None:
    import lpips

    monkeypatch.setattr(lpips, "LPIPS", Squared)
    rgb = Batch(batch.x.repeat(1, 3, 2, 2), batch.y, None, 0, 0, 0.0)
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(192, 10))

    def distance(weight: float) -> float:
        config = ebjdat.Config(attack=EnergyAttack(perceptual="lpips", perceptual_weight=weight, steps=10))
        method = ebjdat.EBJDAT(config, Task(ThreatModel.parse("Linf:0.15"), 10, (3, 16, 16), seed=0))
        assert not list(method.parameters())
        assert not method.state_dict()
        return (method._attack(model, rgb) - rgb.x).square().mean().item()

    assert distance(100.0) < 0.5 * distance(0.0)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 8, 8), (3, 32, 15)])
def test_lpips_refuses_grey_and_small_images(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="RGB images of at least 16 pixels"):
        ebjdat.EBJDAT(
            ebjdat.Config(attack=EnergyAttack(perceptual="lpips")), Task(ThreatModel.parse("Linf:8/255"), 10, shape, 0)
        )


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_without_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*arguments: Any, **keywords: Any) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torchvision.models.vgg.VGG", lambda *arguments, **keywords: nn.Module())
    with pytest.raises(InputError, match="VGG weights of LPIPS cannot be loaded") as caught:
        ebjdat.EBJDAT(
            ebjdat.Config(attack=EnergyAttack(perceptual="lpips")),
            Task(ThreatModel.parse("Linf:8/255"), 10, (3, 32, 32), 0),
        )
    assert "\n" not in str(caught.value)


@pytest.fixture
def inner(make_method: MakeMethod, network: Network, batch: Batch) -> Inner:
    """Return adversarial images and chains of the untrained network."""
    return make_method("ebjdat").inner(network(), batch)


@pytest.fixture
def total(make_method: MakeMethod, network: Network, batch: Batch, inner: Inner) -> Callable[..., Losses]:
    """Compute the loss under options, on the same weights, batch and inner images each time."""

    def compute(**options: Any) -> Losses:
        return make_method("ebjdat", options).loss(network(), batch, inner)

    return compute


OWN = ("w_energy", "w_adversarial")
WEIGHTS = ("w_density", "w_clean", *OWN)


def weighted(**weights: float) -> dict[str, Any]:
    """Return options with these weights, and 0 for all others."""
    weights = dict.fromkeys(WEIGHTS, 0.0) | weights
    host = {name: weights.pop(name) for name in ("w_density", "w_clean")}
    return {"host_options": host, **weights}


@pytest.mark.parametrize("host", HOSTS)
def test_weights_weigh_their_own_terms(host: str, total: Callable[..., Losses]) -> None:
    terms = total(host=host).terms
    contrast = terms["energy_data"] - terms["energy_adv"]
    expected = {
        "w_density": terms["energy_data"] - terms["energy_samples"],
        "w_energy": contrast,
        "w_clean": terms["clean"],
        "w_adversarial": terms["adversarial"],
    }
    assert total(host=host, **weighted()).total == 0
    for name in WEIGHTS:
        assert expected[name] != 0
        alone = total(host=host, **weighted(**{name: 2.0})).total
        torch.testing.assert_close(alone, 2 * expected[name], atol=1e-6, rtol=1e-5)


def test_the_loss_is_the_papers_formula(
    total: Callable[..., Losses], inner: Inner, network: Network, batch: Batch
) -> None:
    weights = {"w_density": 0.3, "w_clean": 0.4, "w_energy": 0.5, "w_adversarial": 0.6}
    model = network()

    def energies(x: Tensor) -> Tensor:
        return -model(x).exp().sum(1).log()

    def negative_log_likelihood(x: Tensor) -> Tensor:
        return -model(x).softmax(1)[range(len(batch.y)), batch.y].log().mean()

    assert batch.x_density is not None
    data = energies(batch.x_density).mean()
    expected = (
        0.3 * (data - energies(inner["x_q"]).mean())
        + 0.4 * negative_log_likelihood(batch.x)
        + 0.5 * (data - energies(inner["x_adv"]).mean())
        + 0.6 * negative_log_likelihood(inner["x_adv"])
    )
    torch.testing.assert_close(total(**weighted(**weights)).total, expected, atol=1e-5, rtol=1e-5)


def test_h2_signs(total: Callable[..., Losses]) -> None:
    only = weighted(w_energy=1.0)
    contrast, pull = (total(**only, h2=h2).total.item() for h2 in ("contrast", "pull"))
    assert contrast == pytest.approx(-pull) != 0
    assert total(**only, h2="absolute").total.item() == pytest.approx(abs(contrast))


@pytest.mark.parametrize(("h2", "sign"), [("contrast", 1), ("pull", -1)])
def test_h2_moves_the_energy_of_adversarial_images(
    h2: str, sign: int, make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    """A step down the loss raises E(x_adv) against E(x_p) under contrast (eq. 14), and lowers it under pull."""
    method = make_method("ebjdat", weighted(w_energy=1.0) | {"h2": h2})
    inner = method.inner(trained, batch)
    before = method.loss(trained, batch, inner)
    gradients = torch.autograd.grad(before.total, list(trained.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(trained.parameters(), gradients, strict=True):
            parameter -= 1e-3 * gradient
    after = method.loss(trained, batch, inner)
    gap = [losses.terms["energy_adv"] - losses.terms["energy_data"] for losses in (before, after)]
    assert sign * (gap[1] - gap[0]) > 0


def test_pairing_picks_the_clean_side(total: Callable[..., Losses], network: Network, batch: Batch) -> None:
    only = weighted(w_energy=1.0)
    losses = total(**only, pairing="labelled")
    labelled = marginal_energy(network()(batch.x)).mean()
    expected = labelled - losses.terms["energy_adv"]
    torch.testing.assert_close(losses.total, expected, atol=1e-6, rtol=1e-5)
    assert total(**only, pairing="density").total.item() != pytest.approx(expected.item())


def buffers_moved(method: Method, model: nn.Module, batch: Batch) -> bool:
    before = {name: value.clone() for name, value in model.named_buffers()}
    method.inner(model, batch)
    return any(not torch.equal(value, before[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize(
    ("sampler_mode", "attack_mode", "moved"),
    [("train", "eval", True), ("eval", "eval", False), ("eval", "train", True)],
)
def test_modes_decide_what_moves_the_running_statistics(
    sampler_mode: str, attack_mode: str, moved: bool, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    options = {"host_options": {"negatives": {"mode": sampler_mode}}, "attack_mode": attack_mode}
    assert buffers_moved(make_method("ebjdat", options), network(), batch) == moved


def test_the_attack_is_made_before_chains_move_the_statistics(
    make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    without_chains = {"host_options": {"negatives": {"sampler": {"steps": 0}}}}
    alone = make_method("ebjdat", without_chains).inner(trained, batch)["x_adv"]
    statistics = trained.get_buffer("network.norm.running_mean").clone()
    assert torch.equal(make_method("ebjdat").inner(trained, batch)["x_adv"], alone)
    assert not torch.equal(trained.get_buffer("network.norm.running_mean"), statistics)


@pytest.mark.parametrize("host", HOSTS)
def test_host_samples_reports_and_generates(host: str, make_method: MakeMethod, network: Network, batch: Batch) -> None:
    own = make_method(host)
    hosted = make_method("ebjdat", {"host": host})
    # The attack is in eval mode and comes first: the chains see the same network either way.
    x_q = hosted.inner(network(), batch)["x_q"]
    assert torch.equal(own.inner(network(), batch)["x_q"], x_q)
    assert len(x_q) == len(batch.density) == 12
    assert own.samples is not None
    assert hosted.samples is not None
    assert torch.equal(hosted.samples, own.samples)
    assert hosted.generation == own.generation
    assert hosted.report().keys() == own.report().keys() > {"buffer_std"}
    assert {f"base.{name}" for name in own.state_dict()} == set(hosted.state_dict())


@pytest.mark.parametrize("host", HOSTS)
def test_options_of_the_host_are_recorded_in_full(host: str) -> None:
    defaults = asdict(get(host).Config())
    config = overlay(ebjdat.Config(), {"host": host}, "options")
    assert config.host_options == defaults

    few = {"negatives": {"sampler": {"steps": 7}}, "w_clean": 0.25}
    config = overlay(ebjdat.Config(), {"host": host, "host_options": few}, "options")
    assert config.host_options["w_clean"] == 0.25
    assert config.host_options["negatives"]["sampler"]["steps"] == 7
    assert config.host_options.keys() == defaults.keys()
    assert config.host_options["negatives"]["buffer_size"] == 10_000
    assert overlay(ebjdat.Config(), asdict(config), "options") == config
    assert overlay(config, {"w_energy": 0.0}, "options").host_options == config.host_options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "jemp"}, "\"options.host\" is 'jemp'"),
        ({"host": "trades"}, "\"options.host\" is 'trades'"),
        ({"host_options": {"negatves": {}}}, '"options.host_options.negatves". Did you mean "negatives"'),
        ({"host_options": {"sam": {"rho": 1.0}}}, '"options.host_options.sam"'),
        ({"host": "sadajem", "host_options": {"sam": {"rho": -1.0}}}, "rho must be finite and not negative"),
        ({"host_options": {"negatives": {"buffer_size": 0}}}, "buffer_size must be at least 1"),
        ({"host_options": {"negatives": {"restart_probability": 1.5}}}, r"in \[0, 1\], not 1.5"),
        ({"host_options": {"w_clean": "much"}}, "\"options.host_options.w_clean\" is 'much'"),
        ({"attack": {"steps": 0}}, "at least one step"),
        ({"attack": {"step_size": 0.0}}, "step_size"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        overlay(ebjdat.Config(), options, "options")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", HOSTS)
def test_buffer_smaller_than_the_batch_is_refused(host: str, make_method: MakeMethod) -> None:
    make_method("ebjdat", {"host": host}, density_batch=40)
    with pytest.raises(InputError, match="buffer_size is 40, fewer than the 41 chains"):
        make_method("ebjdat", {"host": host}, density_batch=41)


def test_on_sadajem_both_passes_see_the_whole_loss(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    """energy-methods.md 5.7: h2 and the adversarial cross-entropy are in the second pass too."""
    method, model = make_method("ebjdat", {"host": "sadajem"}), network()
    inner = method.inner(model, batch)
    totals: list[tuple[Losses, Tensor]] = []

    def loss() -> Losses:
        losses = method.loss(model, batch, inner)
        totals.append((losses, losses.total.detach()))
        return losses

    update = Updater(optimizer(model.parameters(), TrainConfig(lr=0.01)), None)
    assert method.descend(model, batch, update, loss) is totals[0][0]
    (at_w, first), (climbed, second) = totals
    assert second > first
    assert at_w.terms.keys() == climbed.terms.keys() >= {"adversarial", "energy_adv"}
    assert climbed.terms["adversarial"] != at_w.terms["adversarial"]
    terms = climbed.terms
    h2 = terms["energy_data"] - terms["energy_adv"]
    whole = terms["energy_data"] - terms["energy_samples"] + terms["clean"] + 0.1 * h2 + terms["adversarial"]
    torch.testing.assert_close(second, whole.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("host", "losses"), [("jempp", 1), ("jem", 1), ("sadajem", 2)])
def test_a_step_descends_as_the_host_does(
    host: str, losses: int, make_method: MakeMethod, network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, model, asked = make_method("ebjdat", {"host": host}), network(), []
    own = method.loss

    def loss(*arguments: Any) -> Losses:
        asked.append(own(*arguments))
        return asked[-1]

    monkeypatch.setattr(method, "loss", loss)
    method.step(model, batch, Updater(optimizer(model.parameters(), TrainConfig(lr=0.01)), None))
    assert len(asked) == losses
