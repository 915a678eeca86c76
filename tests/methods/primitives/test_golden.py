"""The primitives against numbers that the authors' released code computed (see tests/conftest.py)."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.primitives import attacks, samplers, threat
from methods.primitives.attacks import PGD, Objective
from methods.primitives.classifier_attacks import trades_attack
from methods.primitives.energy import joint_energy, marginal_energy
from methods.primitives.energy_attack import EnergyAttack
from methods.primitives.losses import cross_entropy, kl_divergence
from methods.primitives.modes import frozen
from methods.primitives.random import generator
from methods.primitives.samplers import SGLD
from methods.primitives.sharpness import SAM
from methods.primitives.threat import ThreatModel

Images = dict[str, Tensor]
Network = Callable[[], nn.Sequential]
Golden = Callable[[str], dict[str, Any]]

LINF = ThreatModel("Linf", Fraction(8, 255))


def images_of(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows).view(-1, 3, 8, 8)


def watched(objective: Objective, seen: list[Tensor]) -> Objective:
    def watch(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        seen.append(x.detach())
        return objective(x)

    return watch


def assert_iterates(seen: list[Tensor], x_adv: Tensor, expected: dict[str, Any]) -> None:
    """Every iterate after the start has the authors' sum of pixels, the last one their pixels."""
    sums = [iterate.double().sum().item() for iterate in (*seen[1:], x_adv)]
    assert sums == pytest.approx(expected["iterate_sums"], abs=2e-4)
    torch.testing.assert_close(x_adv, images_of(expected["x_adv"]), atol=1e-5, rtol=0)


def test_trades_iterates_and_losses(golden_network: Network, golden_images: Images, golden: Golden) -> None:
    expected, x = golden("trades"), golden_images["x"]
    ball = ThreatModel.parse("Linf:0.031")
    seen: list[Tensor] = []
    with frozen(golden_network(), training=False) as model:
        clean = model(x)
        objective = watched(lambda images: kl_divergence(clean, model(images)), seen)
        x_start = x + 0.001 * golden_images["noise"]
        x_adv = PGD(steps=10, step_size=0.007 / 0.031)(objective, x, ball, generator(0), x_start)

    assert_iterates(seen, x_adv, expected)
    model = golden_network()
    logits, logits_adv = model(x), model(x_adv)
    natural = cross_entropy(logits, golden_images["y"]).mean()
    robust = kl_divergence(logits, logits_adv).mean()
    assert natural.item() == pytest.approx(expected["natural"], rel=1e-5)
    assert robust.item() == pytest.approx(expected["robust"], rel=1e-4)
    (natural + 6 * robust).backward()
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    assert gradient.norm().item() == pytest.approx(expected["conv1_gradient_norm"], rel=1e-4)
    assert gradient.flatten()[:10].tolist() == pytest.approx(expected["conv1_gradient"], rel=1e-3, abs=1e-3)


def test_weat_iterates(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "normal_like", lambda x, generator: golden_images["noise"])
    x, pgd = golden_images["x"].roll(375), PGD(steps=10, step_size=0.25, start="normal")
    seen: list[Tensor] = []
    model = golden_network()
    model.register_forward_pre_hook(lambda module, images: seen.append(images[0].detach()))
    x_adv = trades_attack(pgd, model, x, LINF, generator(0))
    assert torch.equal(seen[0], x)
    assert_iterates(seen[1:], x_adv, golden("weat"))


@pytest.mark.parametrize("training", [False, True])
def test_pgd_at_iterates_and_step(
    training: bool, golden_network: Network, golden_images: Images, golden: Golden
) -> None:
    expected = golden("pgd_at")["train_mode_attack" if training else "eval_mode_attack"]
    x, y = golden_images["x"], golden_images["y"]
    x_start = (x + LINF.radius * golden_images["noise"]).clamp(0, 1)

    seen: list[Tensor] = []
    with frozen(golden_network(), training=training) as model:
        objective = watched(lambda images: cross_entropy(model(images), y), seen)
        x_adv = PGD(steps=10)(objective, x, LINF, generator(0), x_start)

    assert_iterates(seen, x_adv, expected)
    model = golden_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loss = cross_entropy(model(x_adv), y).mean()
    loss.backward()
    optimizer.step()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    weights = model.get_parameter("0.weight").flatten()[:10].tolist()
    assert weights == pytest.approx(expected["conv1_weight_after_step"], rel=1e-3, abs=1e-4)


def logit_cosine(clean: Tensor, logits: Tensor) -> Tensor:
    """EB-JDAT's "perceptual" term: the squared distance of the unit logit vectors."""
    return (nn.functional.normalize(clean) - nn.functional.normalize(logits)).square().sum(1)


