"""Cascades: the attacks of EB-JDAT's released evaluator against its own code, and what a custom cascade consists of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from benchmark.attacks.cascade import ROBUST, WRONG_BOX, Cascade, WrongBoxFAB
from benchmark.evaluation.shards import Shard
from benchmark.models.subject import Subject, weights_digest
from methods.primitives.threat import ThreatModel

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "ebjdat_release.json").read_text())
THREAT = ThreatModel.parse("Linf:0.04")


class Net(nn.Module):
    """The network of the golden numbers, on images in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.a = nn.Parameter(torch.randn(48, 16, generator=generator) / 4)
        self.b = nn.Parameter(torch.randn(16, 5, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((2 * x - 1).flatten(1) @ self.a) @ self.b


class SameSeed(Shard):
    """A shard whose attacks have the seed of the golden run."""

    def seed(self, *names: str | int) -> int:
        return int(GOLDEN["seed"])


@pytest.fixture
def subject() -> Subject:
    model = Net().eval().requires_grad_(False)
    return Subject("net", model, 5, (3, 4, 4), torch.device("cpu"), weights_digest(model), "", "external")


@pytest.fixture
def shard(subject: Subject) -> Shard:
    """Twelve images of any brightness, then twelve without a pixel below the middle of the range."""
    x = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    x[12:] = 0.5 + 0.5 * x[12:]
    return SameSeed(0, x, subject.model(x).argmax(1), 0)


@pytest.mark.parametrize("name", ["apgd_ce", "apgd_dlr", WRONG_BOX])
def test_attack_breaks_what_the_released_evaluator_breaks(subject: Subject, shard: Shard, name: str) -> None:
    outcome = Cascade((name,), iterations=20).run(subject, THREAT, shard, 24)
    golden = GOLDEN[name]
    assert (outcome["broken_by"] != ROBUST).astype(int).tolist() == golden["broken"]
    assert 0 < sum(golden["broken"]) < 24
    if name == WRONG_BOX:
        distances = [size * broken for size, broken in zip(golden["distance"], golden["broken"], strict=True)]
        assert outcome["perturbation"] == pytest.approx(distances, abs=1e-5)


def test_fab_in_the_wrong_box_breaks_no_image_with_a_dark_pixel(subject: Subject, shard: Shard) -> None:
    """What WrongBoxFAB leaves out, the package's FAB really cannot do."""
    dark = 2 * shard.x[:12] - 1
    assert float(dark.flatten(1).amin(1).max()) < -2 * THREAT.radius
    fab = FABAttack_PT(lambda u: subject.model((u + 1) / 2), n_iter=20, eps=2 * THREAT.radius, device="cpu")
    fab.targeted, fab.n_target_classes = True, 4
    assert torch.equal(fab.perturb(dark, shard.y[:12]), dark)

    asked: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        asked.append(x)
        return subject.model(x)

    made = WrongBoxFAB(fab, model, THREAT)  # pyright: ignore[reportArgumentType]
    assert torch.equal(made.perturb(shard.x[:12], shard.y[:12]), shard.x[:12])
    assert asked == []


def test_fab_in_its_own_box_breaks_dark_images_too(subject: Subject, shard: Shard) -> None:
    right = Cascade(("fab_t",), iterations=20).run(subject, THREAT, shard, 24)["broken_by"] != ROBUST
    wrong = Cascade((WRONG_BOX,), iterations=20).run(subject, THREAT, shard, 24)["broken_by"] != ROBUST
    assert right[:12].any()
    assert not wrong[:12].any()
    assert not (wrong & ~right).any()


def test_attacks_run_in_order_and_share_no_images(subject: Subject, shard: Shard) -> None:
    both = Cascade(("apgd_ce", "apgd_dlr"), iterations=20).run(subject, THREAT, shard, 24)
    turned = Cascade(("apgd_dlr", "apgd_ce"), iterations=20).run(subject, THREAT, shard, 24)
    first, last = (outcome["broken_by"] for outcome in (both, turned))
    assert ((first != ROBUST) == (last != ROBUST)).all()
    assert (first == 1).astype(int).tolist() == GOLDEN["apgd_ce"]["broken"]
    assert (last == 1).astype(int).tolist() == GOLDEN["apgd_dlr"]["broken"]
    assert set(both) >= {"shard_seconds_apgd_ce", "shard_seconds_apgd_dlr"}


@pytest.mark.parametrize(("field", "counted"), [("iterations", "apgd_ce"), ("queries", "square")])
def test_attack_lasts_as_long_as_it_is_told(subject: Subject, shard: Shard, field: str, counted: str) -> None:
    def passes(number: int) -> int:
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        handle = subject.model.register_forward_hook(count)
        settings: dict[str, Any] = {field: number}
        Cascade((counted,), **settings).run(subject, ThreatModel.parse("Linf:0.0001"), shard, 24)
        handle.remove()
        return calls

    assert passes(30) - passes(10) == 20
