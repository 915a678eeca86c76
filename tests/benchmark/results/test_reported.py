"""The quoted numbers: a file that is checked at the door, and what sets a quoted number apart from a measured one."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.leaderboard.aggregate import metric_columns
from benchmark.results import reported
from benchmark.results.entry import Entry
from benchmark.results.reported import FLAGS, Number, beside, differences, numbers, quoted
from benchmark.specs import recipes
from methods.errors import InputError

Entries = Callable[..., Entry]
Write = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("TRILEMMA_SHARED", ROOT.parent / "shared")) / "reported.csv"
NOT_MEASURED_HERE = {"pgd10", "energy_gap_variance", "collapsed_at"} | {
    f"transfer_{attack}" for attack in ("pgd", "mi_fgsm", "vmi_fgsm", "vni_fgsm")
}
NUMBER: dict[str, Any] = {
    **{"source": "A paper", "table": "Table 1", "row": "", "recipe": "trades", "dataset": "cifar10"},
    **{"architecture": "WRN-34-10", "metric": "autoattack", "value": 53.4, "threat": "Linf:8/255"},
    **{"protocol": "standard", "caveat": ""},
}
STANDARD = ("cifar10-linf-8_255-v3", "a" * 12, "standard")
RELEASE = ("ebjdat-release-v1", "b" * 12, "authors")
RELEASE_SADAJEM = ("ebjdat-release-sadajem-v1", "c" * 12, "authors")
CUSTOM = ("attacks-v1", "d" * 12, "custom")


def published(changes: dict[str, Any]) -> Number:
    """Make a number that differs from NUMBER as asked."""
    return Number.model_validate(NUMBER | changes)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write configs/reported.csv of a configuration of its own: rows that differ from NUMBER as asked."""
    shutil.copytree(recipes.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path / "configs")

    def make(*rows: dict[str, Any], text: str | None = None) -> Path:
        path = tmp_path / "configs" / "reported.csv"
        if text is not None:
            path.write_text(text)
            return path
        with open(path, "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(NUMBER))
            writer.writeheader()
            writer.writerows(NUMBER | row for row in rows)
        return path

    return make


@pytest.fixture
def like(entry: Entries) -> Entries:
    """Make the entry that is the same measurement as NUMBER, but for what is asked."""

    def make(architecture: str = "wrn-34-10", **fields: Any) -> Entry:
        same = {"dataset": "cifar10", "threat": "Linf:8/255", "protocol": STANDARD}
        found = entry(**(same | fields))
        return found.model_copy(
            update={"subject": found.subject.model_copy(update={"architecture": architecture})},
        )

    return make


def test_every_row_of_the_file_is_known_to_the_project() -> None:
    found = numbers()
    assert len(found) > 250
    columns = metric_columns().keys() | NOT_MEASURED_HERE
    assert {number.metric for number in found} <= columns
    assert {number.dataset for number in found} == {"cifar10", "cifar100", "imagenet-subset-64"}
    assert set(recipes.recipes()) & {number.recipe for number in found} >= {
        *("standard", "pgd_at", "trades", "jem", "jempp", "sadajem", "mjem", "jeat", "weat"),
        *("ebjdat", "ebjdat_sadajem", "ebjdat_jem"),
    }
    for number in found:
        accuracy = number.metric in ("clean", "pgd10", "pgd20", "autoattack", "eot_pgd") or "marginal" in number.metric
        assert not accuracy or 0 <= number.value <= 100
        assert not number.caveat or number.caveat.endswith(".")
        assert number.protocol != "unknown" or number.caveat, "a row of unknown protocol says what is not known"
        assert ("inferred" in number.caveat or "If by" in number.caveat) == number.protocol.startswith("ebjdat-")


def test_a_number_without_an_attack_has_no_threat() -> None:
    attacked = {number.metric for number in numbers() if number.threat}
    assert attacked & {"clean", "fid", "inception_score", "collapsed_at"} == set()
    assert attacked >= {"pgd10", "pgd20", "autoattack", "marginal_apgd_ce", "eot_pgd"}
    standard = [number for number in numbers() if number.protocol == "standard" and number.metric != "clean"]
    assert all(number.threat for number in standard)


@pytest.mark.skipif(not SHARED.is_file(), reason=f"the transcription of the EB-JDAT paper is not at {SHARED}")
def test_file_has_every_number_of_the_transcription() -> None:
    recipes = {"ebjdat@jempp": "ebjdat", "ebjdat@sadajem": "ebjdat_sadajem", "ebjdat@jem": "ebjdat_jem"}
    attacks = {"apgd_ce": "apgd_ce", "apgd_dlr": "apgd_dlr", "fab": "fab_t", "square": "square"}
    metrics = {name: f"marginal_{attack}" for name, attack in attacks.items()} | {"collapse_epoch": "collapsed_at"}
    titles = {
        "EB-JDAT arXiv 2505.19459v1": "EB-JDAT v1 (arXiv 2505.19459),",
        "EB-JDAT CVPR 2026 supplement": "EB-JDAT supplement (CVPR 2026),",
        "third-party summary of a later version": "Third-party summary of a later version of EB-JDAT",
    }
    with open(SHARED, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    own = [(n.origin, n.dataset, n.recipe, n.architecture, n.metric, n.value) for n in numbers()]
    assert len(rows) == 192
    for row in rows:
        title = next(title for title in titles if row["table"].startswith(title))
        wanted = (
            titles[title] + row["table"].removeprefix(title),
            row["dataset"],
            recipes.get(row["method"], row["method"]),
            row["architecture"],
            metrics.get(row["metric"], row["metric"]),
            float(row["value"]),
        )
        assert wanted in own
        own.remove(wanted)


def test_quoted_is_the_first_row_and_the_others_are_further_sources() -> None:
    number = quoted("trades", "cifar10", "clean")
    assert number is not None
    assert (number.value, number.origin) == (85.72, "EB-JDAT v1 (arXiv 2505.19459), Table 2")
    found = beside("trades", "cifar10")
    assert found["clean"][0] == number
    assert {further.source for further in found["clean"]} >= {"TRADES repository", "RobustBench"}
    assert set(found) >= {"clean", "pgd20", "autoattack", "energy_gap_mean"}
    assert quoted("trades", "cifar10-jpeg", "clean") == number
    assert quoted("trades", "digits", "clean") is None


def test_readings_of_a_method_have_no_number_of_its_paper() -> None:
    hosts = {"ebjdat_jem", "ebjdat_sadajem"}
    readings = [name for name in recipes.recipes() if name.startswith("ebjdat_") and name not in hosts]
    assert len(readings) >= 4
    assert [beside(name, "cifar10") for name in readings] == [{}] * len(readings)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("standard", {"clean": 96.10, "pgd20": 0.0, "autoattack": 0.0}),
        ("pgd_at", {"clean": 85.17, "pgd20": 55.08, "autoattack": 51.69}),
        ("trades", {"clean": 85.72, "pgd20": 56.10, "autoattack": 53.40}),
        ("jem", {"clean": 92.90, "pgd20": 7.28, "fid": 38.40, "inception_score": 8.76}),
        ("sadajem", {"clean": 96.03, "pgd20": 42.46, "fid": 11.40, "inception_score": 8.63}),
        ("weat", {"clean": 83.36, "fid": 30.74, "inception_score": 8.97}),
        ("mjem", {"clean": 94.08, "fid": 9.87, "inception_score": 8.31}),
        ("ebjdat", {"clean": 91.43, "pgd20": 65.69, "autoattack": 64.34, "fid": 38.89}),
        ("ebjdat_sadajem", {"clean": 92.28, "pgd20": 66.12, "autoattack": 64.76, "fid": 27.42}),
        ("ebjdat_jem", {"fid": 39.43}),
    ],
)
def test_numbers_beside_the_recipes(recipe: str, expected: dict[str, float]) -> None:
    found = {metric: quoted(recipe, "cifar10", metric) for metric in ("clean", "pgd20", "autoattack", *expected)}
    assert {metric: number.value for metric, number in found.items() if number} == expected


