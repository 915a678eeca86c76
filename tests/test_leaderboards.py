"""The results under version control: what anybody can check of them without training."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmark.evaluation.verify import verify_all
from benchmark.leaderboard import sample_grids
from benchmark.leaderboard.tables import rebuild
from benchmark.results.entry import Entry, read_entry
from benchmark.results.layout import ATTACKS, MASKING_POWER, REPRODUCTION, entry_path, picture_path
from benchmark.specs.recipes import scales
from benchmark.studies.detection_rates import FILES
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
def test_reproduction_is_that_of_the_entries(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The pictures are not compared: their bytes depend on matplotlib's version.
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).touch())
    monkeypatch.setattr(sample_grids, "stack", lambda path, _: path.touch())
    copied = tmp_path / "leaderboards"
    shutil.copytree(LEADERBOARDS, copied)
    with open(folder / "table2.csv", newline="") as file:
        seeds = sorted({int(seed) for row in csv.DictReader(file) for seed in row["seeds"].split()})
    there = {name: target for name, target in targets(ALL).items() if (folder / f"{name}.md").is_file()}
    assert "table2" in there
    Reproduction(there, scale(folder.name), seeds, leaderboards=copied).write()
    compared = [path for path in folder.glob("*.*") if path.suffix in (".md", ".csv", ".tex")]
    assert len(compared) == 3 * len(there)
    for path in compared:
        assert (copied / REPRODUCTION / folder.name / path.name).read_bytes() == path.read_bytes(), path.name


def tables(root: Path) -> dict[Path, bytes]:
    found = [path for pattern in TABLES for path in root.glob(pattern)]
    return {path.relative_to(root): path.read_bytes() for path in found}


def test_figures_and_pictures_belong_to_what_is_there(entries: dict[Path, Entry]) -> None:
    for folder in LEADERBOARDS.glob("*/*/ablations/*"):
        assert (folder / "figure.png").is_file()
    shown = set(LEADERBOARDS.glob("*/*/**/samples/*.png"))
    assert shown == {picture_path(path) for path, found in entries.items() if "generation" in found.measurements}


@pytest.fixture(scope="module")
def entries() -> dict[Path, Entry]:
    return {path: read_entry(path) for path in ENTRIES}


def untraceable(path: Path, found: Entry) -> Iterator[str]:
    """Yield what keeps anybody from finding out where an entry comes from."""
    root = next(parent for parent in path.parents if parent == LEADERBOARDS or parent.name == ATTACKS)
    if entry_path(root, found) != path:
        yield f"belongs at {entry_path(root, found)}"
    for name, record in (("evaluation", found.provenance), ("training", found.training["provenance"])):
        if record["dirty"] is not False or len(record["commit"]) != 40:
            yield f"the commit of its {name} is unknown"
    if found.partial != (found.data.n < found.data.of):
        yield "does not say whether it is partial"
    if not found.training["budget"]:
        yield "has no budget"


def test_entries_are_traceable(entries: dict[Path, Entry]) -> None:
    assert [(path.name, reason) for path, found in entries.items() for reason in untraceable(path, found)] == []


def inconsistent(found: Entry) -> Iterator[str]:
    """Yield what is wrong with an entry's accuracies."""
    measurements = found.measurements
    if {measurement.status for measurement in measurements.values()} != {"done"}:
        yield "a metric failed"
    names = [name for name in ("autoattack", "pgd20", "clean") if name in measurements]
    accuracies = [float(str(measurements[name].values["accuracy"])) for name in names]
    if accuracies != sorted(accuracies):
        yield f"the accuracies of {', '.join(names)} do not rise"
    autoattack = measurements.get("autoattack")
    if autoattack is not None and not isinstance(autoattack.values["pgd20_breaks_autoattack_does_not"], int):
        yield "does not count what PGD-20 breaks and AutoAttack does not"


def test_autoattack_is_no_weaker_than_pgd20(entries: dict[Path, Entry]) -> None:
    assert [(path.name, reason) for path, found in entries.items() for reason in inconsistent(found)] == []


def test_training_with_one_step_does_not_overfit_catastrophically(entries: dict[Path, Entry]) -> None:
    """From its best epoch on, accuracy under PGD never falls below half of that one's."""
    curves = [found.training["curves"]["validation_robust"] for found in entries.values() if found.method == "tdat"]
    for curve in ([value for value in curve if value is not None] for curve in curves):
        assert min(curve[curve.index(max(curve)) :]) >= max(curve) / 2
    assert len(curves) >= 3


def test_every_bundle_verifies(entries: dict[Path, Entry]) -> None:
    """Those of the embedded data, whose weights are small enough to lie beside them."""
    digits = LEADERBOARDS / "digits"
    found = list(verify_all(digits))
    own = [entry for path, entry in entries.items() if path.is_relative_to(digits)]
    assert len(found) == sum(entry.evidence is not None for entry in own) > 50
    for verification in found:
        assert verification.passed, (verification.entry, verification.lines)


def test_masking_checks_keep_what_is_promised_of_them(entries: dict[Path, Entry]) -> None:
    """Every planted failure is detected, and at most 5 % of the honest checkpoints of the table are suspected."""
    folder = LEADERBOARDS / "digits" / "linf-0.15"
    with open(folder / MASKING_POWER / FILES[1], newline="") as file:
        checks = list(csv.DictReader(file))
    checked = {row["weights"] for row in checks if row["kind"] != "planted"}
    own = [found for path, found in entries.items() if path.parents[1] == folder]
    assert checked == {found.subject.weights_digest[:16] for found in own}
    suspected: dict[str, dict[tuple[str, str], bool]] = {"planted": {}, "honest": {}, "collapsed": {}}
    for row in checks:
        cases, case = suspected[row["kind"]], (row["weights"], row["failure"])
        cases[case] = cases.get(case, False) or row["passed"] == "false"
    detected, accused = suspected["planted"].values(), suspected["honest"].values()
    print(
        f"checks: {sum(detected)} of {len(detected)} planted failures, {sum(accused)} of {len(accused)} honest models"
    )
    assert all(detected) and len(detected) >= 11
    assert sum(accused) <= 0.05 * len(accused)
