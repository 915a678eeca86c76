"""The masking checks on tiny networks: every planted failure is caught, and no honest model is suspected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark.attacks import masking_checks
from benchmark.engines import Engine
from benchmark.metrics import masking
from benchmark.models import reference
from benchmark.models.subject import Subject, weights_digest
from benchmark.results.entry import Check
from benchmark.results.store import Store
from benchmark.studies import masking_power, planted_failures
from benchmark.studies.masking_power import Case, Study
from benchmark.studies.planted_failures import FAILURES
from methods.data import Dataset, load
from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen
from methods.primitives.threat import ThreatModel

pytestmark = pytest.mark.xdist_group("masking power")
"""What the tests share is made in one worker."""

CPU = torch.device("cpu")
FEW = {"eps": [0, 0.5, 1, 8], "steps": [1, 20]}
"""The ends and the middle of the study's sweep."""
SMALL = masking.Config(images=40, restarts=1, corners=10, queries=60, draws=2)


def trained(dataset: Dataset, threat: ThreatModel | None, epochs: int) -> Subject:
    """Train a tiny network in a second or two; adversarially, where there is a threat model."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
    x, y = dataset.train.unit(), dataset.train.labels
    steps = epochs * (len(x) // 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(steps):
        batch = torch.randperm(len(x), generator=generator)[:64]
        images, labels = x[batch], y[batch]
        if threat is not None:
            with frozen(model):
                attack = PGD(steps=3, step_size=0.5)
                images = attack(lambda z, y=labels: cross_entropy(model(z), y), images, threat, generator)
        optimizer.zero_grad()
        F.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    name = "standard" if threat is None else "robust"
    return Subject(name, model, 10, (1, 8, 8), CPU, weights_digest(model), name, "external")


@pytest.fixture(scope="module")
def networks() -> tuple[Subject, Subject]:
    """A robust network and one that is not."""
    dataset = load("digits")
    threat = ThreatModel.parse(masking_power.protocol(dataset).threat)
    return trained(dataset, threat, epochs=4), trained(dataset, None, epochs=4)


@pytest.fixture(scope="module", params=["few radii", pytest.param("all radii", marks=pytest.mark.slow)])
def study(
    request: pytest.FixtureRequest, networks: tuple[Subject, Subject], tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """The tiny study: two networks and the reference network; every failure in the robust one."""
    dataset = load("digits")
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "few radii":
            patched.setattr(masking_power, "_GRID", FEW)
        settings = masking_power.protocol(dataset, config=SMALL)
    robust, standard = networks
    honest = [robust, standard, reference.reference("digits", CPU)]
    store = Store(tmp_path_factory.mktemp("store"))
    cases = [masking_power.check(subject, dataset, settings, store) for subject in honest]
    cases += [masking_power.check(robust, dataset, settings, store, failure) for failure in FAILURES]
    return Study(dataset.name, settings, SMALL.images, tuple(cases))


def test_every_planted_failure_is_caught_and_no_honest_model_is(study: Study) -> None:
    print(f"\n{study.summary()}")
    for case in study.cases:
        accuracies = f"clean {case.clean:.0f} %, PGD-20 {case.pgd20:.0f} %"
        print(f"{case.subject}, {case.failure or 'honest'}: {accuracies}: {case.verdict}")
    assert study.missed == []
    assert study.detected == len(FAILURES)
    assert study.false_alarms == 0
    robust, standard, _ = study.honest
    assert robust.pgd20 > 40 > standard.pgd20
    assert min(case.clean for case in study.honest) > 85


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_failure_is_caught_by_a_check_that_should_catch_it(study: Study, failure: planted_failures.Failure) -> None:
    (case,) = (case for case in study.planted if case.failure == failure.name)
    assert set(study.caught(case)) & set(failure.caught_by), case.verdict
    known = {check.name for check in case.checks}
    assert set(failure.caught_by) <= known


def test_tables_count_the_cases(study: Study) -> None:
    text = study.markdown()
    assert study.summary() in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    for failure in FAILURES:
        assert [cell.strip() for cell in rows[failure.name].split("|")[3:5]] == ["1", "1"]
    assert [cell.strip() for cell in rows["gradient"].split("|")[2:5]] == ["3", "0", "2"]
    lines = study.csv().splitlines()
    assert len(lines) == 1 + sum(len(case.checks) for case in study.cases)
    assert lines[0] == "subject,weights,kind,failure,clean,pgd20,check,measured,bound,passed"


def check(name: str, passed: bool | None) -> Check:
    return Check(name=name, measured=1.0, bound=0.0, passed=passed, meaning="Made up.")


def test_what_the_model_fails_anyway_catches_no_failure(study: Study) -> None:
    checks = (check("Square", False), check("restarts", True))
    honest = Case("a s0", "0" * 64, None, 99.0, 40.0, checks, masking_checks.verdict(checks))
    same = replace(honest, failure="k_wta")
    more = replace(honest, failure="input_noise", checks=(*checks, check("determinism", False)))
    made = replace(study, cases=(honest, same, more))
    assert (made.detected, made.missed, made.false_alarms) == (1, ["k_wta"], 1)
    assert made.caught(more) == ["determinism"]
    assert "Detected 1 of 2 (50.0 %" in made.summary()
    assert "| a s0    | honest     | 0000000000000000 | Square" in made.markdown()


def test_collapsed_trainings_are_counted_apart(study: Study) -> None:
    checks = (check("batch norm mode", False),)
    collapsed = Case("a s0", "0" * 64, None, 45.0, 8.0, checks, masking_checks.verdict(checks), collapsed=True)
    made = replace(study, cases=(*study.cases, collapsed))
    assert made.false_alarms == 0
    assert len(made.honest) == len(study.honest)
    assert made.summary() == f"{study.summary()} Suspected 1 of 1 models whose training collapsed."
    assert "| a s0    | collapsed  |" in made.markdown()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, int], Study]:
    """Write the study of the digits' reference network, twice listed, into a folder, with so many workers."""
    dataset, weights = load("digits"), reference.weights("digits")
    config = masking.Config(images=8, restarts=1, corners=2, queries=5, draws=2)

    def write(name: str, workers: int) -> Study:
        return masking_power.study(
            [weights],
            dataset,
            tmp_path / name,
            collapsed=[weights],
            bases=[weights],
            config=config,
            progress=False,
            engine=Engine(workers=workers),
            store=tmp_path / f"{name}-store",
        )

    return write


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of a study."""
    return {name: (folder / name).read_bytes() for name in masking_power.FILES}


@pytest.mark.usefixtures("in_process")
def test_study_writes_the_same_files_twice_and_in_any_order_of_its_cases(
    written: Callable[[str, int], Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking_power, "FAILURES", FAILURES[:1])
    monkeypatch.setattr(masking_power, "_GRID", FEW)
    written("first", 1)
    found = written("second", 2)
    assert [case.kind for case in found.cases] == ["honest", "collapsed", "planted"]
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert files(tmp_path / "first")[masking_power.FILES[0]].decode() == found.markdown()
    assert found.cases[0].subject.startswith("reference s")
    assert "torch " in found.markdown()


@pytest.mark.slow
def test_study_of_every_failure_writes_the_same_files_in_any_number_of_processes(
    written: Callable[[str, int], Study], tmp_path: Path
) -> None:
    written("first", 1)
    found = written("second", 2)
    assert {case.failure for case in found.planted} == {failure.name for failure in FAILURES}
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_bases_are_the_least_and_the_most_robust_of_the_good_clear_checkpoints() -> None:
    paths = [Path(name) for name in "abcde"]
    found = [
        (99.0, 30.0, "clear"),
        (98.0, 2.0, "clear"),
        (98.5, 70.0, "clear"),
        (99.0, 90.0, "suspect: Square"),
        (20.0, 0.0, "clear"),
        (97.0, 1.0, "clear"),
    ]
    cases = [Case("a", str(i), None, clean, pgd20, (), verdict) for i, (clean, pgd20, verdict) in enumerate(found)]
    assert masking_power.extremes([*paths, Path("f")], cases) == [Path("b"), Path("c")]
    assert masking_power.extremes(paths[:1], cases[:1]) == [Path("a")]
    assert masking_power.extremes(paths[3:4], cases[3:4]) == []


def test_study_needs_checkpoints_and_a_threat_model() -> None:
    digits = load("digits")
    with pytest.raises(InputError, match="there are none"):
        masking_power.study([], digits, progress=False, store=Path())
    with pytest.raises(InputError, match="name a threat model"):
        masking_power.protocol(replace(digits, name="npz:x"))
    assert masking_power.protocol(replace(digits, name="npz:x"), "Linf:8/255").threat == "Linf:8/255"