def test_the_same_measurement_has_no_flag(like: Entries) -> None:
    assert differences(published({}), like()) == ()
    assert differences(published({"metric": "clean", "threat": ""}), like()) == ()


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"dataset": "cifar10-jpeg"}, ("data",)),
        ({"architecture": "wrn-28-10"}, ("architecture",)),
        ({"training": {"budget": "scaled down"}}, ("budget",)),
        ({"training": {"budget": ""}}, ()),
        ({"overrides": ["train.epochs=5"]}, ("settings",)),
        ({"n": 50}, ("part",)),
        ({"threat": "Linf:0.031"}, ("eps",)),
        ({"threat": "L2:8/255"}, ("eps",)),
        ({"protocol": RELEASE}, ("attack", "noise")),
        ({"protocol": RELEASE_SADAJEM}, ("attack",)),
        ({"protocol": CUSTOM}, ("evaluator",)),
        (
            {"dataset": "cifar10-jpeg", "architecture": "wrn-10-2", "threat": "Linf:4/255", "protocol": RELEASE},
            ("data", "architecture", "eps", "attack", "noise"),
        ),
    ],
)
def test_what_sets_an_entry_apart_from_a_standard_number(
    like: Entries, changes: dict[str, Any], flags: tuple[str, ...]
) -> None:
    assert differences(published({}), like(**changes)) == flags