def test_ebjdat_released_attack(golden_network: Network, golden_images: Images, golden: Golden) -> None:
    x, y = golden_images["x"], golden_images["y"]
    # 8/255 and 2/255 of images in [-1, 1] are half as much here.
    pgd = PGD(steps=5, step_size=1 / 8, project=False)
    with frozen(golden_network()) as model:
        clean = model(x)

        def objective(images: Tensor) -> Tensor:
            logits = model(images)
            return logit_cosine(clean, logits) - joint_energy(logits, y)

        x_start = (x + 4 / 255 * golden_images["noise"]).clamp(0, 1)
        x_adv = pgd(objective, x, LINF, generator(0), x_start)
    torch.testing.assert_close(x_adv, images_of(golden("ebjdat")["attack"]["x_adv"]), atol=1e-5, rtol=0)


def test_ebjdat_commented_attack(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, x = golden("ebjdat")["attack_ce"], golden_images["x"].roll(222)
    monkeypatch.setattr(threat, "uniform_like", lambda x, generator: (golden_images["noise"] + 1) / 2)
    # Their cross-entropy is the mean over chunks of two images, beside the sum of the logit distances.
    attack = EnergyAttack(objective="ce", perceptual="logit_cos", perceptual_weight=2, scale="faithful")
    with frozen(golden_network()) as model:
        x_adv = attack(model, x, golden_images["y"], LINF, generator(0))
        unweighted = replace(attack, perceptual_weight=1)(model, x, golden_images["y"], LINF, generator(0))
    torch.testing.assert_close(x_adv, images_of(expected["x_adv"]), atol=1e-5, rtol=0)
    assert (unweighted - x_adv).abs().max() > 0.001


Run = Callable[[SGLD, nn.Sequential, Tensor], Tensor]


def one_step(sgld: SGLD, model: nn.Sequential, start: Tensor) -> Tensor:
    return sgld(lambda images: marginal_energy(model(images)), start, generator(0))


def literal_loop(sgld: SGLD, model: nn.Sequential, start: Tensor) -> Tensor:
    """PYLD with its inner steps, 5 x 0.2 in [-1, 1]: five times a fifth of the step."""
    loop = replace(sgld, inner_steps=5, step_size=sgld.step_size / 5)
    return loop(lambda hidden: marginal_energy(model[1:](hidden)), start, generator(0), model[0])


@pytest.mark.parametrize("run", [one_step, literal_loop])
@pytest.mark.parametrize(
    ("name", "chain", "steps", "spread"),
    [
        ("ebjdat", "x_q_after_1", 1, 0.5),
        ("ebjdat", "x_q_after_3", 3, 0.5),
        ("jempp", "x_q", 3, 0.25),
        ("sadajem", "x_q", 3, 0.1),
    ],
)
def test_clipped_chains(
    name: str,
    chain: str,
    steps: int,
    spread: float,
    run: Run,
    golden_network: Network,
    golden_images: Images,
    golden: Golden,
) -> None:
    expected = images_of(golden(name)["chain"][chain])
    start = 0.5 + spread * golden_images["noise"]
    with frozen(golden_network(), training=True) as model:
        x_q = run(SGLD(steps=steps), model, start)
        unclipped = run(SGLD(steps=steps, clip=None), model, start)
    torch.testing.assert_close(x_q, expected, atol=1e-5, rtol=0)
    assert (unclipped - expected).abs().max() > 0.01


def test_pylds_loop_is_one_step_behind_an_affine_layer_only(golden_network: Network, golden_images: Images) -> None:
    start = 0.5 + 0.25 * golden_images["noise"]
    with frozen(golden_network(), training=True) as model:
        step = one_step(SGLD(steps=2), model, start)
        torch.testing.assert_close(literal_loop(SGLD(steps=2), model, start), step, atol=1e-5, rtol=0)

        loop = SGLD(steps=2, step_size=0.05, inner_steps=5)
        curved = loop(lambda hidden: marginal_energy(model[3:](hidden)), start, generator(0), model[:3])
        assert (curved - step).abs().max() > 0.01


def test_clipped_chain_with_noise(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = images_of(golden("mebm")["marginal"]["x_q"])
    monkeypatch.setattr(samplers, "normal_like", lambda x, _: golden_images["noise"])
    start = 0.5 + 0.25 * golden_images["noise"]
    with frozen(golden_network(), training=True) as model:
        x_q = one_step(SGLD(steps=2, noise=0.0005), model, start)
        silent = one_step(SGLD(steps=2), model, start)
    torch.testing.assert_close(x_q, expected, atol=1e-5, rtol=0)
    assert (silent - expected).abs().max() > 1e-4


def test_jem_chain(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = images_of(golden("jem")["chain"]["x_q"])
    monkeypatch.setattr(samplers, "normal_like", lambda x, _: golden_images["noise"])
    sgld = SGLD(steps=3, step_size=0.25, clip=None, noise=0.005, clamp=False)
    with frozen(golden_network()) as model:
        x_q = one_step(sgld, model, 0.5 + 0.5 * golden_images["noise"])
    torch.testing.assert_close(x_q, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ebjdat", "jem"])
def test_ebm_losses(name: str, golden_network: Network, golden_images: Images, golden: Golden) -> None:
    expected, y = golden(name)["loss"], golden_images["y"]
    chain = golden(name)["chain"]
    model = golden_network()
    energy_p = marginal_energy(model(golden_images["x_other"])).mean()
    energy_q = marginal_energy(model(images_of(chain.get("x_q") or chain["x_q_after_3"]))).mean()
    p_y_given_x = cross_entropy(model(golden_images["x"]), y).mean()
    assert (energy_p - energy_q).item() == pytest.approx(expected["p_x"], rel=1e-5)
    assert p_y_given_x.item() == pytest.approx(expected["p_y_given_x"], rel=1e-5)


@pytest.mark.parametrize(("rho", "adaptive"), [(2.0, True), (0.05, False)])
def test_sam_climb(rho: float, adaptive: bool, golden_network: Network, golden_images: Images, golden: Golden) -> None:
    recorded = golden("sadajem")
    expected, model = recorded[f"rho_{rho:g}"], golden_network()
    x_q = images_of(recorded["chain"]["x_q"])
    loss = (
        marginal_energy(model(golden_images["x_other"])).mean()
        - marginal_energy(model(x_q)).mean()
        + cross_entropy(model(golden_images["x"]), golden_images["y"]).mean()
    )
    loss.backward()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with SAM(rho, adaptive).climbed(model.parameters()):
        e = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
    assert loss.item() == pytest.approx(expected["loss_at_w"], rel=1e-5)
    norm = torch.stack([part.norm() for part in e.values()]).norm().item()
    assert norm == pytest.approx(expected["e"]["norm"], rel=1e-5)
    for name, size in expected["e"]["norms"].items():
        assert e[name].norm().item() == pytest.approx(size, abs=1e-5 * norm)
    for name, shown in expected["e"]["entries"].items():
        assert e[name].flatten()[:10].tolist() == pytest.approx(shown, abs=1e-5 * norm)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def two_sided(model: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """The network as the papers have it: images in [-1, 1]."""
    return lambda u: model((u + 1) / 2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("rate", "bound", "noise", "clamp"),
    [(1.0, None, 0.01, False), (1.0, 1.0, 0.0, True), (1.0, 1.0, 0.001, True), (0.1, 0.5, 0.02, True)],
)
def test_chains_equal_those_in_two_sided_units(
    rate: float,
    bound: float | None,
    noise: float,
    clamp: bool,
    training: bool,
    golden_network: Network,
    golden_images: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samplers, "normal_like", lambda x, _: golden_images["noise"])
    start = 0.5 + 0.25 * golden_images["noise"]
    ours = SGLD(2, rate / 4, None if bound is None else 2 * bound, noise / 2, clamp)
    with frozen(golden_network(), training=training) as model:
        x_q = one_step(ours, model, start)

        network, u = two_sided(model), 2 * start - 1
        for _ in range(2):
            u.requires_grad_()
            (ascent,) = torch.autograd.grad(network(u).logsumexp(1).sum(), u)
            ascent = ascent if bound is None else ascent.clamp(-bound, bound)
            u = u.detach() + rate * ascent + noise * golden_images["noise"]
            u = u.clamp(-1, 1) if clamp else u
    torch.testing.assert_close(x_q, (u + 1) / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["code_literal", "joint_energy", "ce"])
def test_the_released_adversary_equals_that_in_two_sided_units(
    objective: Any, golden_network: Network, golden_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threat, "uniform_like", lambda x, generator: (golden_images["noise"] + 1) / 2)
    x, y = golden_images["x"].roll(222), golden_images["y"]
    with frozen(golden_network()) as model:
        x_adv = EnergyAttack(objective=objective, scale="faithful", steps=2)(model, x, y, LINF, generator(0))

        network, eps, alpha = two_sided(model), 8 / 255, 2 / 255
        u = (2 * x - 1 + eps * golden_images["noise"]).clamp(-1, 1)
        for _ in range(2):
            u.requires_grad_()
            logits = network(u)
            correct = logits[range(4), y]
            raised = {"code_literal": correct, "joint_energy": -correct, "ce": logits.logsumexp(1) - correct}
            (gradient,) = torch.autograd.grad(raised[objective].sum(), u)
            u = (u.detach() + alpha * gradient.sign()).clamp(-1, 1)
    torch.testing.assert_close(x_adv, (u + 1) / 2, atol=1e-5, rtol=0)
