"""The method files against numbers that the authors' released code computed (see tests/conftest.py)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.agr import AGR
from methods.agr import Config as AGRConfig
from methods.awp import AWP
from methods.awp import Config as AWPConfig
from methods.backbones import BackboneConfig
from methods.dhat import DHAT
from methods.dhat import Config as DHATConfig
from methods.ebjdat import EBJDAT
from methods.ebjdat import Config as EBJDATConfig
from methods.gen_data import Config as GenDataConfig
from methods.gen_data import GenData
from methods.jem import JEM
from methods.jem import Config as JEMConfig
from methods.jempp import JEMPP
from methods.jempp import Config as JEMPPConfig
from methods.las_at import LASAT
from methods.las_at import Config as LASATConfig
from methods.lbgat import LBGAT
from methods.lbgat import Config as LBGATConfig
from methods.mart import MART
from methods.mart import Config as MARTConfig
from methods.mebm import MEBM
from methods.mebm import Config as MEBMConfig
from methods.pgd_at import PGDAT
from methods.pgd_at import Config as PGDATConfig
from methods.primitives import attacks, per_sample_attack, samplers, threat
from methods.primitives.cutmix import Box, paste
from methods.primitives.energy_attack import EnergyAttack
from methods.primitives.negatives import Chains, Negatives
from methods.primitives.per_sample_attack import Choices
from methods.primitives.random import generator
from methods.primitives.reinforce import Policy, PolicySGD
from methods.primitives.sharpness import SAM
from methods.primitives.starts import Start
from methods.primitives.targets import one_hot
from methods.primitives.threat import ThreatModel
from methods.sadajem import SADAJEM
from methods.sadajem import Config as SADAJEMConfig
from methods.score import SCORE
from methods.score import Config as SCOREConfig
from methods.tdat import TDAT
from methods.tdat import Config as TDATConfig
from methods.trades import TRADES
from methods.trades import Config as TRADESConfig
from methods.training.auxiliary import PretrainedConfig
from methods.training.config import TrainConfig
from methods.training.density import DensityMethod
from methods.training.method import Batch, Losses, Method, Task
from methods.training.optim import Updater, optimizer
from methods.training.reward import Reward
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


def test_mart(golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, model = golden("mart"), golden_network()
    batch = replace(batch_of(golden_images), x=golden_images["x"].roll(3))
    monkeypatch.setattr(attacks, "normal_like", lambda x, generator: golden_images["noise"])
    iterates: list[Tensor] = []
    watched = golden_network()
    watched.register_forward_pre_hook(lambda module, images: iterates.append(images[0].detach()))
    method = MART(MARTConfig(), task("Linf:0.031"))

    inner = method.inner(watched, batch)
    torch.testing.assert_close(inner["x_adv"], images_of(expected["x_adv"]), atol=1e-5, rtol=0)
    sums = [x.sum().item() for x in [*iterates[1:], inner["x_adv"]]]
    assert sums == pytest.approx(expected["iterate_sums"], abs=1e-3)
    losses = method.loss(model, batch, inner)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert losses.terms["boosted"].item() == pytest.approx(expected["boosted"], rel=1e-5)
    assert_gradient(model, expected)
    assert_statistics(model, expected["running_statistics"])


def test_mart_of_a_confident_network(golden_network: Network, golden_images: Images, golden: Golden) -> None:
    """adversarial-training.md, trap 9: probabilities down to 1e-220, which float32 does not have."""
    expected, model, x = golden("mart")["confident"], golden_network(), golden_images["x"].roll(3)
    with torch.no_grad():
        model.get_parameter("7.weight").mul_(30)
    x_adv = (x + 0.001 * golden_images["noise"]).clamp(0, 1)
    losses = MART(MARTConfig(), task("Linf:0.031")).loss(model, replace(batch_of(golden_images), x=x), {"x_adv": x_adv})
    losses.total.backward()
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert_gradient(model, expected)


class AtPerturbed(Updater):
    """An updater that compares what it is given at theta + v, and what its step makes of that, with the golden ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(optimizer(model.parameters(), TrainConfig(lr=0.1, weight_decay=5e-4)), None)
        self.model = model
        self.expected: dict[str, Any] = {}
        self.before = weights_of(model)

    def gradient(self, total: Tensor) -> None:
        v = {name: weight - self.before[name] for name, weight in weights_of(self.model).items()}
        for name, length in self.expected["v"]["norms"].items():
            assert v[name].norm().item() == pytest.approx(length, rel=1e-5)
        for name, shown in self.expected["v"]["entries"].items():
            assert v[name].flatten()[:10].tolist() == pytest.approx(shown, abs=1e-6)
        super().gradient(total)
        if "at_w_plus_v" in self.expected:
            assert_gradient(self.model, self.expected["at_w_plus_v"])

    def apply(self) -> None:
        super().apply()
        for name, shown in self.expected["while_perturbed"].items():
            assert self.model.get_parameter(name).flatten()[:10].tolist() == pytest.approx(shown, abs=1e-5)


