"""The primitives against numbers that the authors' released code computed (see tests/conftest.py)."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.primitives import samplers
from methods.primitives.attacks import PGD, Objective
from methods.primitives.energy import joint_energy, marginal_energy
from methods.primitives.losses import cross_entropy, kl_divergence
from methods.primitives.modes import frozen
from methods.primitives.random import generator
from methods.primitives.samplers import SGLD
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
    threat = ThreatModel.parse("Linf:0.031")
    seen: list[Tensor] = []
    with frozen(golden_network(), training=False) as model:
        clean = model(x)
        objective = watched(lambda images: kl_divergence(clean, model(images)), seen)
        x_start = x + 0.001 * golden_images["noise"]
        x_adv = PGD(steps=10, step_size=0.007 / 0.031)(objective, x, threat, generator(0), x_start)

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


@pytest.mark.parametrize("steps", [1, 3])
def test_jempp_chain(steps: int, golden_network: Network, golden_images: Images, golden: Golden) -> None:
    expected = images_of(golden("ebjdat")["chain"][f"x_q_after_{steps}"])
    start = 0.5 + 0.5 * golden_images["noise"]
    with frozen(golden_network(), training=True) as model:
        x_q = SGLD(steps=steps)(lambda images: marginal_energy(model(images)), start, generator(0))
        unclipped = SGLD(steps=steps, clip=None)(lambda u: marginal_energy(model(u)), start, generator(0))
    torch.testing.assert_close(x_q, expected, atol=1e-5 * 3**steps, rtol=0)
    assert (unclipped - expected).abs().max() > 0.01


def test_jem_chain(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = images_of(golden("jem")["chain"]["x_q"])
    monkeypatch.setattr(samplers, "normal_like", lambda x, _: golden_images["noise"])
    sgld = SGLD(steps=3, step_size=0.25, clip=None, noise=0.005, clamp=False)
    with frozen(golden_network()) as model:
        start = 0.5 + 0.5 * golden_images["noise"]
        x_q = sgld(lambda images: marginal_energy(model(images)), start, generator(0))
    torch.testing.assert_close(x_q, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["ebjdat", "jem"])
def test_ebm_losses(name: str, golden_network: Network, golden_images: Images, golden: Golden) -> None:
    expected, y = golden(name)["loss"], golden_images["y"]
    chain = golden(name)["chain"]
    model = golden_network()
    energy_p = marginal_energy(model(golden_images["x_other"])).mean()
    energy_q = marginal_energy(model(images_of(chain.get("x_q") or chain["x_q_after_3"]))).mean()
    p_y_given_x = cross_entropy(model(golden_images["x"]), y).mean()
    assert (energy_p - energy_q).item() == pytest.approx(expected["p_x"], rel=1e-4)
    assert p_y_given_x.item() == pytest.approx(expected["p_y_given_x"], rel=1e-5)
