"""Single attacks through the harness: the package's own verdicts, image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from benchmark.attacks import autoattack
from benchmark.evaluation.shards import Shard
from benchmark.metrics import autoattack as metric
from methods.errors import InputError
from methods.primitives.random import derive
from methods.primitives.threat import ThreatModel

QUERIES = 150


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Thousands of tiny forward passes: threads only cost; and the package seeds the global generator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


def convolutional() -> nn.Module:
    """A small network with fixed weights, for images [1,6,6] of 4 classes."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made


def direct(name: str, model: nn.Module, threat: ThreatModel, seed: int) -> Any:
    """Make an attack of the package without AutoAttack, under AutoAttack's standard settings and three targets."""
    common: dict[str, Any] = {"norm": threat.norm, "eps": threat.radius, "seed": seed, "device": "cpu", "n_restarts": 1}
    if name in ("apgd_ce", "apgd_dlr"):
        return APGDAttack(model, n_iter=100, rho=0.75, eot_iter=1, loss=name.removeprefix("apgd_"), **common)
    if name == "apgd_t":
        return APGDAttack_targeted(model, n_iter=100, rho=0.75, eot_iter=1, n_target_classes=3, **common)
    if name == "fab_t":
        return FABAttack_PT(model, n_iter=100, targeted=True, n_target_classes=3, **common)
    return SquareAttack(model, n_queries=QUERIES, p_init=0.8, resc_schedule=False, **common)


@pytest.mark.parametrize("name", autoattack.NAMES)
@pytest.mark.parametrize(
    ("kind", "threat"),
    [("linear", "Linf:0.02"), pytest.param("convolutional", "L2:0.2", marks=pytest.mark.slow)],
)
def test_verdicts_are_those_of_the_package_alone(toy: Any, name: str, kind: str, threat: str) -> None:
    made = toy(images=12)
    model = made.model() if kind == "linear" else convolutional()
    x, y = made.dataset.test.unit(), made.dataset.test.labels
    if kind == "convolutional":
        y = model(x).argmax(1).where(torch.arange(12) > 1, y)
    ball, shard = ThreatModel.parse(threat), Shard(3, x, y, root=7)
    x_adv, _, warnings = autoattack.attack_and_classify(name, made.subject(model), ball, shard, 100, queries=QUERIES)
    assert warnings == []

    correct = model(x).argmax(1) == y
    theirs = x.clone()
    theirs[correct] = direct(name, model, ball, derive(7, "autoattack", 3)).perturb(x[correct], y[correct])
    robust = correct & (model(theirs).argmax(1) == y)
    assert 0 < int(robust.sum()) < int(correct.sum())
    assert (model(x_adv).argmax(1) == y).tolist() == robust.tolist()
    broken = correct & ~robust
    if name == "square":  # which drops broken images itself
        assert torch.equal(x_adv[broken], theirs[broken])
    assert torch.equal(x_adv[~broken], x[~broken])


def test_settings_and_seed_are_those_of_autoattack_standard(toy: Any) -> None:
    made = toy(classes=12)
    shard = Shard(3, made.dataset.test.unit(), made.dataset.test.labels, root=7)
    ours = autoattack.adversary(made.subject(), ThreatModel.parse("Linf:0.02"), shard)
    standard = AutoAttack(made.model(), eps=0.02, seed=derive(7, metric.NAME, 3), version="standard")
    for part in ("apgd", "apgd_targeted", "fab", "square"):
        names = ("n_restarts", "n_iter", "n_target_classes", "n_queries", "eps", "norm", "seed", "device")
        settings = [[getattr(getattr(made_, part), name, None) for name in names] for made_ in (ours, standard)]
        assert [str(value) for value in settings[0]] == [str(value) for value in settings[1]]


@pytest.mark.parametrize("name", autoattack.NAMES)
def test_hopeless_images_and_a_single_image_are_attacked_all_the_same(toy: Any, name: str) -> None:
    made = toy(images=3, wrong=2)
    shard = Shard(0, made.dataset.test.unit(), made.dataset.test.labels, root=0)
    threat = ThreatModel.parse("Linf:0.2")
    x_adv, y_adv, _ = autoattack.attack_and_classify(name, made.subject(), threat, shard, 100, queries=QUERIES)
    assert not (y_adv == shard.y).any()
    assert torch.equal(x_adv[:2], shard.x[:2])


def test_batch_size_is_the_packages(toy: Any) -> None:
    made = toy(images=6, wrong=0)
    seen: list[int] = []
    model = made.model()
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    shard = Shard(0, made.dataset.test.unit(), made.dataset.test.labels, root=0)
    autoattack.attack_and_classify("apgd_ce", made.subject(model), ThreatModel.parse("Linf:0.02"), shard, 4)
    assert max(seen) == 4


def test_logits_that_are_not_finite_are_an_error(toy: Any) -> None:
    made = toy(images=4)
    model = made.model()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    shard = Shard(0, made.dataset.test.unit(), made.dataset.test.labels, root=0)
    with pytest.raises(FloatingPointError, match="not finite"):
        autoattack.attack_and_classify("square", made.subject(model), ThreatModel.parse("Linf:0.02"), shard, 100)


def test_perturbation_outside_the_threat_model_is_an_error() -> None:
    threat, x = ThreatModel.parse("Linf:0.1"), torch.full((2, 1, 2, 2), 0.95)
    assert autoattack.distances(threat, x - 0.1, x).tolist() == pytest.approx([0.1, 0.1])
    for x_adv in (x - 0.11, x + 0.06, x * torch.nan):
        with pytest.raises(RuntimeError, match="left the threat model"):
            autoattack.distances(threat, x_adv, x)


@pytest.mark.parametrize(
    ("classes", "refused"), [(2, {"apgd_dlr", "apgd_t"}), (3, {"apgd_t"}), (4, set()), (12, set())]
)
def test_attacks_are_refused_where_there_are_too_few_logits(toy: Any, classes: int, refused: set[str]) -> None:
    subject = toy(classes=classes).subject()

    def refuses(name: str) -> bool:
        try:
            autoattack.check(subject, [name])
        except InputError as error:
            assert f"there are {classes} classes" in str(error)
            assert "--metrics clean,pgd20" in str(error)
            return True
        return False

    assert {name for name in autoattack.NAMES if refuses(name)} == refused


class Noisy(nn.Module):
    """A classifier that draws noise."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1e-3 * torch.randn(len(x), 1)


def test_warnings_of_the_package_are_returned(toy: Any) -> None:
    made = toy(images=4)
    shard = Shard(0, made.dataset.test.unit(), made.dataset.test.labels, root=0)
    subject = made.subject(Noisy(made.model()))
    *_, warnings = autoattack.attack_and_classify(
        "square", subject, ThreatModel.parse("Linf:0.2"), shard, 100, queries=10
    )
    assert [text.split("!")[0] for text in warnings] == ["it seems to be a randomized defense"]