@pytest.mark.parametrize(
    ("key", "base", "options", "gamma", "roll"),
    [
        ("at_awp", "pgd_at", {"attack_mode": "train"}, 0.01, 0),
        ("trades_awp", "trades", {"attack": {"step_size": 0.25}}, 0.005, 10),
    ],
)
def test_awp_steps(
    key: str,
    base: str,
    options: dict[str, Any],
    gamma: float,
    roll: int,
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two steps on the same images, the second with momentum: v, the gradient at theta + v, the weights, restored.

    adversarial-training.md, trap 7: their v is that of a proxy's step at a rate of .01 or .1, ours of no step at all.
    """
    expected, model = golden("awp")[key], golden_network()
    batch = replace(batch_of(golden_images), x=golden_images["x"].roll(roll))
    fix_uniform_start(monkeypatch, golden_images)
    monkeypatch.setattr(attacks, "normal_like", lambda x, generator: golden_images["noise"])
    method = AWP(AWPConfig(base=base, base_options=options, gamma=gamma), task("Linf:8/255"))
    inner = method.inner(golden_network(), batch)
    torch.testing.assert_close(inner["x_adv"], images_of(expected["x_adv"]), atol=1e-5, rtol=0)
    assert expected["settings"]["v_between_proxy_lr_0.01_and_0.1"] < 1e-14

    update, loss = AtPerturbed(model), Recorded(method, model, batch, inner)
    for step in ("step_1", "step_2"):
        update.before, update.expected = weights_of(model), expected[step]
        losses = method.descend(model, batch, update, loss)
        assert losses.total.item() == pytest.approx(expected[step]["loss_at_w_plus_v"], rel=1e-5)
        for name, distance in expected[step]["moved"].items():
            moved = model.get_parameter(name) - update.before[name]
            # Biases before BatchNorm have no gradient but rounding.
            assert moved.norm().item() == pytest.approx(distance, rel=1e-5, abs=1e-6)
        for name, shown in expected[step]["weights"].items():
            assert model.get_parameter(name).flatten()[:10].tolist() == pytest.approx(shown, abs=1e-5)
        if step == "step_1":
            assert loss.totals[0] == pytest.approx(expected["loss_at_w"], rel=1e-5)
            assert_statistics(model, expected.get("running_statistics", {}))


@pytest.mark.parametrize(
    ("key", "options", "base_order"),
    [
        ("trades_155", {}, True),
        ("trades_155_unclipped", {"clip": 1000.0}, True),
        ("trades_154", {"start": 1.0}, True),
        # Theirs makes a clean pass of its own, before the others.
        ("AT_155", {"base": "pgd_at"}, False),
        ("AT_155_unclipped", {"base": "pgd_at", "clip": 1000.0}, False),
        ("mart_155", {"base": "mart"}, False),
        ("awp_consistent_155", {"base": "awp"}, False),
    ],
)
def test_agr_step(
    key: str,
    options: dict[str, Any],
    base_order: bool,
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The edited gradients and one step along them; images that the clamp which they discard would not have met."""
    recorded, model = golden("agr"), golden_network()
    expected = recorded[key]
    batch = replace(batch_of(golden_images), x=0.2 + 0.6 * golden_images["x"].roll(13))
    fix_uniform_start(monkeypatch, golden_images)
    settings: dict[str, Any] = {"start": 0.0} | options
    method = AGR(AGRConfig(**settings), task("Linf:8/255"))
    inner = method.inner(model, batch)
    torch.testing.assert_close(inner["x_adv"], images_of(recorded["x_adv"]), atol=1e-5, rtol=0)

    before = weights_of(model)
    losses = method.step(model, batch, updater(model, 0.1, 5e-4))
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-5)
    for name, length in expected["edited"]["norms"].items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        # Biases before BatchNorm have no gradient but rounding.
        assert gradient.norm().item() == pytest.approx(length, rel=1e-5, abs=1e-4)
        shown = expected["edited"]["entries"][name]
        tolerance = max(1e-5 * max(map(abs, shown)), 1e-4 if length < 1e-4 else 0.0)
        assert gradient.flatten()[:10].tolist() == pytest.approx(shown, abs=tolerance)
    for name, distance in expected["moved"].items():
        moved = model.get_parameter(name) - before[name]
        assert moved.norm().item() == pytest.approx(distance, rel=1e-5, abs=1e-5)
    for name, shown in expected["weights"].items():
        assert model.get_parameter(name).flatten()[:10].tolist() == pytest.approx(shown, abs=1e-5 * max(1, *shown))
    if base_order:
        assert_statistics(model, expected["running_statistics"])