@pytest.mark.parametrize(
    ("changes", "protocol", "flags"),
    [
        ({"architecture": ""}, STANDARD, ("architecture",)),
        ({"architecture": "WRN-34-10-SiLU"}, STANDARD, ("architecture",)),
        ({"row": "PCA initialisation"}, STANDARD, ("variant",)),
        ({"threat": ""}, STANDARD, ("eps",)),
        ({"protocol": "unknown"}, STANDARD, ("evaluator",)),
        ({"protocol": "authors"}, RELEASE, ("evaluator",)),
        ({"protocol": "ebjdat-release-v1"}, STANDARD, ("attack", "noise")),
        ({"protocol": "ebjdat-release-v1", "threat": "Linf:4/255"}, STANDARD, ("eps", "attack", "noise")),
        ({"protocol": "ebjdat-release-v1"}, RELEASE, ("inferred",)),
        ({"protocol": "ebjdat-release-v1"}, RELEASE_SADAJEM, ("noise", "inferred")),
        ({"protocol": "ebjdat-release-sadajem-v1"}, STANDARD, ("attack",)),
        # Radius and attack are nothing to clean images, and test noise is.
        ({"metric": "clean", "threat": "", "protocol": "ebjdat-release-v1"}, STANDARD, ("noise",)),
        ({"metric": "clean", "threat": "", "protocol": "ebjdat-release-sadajem-v1"}, STANDARD, ()),
        ({"metric": "clean", "threat": "", "protocol": "authors"}, STANDARD, ("evaluator",)),
        ({"metric": "clean", "threat": ""}, CUSTOM, ("evaluator",)),
        # Generated images are those of another sampler wherever another evaluator made them.
        ({"metric": "fid", "threat": "", "protocol": "ebjdat-release-v1"}, STANDARD, ("generation",)),
        ({"metric": "fid", "threat": "", "protocol": "ebjdat-release-v1"}, RELEASE, ("inferred",)),
        ({"metric": "inception_score", "threat": "", "protocol": "authors"}, STANDARD, ("generation", "evaluator")),
        ({"metric": "energy_gap_mean", "threat": "", "protocol": "unknown"}, STANDARD, ("eps", "evaluator")),
    ],
)
def test_what_sets_a_number_apart(
    like: Entries, changes: dict[str, Any], protocol: tuple[str, str, str], flags: tuple[str, ...]
) -> None:
    assert differences(published(changes), like(protocol=protocol)) == flags


