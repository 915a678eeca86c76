"""The method files against numbers that the authors' released code computed (see tests/conftest.py)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.ebjdat import EBJDAT
from methods.ebjdat import Config as EBJDATConfig
from methods.pgd_at import PGDAT
from methods.pgd_at import Config as PGDATConfig
from methods.primitives import attacks, threat
from methods.primitives.energy_attack import EnergyAttack
from methods.primitives.threat import ThreatModel
from methods.trades import TRADES
from methods.trades import Config as TRADESConfig
from methods.training.config import TrainConfig
from methods.training.method import Batch, Losses, Task
from methods.training.optim import Updater, optimizer

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


def assert_gradient(model: nn.Sequential, losses: Losses, expected: dict[str, Any]) -> None:
    """The norm of the whole gradient and ten of its entries, to 1e-5 of the largest of them."""
    losses.total.backward()
    norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    first = model.get_parameter("0.weight").grad
    assert first is not None
    assert norms.norm().item() == pytest.approx(expected["gradient_norm"], rel=1e-5)
    assert first.norm().item() == pytest.approx(expected["conv1_gradient_norm"], rel=1e-5)
    shown = expected["conv1_gradient"]
    assert first.flatten()[:10].tolist() == pytest.approx(shown, abs=1e-5 * max(map(abs, shown)))


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
    assert losses.terms["natural"].item() == pytest.approx(expected["natural"], rel=1e-5)
    assert losses.terms["robust"].item() == pytest.approx(expected["robust"], rel=1e-5)
    assert_gradient(model, losses, expected)


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


def test_ebjdat_released_attack(
    golden_network: Network, golden_images: Images, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix_uniform_start(monkeypatch, golden_images)
    config = EBJDATConfig(attack=EnergyAttack(objective="code_literal", perceptual="logit_cos", scale="faithful"))
    method = EBJDAT(config, task("Linf:8/255"))
    x_adv = method._attack(golden_network(), batch_of(golden_images))
    torch.testing.assert_close(x_adv, images_of(golden("ebjdat")["attack"]["x_adv"]), atol=1e-5, rtol=0)


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
    assert_gradient(model, losses, expected)
