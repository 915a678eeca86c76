"""Early stopping of attacks: the package's verdicts from fewer forward passes, on a network this project trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from benchmark.attacks.early_stopping import QueryCount, separable, stop_early
from benchmark.evaluation.runner import exact
from benchmark.models.subject import Subject, from_checkpoint
from methods import data
from methods.primitives.threat import ThreatModel

WEIGHTS = Path(__file__).parents[3] / "leaderboards" / "digits" / "weights" / "c2474ab6b91aac6e.safetensors"
"""PGD-AT on the digits: a third of the images is broken by APGD, a few by FAB-T alone, most by nothing."""
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
LINF, L2 = "Linf:0.15", "L2:0.6"
CASES = [*(([name], LINF) for name in ATTACKS), (STANDARD, L2)]
"""Every attack alone, and the cascade, each with one norm; ``THOROUGH`` has the other one."""
THOROUGH = [*(([name], L2) for name in ATTACKS), (STANDARD, LINF)]
IMAGES = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny forward passes: threads only cost; and the package seeds the global generator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    made = from_checkpoint(WEIGHTS, torch.device("cpu"))
    with exact(made.model):
        yield made


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    test = data.load("digits").test
    return test.unit(slice(0, IMAGES)), test.labels[:IMAGES]


def attacker(model: nn.Module, threat: str, attacks: list[str], iterations: int = 10) -> AutoAttack:
    """Make AutoAttack standard with fewer iterations."""
    ball = ThreatModel.parse(threat)
    made = AutoAttack(model, norm=ball.norm, eps=ball.radius, seed=5, device="cpu")
    for part in (made.apgd, made.apgd_targeted, made.fab):
        part.n_iter = iterations
    made.square.n_queries = 100
    made.attacks_to_run = attacks
    return made


class Counted(nn.Module):
    """A network that counts the images it is asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.model(x)


@pytest.mark.parametrize(
    ("attacks", "threat"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in THOROUGH)]
)
def test_verdicts_are_those_of_the_untouched_package(
    subject: Subject, images: tuple[Tensor, Tensor], attacks: list[str], threat: str
) -> None:
    x, y = images
    alone, stopped = (Counted(subject.model) for _ in range(2))
    package, ours = (attacker(subject.model, threat, attacks) for _ in range(2))
    for part in (package.apgd, package.apgd_targeted):
        part.model = alone
    package.fab.predict = package.square.predict = alone
    count = stop_early(ours, stopped)

    theirs, seen_by_them = package.run_standard_evaluation(x, y, batch_size=IMAGES)
    found, seen = ours.run_standard_evaluation(x, y, batch_size=IMAGES)

    broken = seen != y
    assert broken.tolist() == (seen_by_them != y).tolist()
    assert 0 < int(broken.sum()) < IMAGES
    assert (subject.model(found).argmax(1) != y).tolist() == broken.tolist()
    assert torch.equal(found[~broken], theirs[~broken])
    distance = ThreatModel.parse(threat).distance(found, x)
    assert float(distance.max()) <= ThreatModel.parse(threat).radius + 1e-5
    if attacks == ["square"]:
        assert torch.equal(found, theirs)
    if (attacks, threat[:2]) != (["square"], "L2"):  # which finds a new point at every query
        assert count.skipped > 0
        assert stopped.rows < alone.rows


def test_a_run_ends_when_every_image_is_broken(subject: Subject, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    for attacks in (["apgd-ce"], ["fab-t"]):
        ours, network = attacker(subject.model, "Linf:0.9", attacks, 100), Counted(subject.model)
        stop_early(ours, network)
        _, seen = ours.run_standard_evaluation(x, y, batch_size=IMAGES)
        assert not (seen == y).any()
        assert network.rows < 20 * IMAGES


def test_images_that_the_exact_network_classifies_correctly_are_attacked_on(
    subject: Subject, images: tuple[Tensor, Tensor]
) -> None:
    """The network of the search sees another class everywhere, save where the exact one does."""
    x, y = images

    def liar(points: Tensor) -> Tensor:
        return subject.model(points).roll(1, 1)

    believed = attacker(subject.model, "Linf:0.15", ["apgd-ce", "apgd-t", "square"])
    count = stop_early(believed, liar, subject.model)
    found, seen = believed.run_standard_evaluation(x, y, batch_size=IMAGES)
    assert (subject.model(found).argmax(1) == seen).all()
    owners = count.owners(ThreatModel.parse("Linf:0.15"), x)
    assert owners[seen == y].any()
    assert (seen == y).any()


def test_the_same_network_twice_changes_no_verdict(subject: Subject, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    once, twice = (attacker(subject.model, LINF, STANDARD, iterations=3) for _ in range(2))
    stop_early(once, subject.model)
    count = stop_early(twice, subject.model, subject.model)
    first, second = (made.run_standard_evaluation(x, y, batch_size=IMAGES)[1] for made in (once, twice))
    assert first.tolist() == second.tolist()
    assert count.refuted == []


def test_refuted_points_belong_to_the_nearest_image() -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    count = QueryCount(refuted=[torch.full((1, 2, 2), 0.6), torch.full((1, 2, 2), 0.45)])
    assert count.owners(ThreatModel.parse("Linf:0.1"), x).tolist() == [False, True, False]


def test_networks_that_draw_noise_or_mix_images_cannot_be_stopped_early(
    subject: Subject, images: tuple[Tensor, Tensor]
) -> None:
    x, _ = images
    mixing: list[Any] = [
        lambda points: subject.model(points) + 0.1 * torch.randn(len(points), 10),
        lambda points: subject.model(points - points.mean(0)),
    ]
    assert separable(subject.model, x, subject.model(x))
    state = torch.random.get_rng_state()
    for network in mixing:
        logits = network(x)
        torch.random.set_rng_state(state)
        assert not separable(network, x, logits)
        assert torch.equal(torch.random.get_rng_state(), state)
