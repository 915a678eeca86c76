"""The results under version control: what anybody can check of them without training."""

import csv
import shutil
from pathlib import Path

import pytest

from benchmark.evaluation.verify import verify_all
from benchmark.leaderboard.tables import rebuild
from benchmark.results.entry import Entry, read_entry
from benchmark.results.layout import ATTACKS, REPRODUCTION, entry_path, picture_path
from benchmark.specs.recipes import scales
from benchmark.studies.reproduce import Reproduction
from benchmark.studies.targets import ALL, scale, targets

LEADERBOARDS = Path(__file__).parents[1] / "leaderboards"
ENTRIES = sorted(LEADERBOARDS.glob("*/*/**/entries/*.json"))
REPRODUCED = [LEADERBOARDS / REPRODUCTION / name for name in scales() if (LEADERBOARDS / REPRODUCTION / name).is_dir()]
TABLES = ("*/*/leaderboard*", "*/*/ablations/*/table*")


def test_there_are_results() -> None:
    assert ENTRIES


def test_tables_are_those_of_the_entries(tmp_path: Path) -> None:
    copied = tmp_path / "leaderboards"
    shutil.copytree(LEADERBOARDS, copied)
    for table in tables(copied):
        (copied / table).unlink()
    rebuild(copied)
    assert tables(copied) == tables(LEADERBOARDS)


@pytest.mark.parametrize("folder", REPRODUCED, ids=lambda folder: folder.name)
def test_reproduction_is_that_of_the_entries(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "leaderboards"
    shutil.copytree(LEADERBOARDS, copied)
    with open(folder / "table2.csv", newline="") as file:
        seeds = sorted({int(seed) for row in csv.DictReader(file) for seed in row["seeds"].split()})
    Reproduction(targets(ALL), scale(folder.name), seeds, leaderboards=copied).write()
    for path in (path for path in folder.glob("*.*") if path.suffix in (".md", ".csv", ".tex")):
        assert (copied / REPRODUCTION / folder.name / path.name).read_bytes() == path.read_bytes(), path.name


def tables(root: Path) -> dict[Path, bytes]:
    found = [path for pattern in TABLES for path in root.glob(pattern)]
    return {path.relative_to(root): path.read_bytes() for path in found}


def test_figures_and_pictures_belong_to_what_is_there() -> None:
    for folder in LEADERBOARDS.glob("*/*/ablations/*"):
        assert (folder / "figure.png").is_file()
    shown = set(LEADERBOARDS.glob("*/*/**/samples/*.png"))
    assert shown == {picture_path(path) for path in ENTRIES if "generation" in read_entry(path).measurements}


@pytest.fixture(params=ENTRIES, ids=lambda path: path.stem)
def entry(request: pytest.FixtureRequest) -> tuple[Path, Entry]:
    return request.param, read_entry(request.param)


def test_entries_are_traceable(entry: tuple[Path, Entry]) -> None:
    path, found = entry
    root = next(parent for parent in path.parents if parent == LEADERBOARDS or parent.name == ATTACKS)
    assert entry_path(root, found) == path
    for record in (found.provenance, found.training["provenance"]):
        assert record["dirty"] is False
        assert len(record["commit"]) == 40
    assert found.partial == (found.data.n < found.data.of)
    assert found.training["budget"]


def test_autoattack_is_no_weaker_than_pgd20(entry: tuple[Path, Entry]) -> None:
    measurements = entry[1].measurements
    assert {found.status for found in measurements.values()} == {"done"}
    names = [name for name in ("autoattack", "pgd20", "clean") if name in measurements]
    accuracies = [float(str(measurements[name].values["accuracy"])) for name in names]
    assert accuracies == sorted(accuracies)
    if "autoattack" in measurements:
        assert isinstance(measurements["autoattack"].values["pgd20_breaks_autoattack_does_not"], int)


def test_training_with_one_step_does_not_overfit_catastrophically() -> None:
    """From its best epoch on, accuracy under PGD never falls below half of that one's."""
    found = [read_entry(path) for path in ENTRIES]
    curves = [entry.training["curves"]["validation_robust"] for entry in found if entry.method == "tdat"]
    for curve in ([value for value in curve if value is not None] for curve in curves):
        assert min(curve[curve.index(max(curve)) :]) >= max(curve) / 2
    assert len(curves) >= 3


def test_every_bundle_verifies() -> None:
    """Those of the embedded data, whose weights are small enough to lie beside them."""
    digits = LEADERBOARDS / "digits"
    found = list(verify_all(digits))
    own = [path for path in ENTRIES if path.is_relative_to(digits)]
    assert len(found) == sum(read_entry(path).evidence is not None for path in own) > 50
    for verification in found:
        assert verification.passed, (verification.entry, verification.lines)


def test_court_keeps_what_is_promised_of_it() -> None:
    """Every planted failure is caught, and at most 5 % of the honest checkpoints of the table are accused."""
    folder = LEADERBOARDS / "digits" / "linf-0.15"
    with open(folder / "court" / "court.csv", newline="") as file:
        checks = list(csv.DictReader(file))
    judged = {row["weights"] for row in checks if row["kind"] != "planted"}
    assert judged == {read_entry(path).subject.weights_digest[:16] for path in (folder / "entries").glob("*.json")}
    suspected: dict[str, dict[tuple[str, str], bool]] = {"planted": {}, "honest": {}, "collapsed": {}}
    for row in checks:
        cases, case = suspected[row["kind"]], (row["weights"], row["failure"])
        cases[case] = cases.get(case, False) or row["passed"] == "false"
    caught, accused = suspected["planted"].values(), suspected["honest"].values()
    print(f"court: {sum(caught)} of {len(caught)} planted failures, {sum(accused)} of {len(accused)} honest models")
    assert all(caught) and len(caught) >= 11
    assert sum(accused) <= 0.05 * len(accused)