def test_agr_around_awp_in_their_order_is_another_gradient(golden: Golden) -> None:
    """Their clean loss is computed at theta and its gradient taken while the weights are theta + v.

    Of adversarial-training.md, 2.9 (c): per tensor, the cosine of the two gradients differs by up to .09 from that of
    the gradients at theta + v, to which ours are equal.
    """
    theirs, consistent = (golden("agr")[key]["cosines"] for key in ("awp_155", "awp_consistent_155"))
    assert max(abs(theirs[name] - consistent[name]) for name in theirs) == pytest.approx(0.0876, abs=1e-4)


def test_agr_clamps_at_every_step(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their loop discards its clamp, so that pixels may leave [0, 1] until the end."""
    expected = golden("agr")["clamp"]
    fix_uniform_start(monkeypatch, golden_images)
    iterates: list[Tensor] = []
    model = golden_network()
    model.register_forward_pre_hook(lambda module, images: iterates.append(images[0].detach()))
    batch = batch_of(golden_images)
    x_adv = AGR(AGRConfig(), task("Linf:8/255")).inner(model, batch)["x_adv"]
    assert all(x.min() >= 0 and x.max() <= 1 for x in iterates)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(golden_network().eval()(x_adv), batch.y)
    assert loss.item() == pytest.approx(expected["loss_clamped_every_step"], rel=1e-5)


SMALL = BackboneConfig("wrn", 10, 1, normalize="none")


def second_network(network: nn.Sequential) -> nn.Sequential:
    """Make another fixed network of the fixed one, for a teacher or a policy."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.7 * parameter.flip(0))
    return network


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat(
    beta: float,
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded, model, batch = golden("lbgat"), golden_network(), batch_of(golden_images)
    expected = recorded[f"beta_{beta:g}"]
    monkeypatch.setattr(attacks, "normal_like", lambda x, generator: golden_images["noise"])
    method = LBGAT(LBGATConfig(beta=beta, teacher=SMALL), task("Linf:0.031"))
    method.teacher = second_network(golden_network())  # type: ignore[assignment]

    inner = method.inner(model, batch)
    torch.testing.assert_close(inner["x_adv"], images_of(golden("trades")["x_adv"]), atol=1e-5, rtol=0)
    assert inner["x_adv"].sum().item() == pytest.approx(recorded["x_adv_sum"], rel=1e-6)
    losses = method.loss(model, batch, inner)
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-5)
    losses.total.backward()
    assert_gradient(model, expected["student"])
    assert_gradient(method.teacher, expected["teacher"])
    assert_statistics(model, expected["student_statistics"])


def watched(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[tuple[Any, Any]]:
    """Return a list that will hold the arguments and the result of every call of a method."""
    calls: list[tuple[Any, Any]] = []
    original = getattr(owner, name)

    def wrapper(*arguments: Any) -> Any:
        calls.append((arguments, original(*arguments)))
        return calls[-1][1]

    monkeypatch.setattr(owner, name, wrapper)
    return calls


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("las_at", {}),
        ("las_trades", {"base": "trades", "objective": "divergence", "start": "normal", "label_mass": 1.0}),
    ],
)
def test_las_step(
    name: str,
    options: dict[str, Any],
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of the policy and then one of the model, with the choices for both given."""
    expected, model, batch = golden("las_at")[name], golden_network(), batch_of(golden_images)
    settings = expected["settings"]
    eighths = [tuple(k / 8 for k in settings[key]) for key in ("epsilon_types", "step_size_types")]
    beta = tuple(map(float, settings.get("beta_types", ())))
    choices = Choices(eighths[0], tuple(settings["attack_iters_types"]), eighths[1], beta)
    limit, label_mass = (20.0, 1.0) if beta else (10.0, settings["factor"])
    reward = Reward(settings["R2_param"], settings["R3_param"], limit, label_mass)
    config = LASATConfig(choices=choices, strategy=SMALL, every=1, reward=reward, **options)
    method = LASAT(config, task("Linf:8/255"))
    sizes = [len(values) for values in choices.named.values()]
    method.policy = Policy(second_network(golden_network()), sizes, PolicySGD(**settings["policy_optimizer"]))
    fix_uniform_start(monkeypatch, golden_images)
    monkeypatch.setattr(per_sample_attack, "normal_like", lambda x, generator: golden_images["noise"])
    turns = iter([settings["policy_picks"], settings["picks"]])
    monkeypatch.setattr(Policy, "_draw", lambda *_: [torch.tensor(picks) for picks in next(turns)])
    crafted, learnt = watched(monkeypatch, LASAT, "_craft"), watched(monkeypatch, Policy, "learn")
    stepped = watched(monkeypatch, Policy, "_step")

    update = Updater(optimizer(model.parameters(), TrainConfig(lr=settings["lr"])), None)
    losses = method.step(model, batch, update)
    (_, for_policy), (_, for_model) = crafted
    sums = for_policy["x_adv"].flatten(1).sum(1).tolist()
    assert sums == pytest.approx(expected["x_adv_policy_image_sums"], abs=1e-4)
    torch.testing.assert_close(for_model["x_adv"], images_of(expected["x_adv"]), atol=1e-5, rtol=0)
    assert method.rewards.tolist() == pytest.approx(expected["rewards"], rel=1e-5)
    assert learnt[0][1].item() == pytest.approx(expected["policy_loss"], rel=1e-5)
    norm = nn.utils.get_total_norm(stepped[0][0][2])
    assert norm.item() == pytest.approx(expected["policy_gradient_norm"], rel=1e-5)
    assert losses.total.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert_gradient(model, expected)
    assert_statistics(model, expected["statistics"])
    for network, prefix in ((method.policy.network, "policy_"), (model, "")):
        for layer, parameter in (("conv1", "0.weight"), ("linear", "7.weight")):
            weights = network.get_parameter(parameter).flatten()[:10].tolist()
            assert weights == pytest.approx(expected[f"{prefix}{layer}_after"], abs=1e-5)


def test_las_awp_reward(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step in it is AWP's; its v is the smoothed loss's here and the plain one's there."""
    expected, settings = golden("las_at")["las_awp"], golden("las_at")["las_at"]["settings"]
    fix_uniform_start(monkeypatch, golden_images)
    eighths = [tuple(k / 8 for k in settings[key]) for key in ("epsilon_types", "step_size_types")]
    choices = Choices(eighths[0], tuple(settings["attack_iters_types"]), eighths[1])
    method = LASAT(LASATConfig(base="awp", choices=choices, strategy=SMALL, clip=True), task("Linf:8/255"))
    model, batch = golden_network(), batch_of(golden_images)
    picks = [torch.tensor(numbers) for numbers in settings["policy_picks"]]
    inner = method._craft(model, batch, picks, generator(0))
    reward = Reward(w_robust=1.0, w_clean=1.0)
    found = reward(method.base, model, batch, inner, expected["settings"]["lr"]).tolist()
    assert found == pytest.approx(expected["rewards"], rel=1e-5)


def rolled(batch: Batch, expected: dict[str, Any]) -> Batch:
    """The batch with its images rolled as the settings say: ``x.roll(3)``."""
    shift = int(expected["settings"]["x"].removeprefix("x.roll(").removesuffix(")"))
    return replace(batch, x=batch.x.roll(shift))


def assert_adversarial_loss(
    method: Method, batch: Batch, expected: dict[str, Any], network: Network, constant: float = 0.0
) -> Losses:
    """The iterate of the attack, then the loss, its gradient and the statistics that its passes lead to."""
    model = network()
    inner = method.inner(network(), batch)
    torch.testing.assert_close(inner["x_adv"], images_of(expected["x_adv"]), atol=1e-5, rtol=0)
    losses = method.loss(model, batch, inner)
    assert losses.total.item() - constant == pytest.approx(expected["loss"], rel=1e-5)
    losses.total.backward()
    assert_gradient(model, expected)
    return losses


@pytest.mark.parametrize("epoch", [0, 100])
def test_tdat(epoch: int, golden_network: Network, golden_images: Images, golden: Golden) -> None:
    recorded = golden("tdat")
    expected, batch = recorded[f"epoch_{epoch}"], rolled(batch_of(golden_images), recorded)
    batch = replace(batch, progress=epoch / 110)
    method = TDAT(TDATConfig(), replace(task("Linf:8/255"), batch_size=4, epochs=110))
    method.delta.copy_(8 / 255 * golden_images["noise"].sign())
    assert method._gamma(batch) == pytest.approx(expected["gamma"], abs=1e-8)

    losses = assert_adversarial_loss(method, batch, expected, golden_network)
    assert losses.terms["adversarial"].item() == pytest.approx(expected["adversarial"], rel=1e-5)
    assert losses.terms["robust"].item() == pytest.approx(expected["robust"], rel=1e-5)
    assert method.delta.sum().item() == pytest.approx(expected["next_delta_sum"], abs=1e-4)
    if "next_delta" in expected:
        torch.testing.assert_close(method.delta, images_of(expected["next_delta"]), atol=1e-5, rtol=0)


def test_tdat_statistics_after_a_step(golden_network: Network, golden_images: Images, golden: Golden) -> None:
    recorded, model = golden("tdat"), golden_network()
    method = TDAT(TDATConfig(), replace(task("Linf:8/255"), batch_size=4, epochs=110))
    method.delta.copy_(8 / 255 * golden_images["noise"].sign())
    method.step(model, rolled(batch_of(golden_images), recorded), updater(model, 0.1, 5e-4))
    assert_statistics(model, recorded["epoch_0"]["running_statistics"])


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("generated", SCOREConfig()),
        (
            "trades",
            SCOREConfig(beta=6, clip=0.3, clip_on="sum", attack=attacks.PGD(start="normal"), attack_mode="eval"),
        ),
        ("pgd", SCOREConfig(form="pgd", clip=0.4, attack_mode="train")),
    ],
)
def test_score(
    name: str,
    config: SCOREConfig,
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = golden("score")[name]
    fix_uniform_start(monkeypatch, golden_images)
    monkeypatch.setattr(attacks, "normal_like", lambda x, generator: golden_images["noise"])
    batch, method = rolled(batch_of(golden_images), expected), SCORE(config, task("Linf:8/255"))
    assert_adversarial_loss(method, batch, expected, golden_network)
    model = golden_network()
    method.step(model, batch, updater(model, 0.1, 5e-4))
    if "running_statistics" in expected:  # not of the trades form, whose clean pass is their last
        assert_statistics(model, expected["running_statistics"])


def test_generated_data(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = golden("gen_data")["smoothed"]
    fix_uniform_start(monkeypatch, golden_images)
    batch, method = rolled(batch_of(golden_images), expected), GenData(GenDataConfig(), task("Linf:8/255"))
    assert_adversarial_loss(method, batch, expected, golden_network)
    model = golden_network()
    method.step(model, batch, updater(model, 0.1, 5e-4))
    assert_statistics(model, expected["running_statistics"])


def test_generated_data_with_cutmix(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box of 5 x 5 pixels around (3, 6), cut off at the right edge; their loss is the KL from the mixed labels."""
    expected = golden("gen_data")["cutmix"]
    fix_uniform_start(monkeypatch, golden_images)
    batch = rolled(batch_of(golden_images), expected)
    partner = torch.tensor(expected["drawn"]["permutation"])
    x, target = paste(batch.x, one_hot(batch.y, 10), Box(1, 4, 4, 4), partner)
    torch.testing.assert_close(x, images_of(expected["mixed_x"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(target, torch.tensor(expected["mixed_y"]).view(4, 10), atol=1e-6, rtol=0)

    monkeypatch.setattr("methods.gen_data.cutmix", lambda *_: (x, target))
    method = GenData(GenDataConfig(cutmix=True), task("Linf:8/255"))
    assert_adversarial_loss(method, batch, expected, golden_network, constant=expected["entropy"])


def test_dhat(golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a step but its mask, of which the authors' repository lacks the source: a given Grad-CAM stands for it."""
    expected, model = golden("dhat"), golden_network()
    fix_uniform_start(monkeypatch, golden_images)
    index = torch.arange(4 * 8 * 8, dtype=torch.float64)
    cam = 0.5 + 0.5 * torch.sin(12.9898 * index + 78.233 * 215).view(4, 1, 8, 8)
    network = BackboneConfig("wrn", 10, 1)
    method = DHAT(DHATConfig(auxiliary=PretrainedConfig(backbone=network)), task("Linf:8/255"))
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
