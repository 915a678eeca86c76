"""The method files against numbers that the authors' released code computed (see tests/conftest.py)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.backbones import BackboneConfig
from methods.dhat import DHAT
from methods.dhat import Config as DHATConfig
from methods.ebjdat import EBJDAT
from methods.ebjdat import Config as EBJDATConfig
from methods.jem import JEM
from methods.jem import Config as JEMConfig
from methods.jempp import JEMPP
from methods.jempp import Config as JEMPPConfig
from methods.mebm import MEBM
from methods.mebm import Config as MEBMConfig
from methods.pgd_at import PGDAT
from methods.pgd_at import Config as PGDATConfig
from methods.primitives import attacks, samplers, threat
from methods.primitives.energy_attack import EnergyAttack
from methods.primitives.negatives import Chains, Negatives
from methods.primitives.random import generator
from methods.primitives.sharpness import SAM
from methods.primitives.starts import Start
from methods.primitives.threat import ThreatModel
from methods.sadajem import SADAJEM
from methods.sadajem import Config as SADAJEMConfig
from methods.trades import TRADES
from methods.trades import Config as TRADESConfig
from methods.training.auxiliary import AuxiliaryConfig
from methods.training.config import TrainConfig
from methods.training.density import DensityMethod
from methods.training.method import Batch, Losses, Method, Task
from methods.training.optim import Updater, optimizer
from methods.weat import WEAT
from methods.weat import Config as WEATConfig

Images = dict[str, Tensor]
Network = Callable[[], nn.Sequential]
Golden = Callable[[str], dict[str, Any]]


def task(text: str) -> Task:
    return Task(ThreatModel.parse(text), 10, (3, 8, 8), seed=0)


def batch_of(images: Images) -> Batch:
    return Batch(images["x"], images["y"], images["x_other"], step=0, seed=0, progress=0.0)


def images_of(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows).view(-1, 3, 8, 8)


def fix_uniform_start(monkeypatch: pytest.MonkeyPatch, images: Images) -> None:
    """Let every uniform start be ``noise``: the ball's U(-1, 1) is 2 U[0, 1) - 1."""
    monkeypatch.setattr(threat, "uniform_like", lambda x, generator: (images["noise"] + 1) / 2)


def assert_gradient(model: nn.Module, expected: dict[str, Any], first: str = "0.weight") -> None:
    """The norm of the whole gradient and ten of its entries, to 1e-5 of the largest of them."""
    norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    gradient = model.get_parameter(first).grad
    assert gradient is not None
    assert norms.norm().item() == pytest.approx(expected["gradient_norm"], rel=1e-5)
    assert gradient.norm().item() == pytest.approx(expected["conv1_gradient_norm"], rel=1e-5)
    shown = expected["conv1_gradient"]
    assert gradient.flatten()[:10].tolist() == pytest.approx(shown, abs=1e-5 * max(map(abs, shown)))


def assert_statistics(model: nn.Module, expected: dict[str, list[float]], prefix: str = "") -> None:
    for name, values in expected.items():
        assert model.get_buffer(prefix + name).tolist() == pytest.approx(values, abs=1e-5)