def test_network_of_jem_has_the_name_that_its_papers_give_it(like: Entries) -> None:
    number = published({"architecture": "WRN-28-10"})
    assert differences(number, like("jem-wrn-28-10")) == ()
    assert differences(number, like("jem-wrn-28-2")) == ("architecture",)


def test_model_from_elsewhere_was_not_trained_by_the_recipe(like: Entries) -> None:
    same = like()
    external = same.model_copy(update={"subject": same.subject.model_copy(update={"kind": "external"})})
    assert differences(published({}), external) == ("settings",)


def test_row_of_an_ablation_is_no_variant_of_itself(like: Entries) -> None:
    number = published({"row": "beta 1"})
    assert differences(number, like(ablation={"name": "beta", "row": "beta 1"})) == ()
    assert differences(number, like(ablation={"name": "beta", "row": "beta 2"})) == ("variant",)


def test_flags_come_in_the_order_of_the_legend(like: Entries) -> None:
    everything = {"dataset": "x", "training": {"budget": "b"}, "overrides": ["a=1"], "n": 5, "threat": "Linf:0.1"}
    number = published({"row": "a variant", "protocol": "ebjdat-release-v1"})
    found = differences(number, like("wrn-10-1", **everything))
    assert found == ("data", "architecture", "budget", "settings", "variant", "part", "eps", "attack", "noise")
    assert set(found) <= set(FLAGS)


def test_rows_keep_the_order_of_the_file(write: Write) -> None:
    write({}, {"row": "later", "value": 1})
    assert [number.value for number in numbers()] == [53.4, 1.0]
    assert [number.row for number in beside("trades", "cifar10")["autoattack"]] == ["", "later"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"value": "high"}, "\"value\" is 'high'"),
        ({"value": "nan"}, '"value"'),
        ({"value": ""}, '"value"'),
        ({"recipe": ""}, '"recipe"'),
        ({"threat": "8/255"}, '"8/255" is not a threat model; write "Linf:8/255"'),
        ({"threat": "Linf:1/0"}, '"1/0" in "Linf:1/0" is not an eps; write a fraction like 8/255'),
        ({"protocol": "mine"}, "\"protocol\" is 'mine'"),
        ({}, "autoattack of trades a second time (A paper, Table 1)"),
    ],
)
def test_malformed_row_is_refused_by_its_line(write: Write, row: dict[str, Any], complaint: str) -> None:
    path = write({}, row)
    with pytest.raises(InputError) as refusal:
        numbers()
    assert f"{path}, line 3: " in str(refusal.value)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: the columns must be source, table, row,"),
        ("source,table\n", "line 1: the columns must be source, table, row,"),
        (",".join([*NUMBER, "source"]) + "\n", "line 1: the columns must be source, table, row,"),
        (",".join([*NUMBER, "sauce"]) + "\n", 'line 1: unknown column "sauce". Did you mean "source"?'),
        (",".join(NUMBER) + "\na,b\n", "line 2: 2 cells under 11 columns."),
        (",".join(NUMBER) + '\n"a\n', "cannot be read"),
    ],
)
def test_malformed_file_is_refused(write: Write, text: str, complaint: str) -> None:
    write(text=text)
    with pytest.raises(InputError) as refusal:
        numbers()
    assert complaint in str(refusal.value)


def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path)
    with pytest.raises(InputError, match=r"reported\.csv cannot be read"):
        numbers()


def test_reading_the_numbers_loads_nothing_heavy() -> None:
    script = f"import sys; from {reported.__name__} import numbers; numbers(); print(*sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert {"torch", "pandas", "numpy"} & set(finished.stdout.split()) == set()