def test_trades(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, model, batch = golden("trades"), golden_network(), batch_of(golden_images)
    monkeypatch.setattr(attacks, "normal_like", lambda x, generator: golden_images["noise"])
    method = TRADES(TRADESConfig(), task("Linf:0.031"))

    inner = method.inner(model, batch)
    torch.testing.assert_close(inner["x_adv"], images_of(expected["x_adv"]), atol=1e-5, rtol=0)
    losses = method.loss(model, batch, inner)
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert losses.terms["clean"].item() == pytest.approx(expected["natural"], rel=1e-5)
    assert losses.terms["robust"].item() == pytest.approx(expected["robust"], rel=1e-5)
    losses.total.backward()
    assert_gradient(model, expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_pgd_at_step(
    mode: Any,
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = golden("pgd_at")[f"{mode}_mode_attack"]
    model, batch = golden_network(), batch_of(golden_images)
    fix_uniform_start(monkeypatch, golden_images)
    method = PGDAT(PGDATConfig(attack_mode=mode), task("Linf:8/255"))
    inner = method.inner(golden_network(), batch)
    torch.testing.assert_close(inner["x_adv"], images_of(expected["x_adv"]), atol=1e-5, rtol=0)

    losses = method.step(model, batch, Updater(optimizer(model.parameters(), TrainConfig()), None))
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-5)
    for name, parameter in (("conv1", "0.weight"), ("linear", "7.weight")):
        weights = model.get_parameter(parameter).flatten()[:10].tolist()
        assert weights == pytest.approx(expected[f"{name}_weight_after_step"], abs=1e-5)
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    assert gradient.norm().item() == pytest.approx(expected["conv1_gradient_norm"], rel=1e-5)


class Backbone(nn.Module):
    """The fixed network with what the backbones offer beside logits: a first layer apart, and a scalar energy."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network
        self.energy_head = nn.Linear(128, 1)
        with torch.no_grad():
            self.energy_head.weight.copy_(network.get_parameter("7.weight")[:1].flip(1))
            self.energy_head.bias.fill_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def first(self, x: Tensor) -> Tensor:
        return self.network[0](x)

    def rest(self, hidden: Tensor) -> Tensor:
        return self.network[1:](hidden)

    def scalar_energy(self, x: Tensor) -> Tensor:
        return -self.energy_head(self.network[:7](x)).squeeze(1)


class Given(Start):
    """Starts that are the images given, so that a chain restarted with certainty begins at them."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, torch.arange(len(x)), len(x))
        self.x = x

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return self.x[: len(y)]


def begin(method: DensityMethod, x: Tensor) -> None:
    """Let every chain of the method begin at ``x``."""
    method.negatives = Negatives(method.config.negatives, Given(x), generator(0))


def short(own: Chains, steps: int, **sampler: Any) -> Chains:
    """A method's own settings, but for the length of its chains, four of them, each begun anew."""
    settings = replace(own.sampler, steps=steps, **sampler)
    return replace(own, sampler=settings, buffer_size=4, restart_probability=1.0)


def updater(model: nn.Module, lr: float, weight_decay: float) -> Updater:
    return Updater(optimizer(model.parameters(), TrainConfig(lr=lr, weight_decay=weight_decay)), None)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_step(before: dict[str, Tensor], model: nn.Module, expected: dict[str, Any]) -> None:
    """How far the step moved each tensor, and entries of the weights it led to."""
    after = weights_of(model)
    for name, distance in expected["moved"].items():
        assert (after[name] - before[name]).norm().item() == pytest.approx(distance, rel=1e-5)
    for name, shown in expected["weights"].items():
        assert after[name].flatten()[:10].tolist() == pytest.approx(shown, abs=1e-5)


class Recorded:
    """A method's loss that remembers what it was, and where: totals, their gradients, weights."""

    def __init__(self, method: Method, model: nn.Module, batch: Batch, inner: Images) -> None:
        self.method, self.model, self.batch, self.inner = method, model, batch, inner
        self.totals: list[float] = []
        self.weights: list[dict[str, Tensor]] = []

    def __call__(self) -> Losses:
        losses = self.method.loss(self.model, self.batch, self.inner)
        self.totals.append(losses.total.item())
        self.weights.append(weights_of(self.model))
        return losses


class Watched(Updater):
    """An updater that compares each gradient with the golden one before it goes on."""

    def __init__(self, model: nn.Module, lr: float, expected: list[dict[str, Any]]) -> None:
        super().__init__(optimizer(model.parameters(), TrainConfig(lr=lr, weight_decay=5e-4)), None)
        self.model, self.expected = model, iter(expected)

    def gradient(self, total: Tensor) -> None:
        super().gradient(total)
        assert_gradient(self.model, next(self.expected))

    def apply(self) -> None:
        assert next(self.expected, None) is None
        super().apply()


def assert_sharpness_aware_step(
    method: Method, model: nn.Module, batch: Batch, inner: Images, lr: float, expected: dict[str, Any]
) -> None:
    """One step: loss and gradient at w, the climb e, loss and gradient at w + e, and the weights after it."""
    before, loss = weights_of(model), Recorded(method, model, batch, inner)
    update = Watched(model, lr, [expected["at_w"], expected["at_w_plus_e"]])
    losses = method.descend(model, batch, update, loss)

    assert losses.total.item() == pytest.approx(expected["loss_at_w"], rel=1e-5)
    assert loss.totals == pytest.approx([expected["loss_at_w"], expected["loss_at_w_plus_e"]], rel=1e-5)
    climbed = loss.weights[1]
    for name, distance in expected["e"]["norms"].items():
        e = climbed[name] - before[name]
        assert e.norm().item() == pytest.approx(distance, abs=1e-5 * expected["e"]["norm"])
    assert_step(before, model, expected)


@pytest.mark.parametrize("sampler", [{}, {"inner_steps": 5, "step_size": 0.05}])
def test_jempp_step(sampler: dict[str, Any], golden_network: Network, golden_images: Images, golden: Golden) -> None:
    recorded = golden("jempp")
    expected, batch = recorded["step"], batch_of(golden_images)
    method = JEMPP(JEMPPConfig(negatives=short(JEMPPConfig().negatives, 3, **sampler)), task("Linf:8/255"))
    begin(method, 0.5 + 0.25 * golden_images["noise"])
    x_q = method.inner(Backbone(golden_network()), batch)["x_q"]
    torch.testing.assert_close(x_q, images_of(recorded["chain"]["x_q"]), atol=1e-5, rtol=0)

    model = Backbone(golden_network())
    before = weights_of(model.network)
    losses = method.step(model, batch, updater(model, 0.1, 4e-4))
    assert losses.total.item() == pytest.approx(expected["total"], rel=1e-5)
    terms = {name: value.item() for name, value in losses.terms.items()}
    assert terms["energy_data"] - terms["energy_samples"] == pytest.approx(expected["p_x"], rel=1e-5)
    assert terms["clean"] == pytest.approx(expected["p_y_given_x"], rel=1e-5)
    assert_gradient(model.network, expected)
    assert_step(before, model.network, expected)
    assert_statistics(model.network, expected["running_statistics"])


def test_jem(golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, batch, model = golden("jem"), batch_of(golden_images), golden_network()
    monkeypatch.setattr(samplers, "normal_like", lambda x, _: golden_images["noise"])
    method = JEM(JEMConfig(negatives=short(JEMConfig().negatives, 3)), task("Linf:8/255"))
    begin(method, 0.5 + 0.5 * golden_images["noise"])

    inner = method.inner(model, batch)
    torch.testing.assert_close(inner["x_q"], images_of(recorded["chain"]["x_q"]), atol=1e-5, rtol=0)
    losses = method.loss(model, batch, inner)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(recorded["loss"]["total"], rel=1e-5)
    assert_gradient(model, recorded["loss"])


@pytest.mark.parametrize("sam", [SADAJEMConfig().sam, SAM(0.05, adaptive=False)])
def test_sadajem_step(sam: SAM, golden_network: Network, golden_images: Images, golden: Golden) -> None:
    recorded, batch, model = golden("sadajem"), batch_of(golden_images), golden_network()
    config = SADAJEMConfig(negatives=short(SADAJEMConfig().negatives, 3), sam=sam)
    method = SADAJEM(config, task("Linf:8/255"))
    begin(method, 0.5 + 0.1 * golden_images["noise"])
    inner = method.inner(golden_network(), batch)
    torch.testing.assert_close(inner["x_q"], images_of(recorded["chain"]["x_q"]), atol=1e-5, rtol=0)

    expected = recorded[f"rho_{sam.rho:g}"]
    assert_sharpness_aware_step(method, model, batch, inner, 0.1, expected)
    assert_statistics(model, expected["running_statistics"])


@pytest.mark.parametrize("adaptive", [True, False])
def test_sharpness_aware_steps_of_radius_0_are_plain_ones(
    adaptive: bool, golden_network: Network, golden_images: Images
) -> None:
    batch, config = batch_of(golden_images), SADAJEMConfig(negatives=short(Chains(), 2), sam=SAM(0.0, adaptive))
    states = []
    for method in (SADAJEM(config, task("Linf:8/255")), JEMPP(config, task("Linf:8/255"))):
        model = golden_network()
        begin(method, golden_images["x"])
        for _ in range(2):
            method.step(model, batch, updater(model, 0.1, 5e-4))
        states.append([state for name, state in model.state_dict().items() if "num_batches" not in name])
    assert all(torch.equal(sharp, plain) for sharp, plain in zip(*states, strict=True))


@pytest.mark.parametrize("name", ["m_ebm", "m_jem", "marginal"])
def test_mebm(
    name: str, golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, batch = golden("mebm")[name], batch_of(golden_images)
    settings = expected["settings"]
    monkeypatch.setattr(samplers, "normal_like", lambda x, _: golden_images["noise"])
    config = MEBMConfig(
        head="scalar" if settings["uncond"] else "marginal",
        l2=settings["l2_coeff"],
        w_clean=settings["pyx"],
        negatives=short(MEBMConfig().negatives, settings["n_steps"], noise=settings["sgld_std"] / 2),
    )
    method = MEBM(config, task("Linf:8/255"))
    begin(method, 0.5 + 0.25 * golden_images["noise"])
    inner = method.inner(Backbone(golden_network()), batch)
    torch.testing.assert_close(inner["x_q"], images_of(expected["x_q"]), atol=1e-5, rtol=0)

    model = Backbone(golden_network())
    losses = method.loss(model, batch, inner)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(expected["total"], rel=1e-5)
    assert losses.terms["energy_data"].item() == pytest.approx(-expected["fp"], rel=1e-5)
    assert losses.terms["energy_samples"].item() == pytest.approx(-expected["fq"], rel=1e-5)
    if settings["pyx"]:
        assert losses.terms["clean"].item() == pytest.approx(expected["ce"], rel=1e-5)
    assert_gradient(model, expected, "network.0.weight")
    assert_statistics(model, expected["running_statistics"], "network.")


@pytest.mark.parametrize(("variant", "function"), [("adversarial", "WEAT_adv"), ("natural", "WEAT_nat")])
def test_weat(
    variant: Any,
    function: str,
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded, model = golden("weat"), golden_network()
    batch = replace(batch_of(golden_images), x=golden_images["x"].roll(375))
    monkeypatch.setattr(attacks, "normal_like", lambda x, generator: golden_images["noise"])
    method = WEAT(WEATConfig(variant=variant), task("Linf:8/255"))

    inner = method.inner(model, batch)
    torch.testing.assert_close(inner["x_adv"], images_of(recorded["x_adv"]), atol=1e-5, rtol=0)
    losses = method.loss(model, batch, inner)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(recorded[function]["loss"], rel=1e-5)
    assert losses.terms["weight"].item() == pytest.approx(sum(recorded["weights"]) / 4, rel=1e-5)
    assert_gradient(model, recorded[function])


@pytest.mark.parametrize(
    ("key", "roll", "options"),
    [
        ("attack", 0, {"objective": "code_literal"}),
        # Their cross-entropy is the mean over chunks of two images, beside the sum of the logit distances.
        ("attack_ce", 222, {"objective": "ce", "perceptual_weight": 2}),
    ],
)
def test_ebjdat_released_attack(
    key: str,
    roll: int,
    options: dict[str, Any],
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fix_uniform_start(monkeypatch, golden_images)
    config = EBJDATConfig(attack=EnergyAttack(perceptual="logit_cos", scale="faithful", **options))
    method = EBJDAT(config, task("Linf:8/255"))
    batch = replace(batch_of(golden_images), x=golden_images["x"].roll(roll))
    x_adv = method._attack(golden_network(), batch)
    torch.testing.assert_close(x_adv, images_of(golden("ebjdat")[key]["x_adv"]), atol=1e-5, rtol=0)


def test_ebjdat_released_loss(golden_network: Network, golden_images: Images, golden: Golden) -> None:
    recorded = golden("ebjdat")
    expected, model = recorded["loss"], golden_network()
    inner = {
        "x_q": images_of(recorded["chain"]["x_q_after_3"]),
        "x_adv": images_of(recorded["attack"]["x_adv"]),
    }
    losses = EBJDAT(EBJDATConfig(), task("Linf:8/255")).loss(model, batch_of(golden_images), inner)

    assert losses.total.item() == pytest.approx(expected["total"], rel=1e-5)
    terms = {name: value.item() for name, value in losses.terms.items()}
    assert terms["energy_data"] - terms["energy_samples"] == pytest.approx(expected["p_x"], rel=1e-5)
    assert terms["clean"] == pytest.approx(expected["p_y_given_x"], rel=1e-5)
    assert terms["adversarial"] == pytest.approx(expected["p_y_given_xadv"], rel=1e-5)
    contrast = terms["energy_data"] - terms["energy_adv"]
    assert contrast == pytest.approx(expected["p_x_xadv"], rel=1e-5)
    losses.total.backward()
    assert_gradient(model, expected)


def test_ebjdat_on_jem(golden_network: Network, golden_images: Images, golden: Golden) -> None:
    recorded, model = golden("ebjdat"), golden_network()
    weights = {"w_density": 0.45, "w_clean": 0.45}
    config = EBJDATConfig(host="jem", host_options=weights, w_energy=0.05, w_adversarial=0.45)
    inner = {"x_q": images_of(golden("jem")["chain"]["x_q"]), "x_adv": images_of(recorded["attack"]["x_adv"])}
    losses = EBJDAT(config, task("Linf:8/255")).loss(model, batch_of(golden_images), inner)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(recorded["jem_host"]["total"], rel=1e-5)
    assert_gradient(model, recorded["jem_host"])


def test_ebjdat_on_sadajem(golden_network: Network, golden_images: Images, golden: Golden) -> None:
    recorded = golden("ebjdat")
    inner = {
        "x_q": images_of(recorded["chain"]["x_q_after_3"]),
        "x_adv": images_of(recorded["attack"]["x_adv"]),
    }
    method = EBJDAT(EBJDATConfig(host="sadajem"), task("Linf:8/255"))
    batch = batch_of(golden_images)
    assert_sharpness_aware_step(method, golden_network(), batch, inner, 0.01, recorded["sadajem_host"])


def test_dhat(golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a step but its mask, of which the authors' repository lacks the source: a given Grad-CAM stands for it."""
    expected, model = golden("dhat"), golden_network()
    fix_uniform_start(monkeypatch, golden_images)
    index = torch.arange(4 * 8 * 8, dtype=torch.float64)
    cam = 0.5 + 0.5 * torch.sin(12.9898 * index + 78.233 * 215).view(4, 1, 8, 8)
    network = BackboneConfig("wrn", 10, 1)
    method = DHAT(DHATConfig(auxiliary=AuxiliaryConfig(backbone=network)), task("Linf:8/255"))
    monkeypatch.setattr(method, "_foreground", lambda batch: cam > method.config.threshold)
    batch = replace(batch_of(golden_images), x=golden_images["x"].roll(expected["settings"]["roll"]))

    inner = method.inner(model, batch)
    torch.testing.assert_close(inner["x_adv"], images_of(expected["x_adv"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(inner["x_inverse"], images_of(expected["x_inverse"]), atol=1e-5, rtol=0)
    losses = method.loss(model, batch, inner)
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-5)
    for ours, theirs in (("adversarial", "cross_entropy"), ("align", "kl"), ("orthogonal", "orthogonal")):
        assert losses.terms[ours].item() == pytest.approx(expected[theirs], rel=1e-5)
    losses.total.backward()
    assert_gradient(model, expected)
    assert_statistics(model, expected["running_statistics"])
