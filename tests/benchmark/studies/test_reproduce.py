"""The paper beside what was reproduced: its files, tables from made entries, and a tiny scale from end to end."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.results.entry import Entry, read_entry
from benchmark.results.layout import ATTACKS, REPRODUCTION, read_entries, write_entry
from benchmark.results.reported import numbers
from benchmark.runs import pipeline
from benchmark.runs.jobs import Measured
from benchmark.specs import recipes
from benchmark.studies.reproduce import Reproduction
from benchmark.studies.targets import ALL, place_of, scale, targets
from methods.errors import InputError

TINY = {
    "title": "tiny",
    "datasets": {"cifar10": "digits"},
    "protocols": {"digits": "digits-linf-v3"},
    "seeds": [0],
    "limit": 10,
    "metrics": ["clean", "pgd20"],
    "differences": True,
    "comment": ["Twenty images say nothing."],
    "unmeasured": {"autoattack": "it takes too long"},
}
TARGET = {
    "title": "Two methods",
    "source": "EB-JDAT v1 (arXiv 2505.19459), Table 2",
    "quotes": {"source": "EB-JDAT v1 (arXiv 2505.19459)", "table": "Table 2"},
    "shows": "Accuracy in percent.",
    "columns": [{"name": name, "reported": name} for name in ("clean", "pgd20", "autoattack")],
    "rows": [
        {"label": "Standard", "recipe": "standard", "datasets": ["cifar10", "cifar100"]},
        {"label": "TRADES", "recipe": "trades"},
        {"label": "VART", "recipe": "vart", "missing": "neither code nor text"},
    ],
    "notes": ["What the paper did is not known."],
}
OVERRIDES = ("backbone.widen=1", "train.epochs=1", "train.warmup_steps=0", "train.batch_size=256")
SHORT = tuple(part for override in OVERRIDES for part in ("--set", override))
TRAINING = "methods.training.trainer._Training"
MEASURING = ("benchmark.metrics.clean.measure", "benchmark.metrics.pgd.measure")


@pytest.fixture
def define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write the scale "tiny" and the target "pair", changed as asked, among the project's configuration."""
    shutil.copytree(recipes.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path / "configs")

    def write(**changes: Any) -> None:
        (tmp_path / "configs" / "scales" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        (tmp_path / "configs" / "paper" / "pair.yaml").write_text(yaml.safe_dump(TARGET | changes))

    write()
    return write


def made(root: Path, entry: Callable[..., Entry], name: str = "pair", seeds: tuple[int, ...] = (0,)) -> Reproduction:
    """Write an entry for every run that a target needs, and return its reproduction at the tiny scale."""
    found = Reproduction(targets(name), scale("tiny"), seeds, leaderboards=root)
    for need in found._needs():
        plan, protocol = found.plan(need), found.protocol(need)
        for run in plan.experiments:
            fields = {"recipe": run.recipe, "seed": run.seed, "config_digest": run.digest({"test": "e" * 64})}
            values = {"clean": 90.0 + 2 * run.seed, "pgd20": 40.0}
            header = protocol.id, protocol.hash, protocol.role
            write_entry(root, entry(n=10, protocol=header, values=values, training={"budget": "tiny"}, **fields))
    return replace(found, _shelves={})


def table(folder: Path, name: str = "pair") -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of a target's CSV by label and the paper's data set."""
    with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
        return {(row["row"], row["paper_dataset"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", targets(ALL))
def test_every_reported_number_of_a_table_stands_in_one_row(name: str) -> None:
    target = targets(name)[name]
    if target.quotes is None:
        assert target.kind != "table"
        return
    wanted = [
        place_of(number)
        for number in numbers()
        if (number.source, number.table) == (target.quotes.source, target.quotes.table)
    ]
    metrics = dict.fromkeys(column.reported for column in target.columns if column.reported)
    first = [next(column for column in target.columns if column.reported == metric) for metric in metrics]
    cells = [
        target.reported(row, dataset, column) for row in target.rows for dataset in row.datasets for column in first
    ]
    assert Counter(place_of(number) for number in cells if number) == Counter(wanted)
    assert wanted


def test_paper_is_complete() -> None:
    tables = [f"table{number}" for number in range(1, 6)]
    rest = [f"{kind}{number}" for kind in ("figure", "supplement") for number in range(1, 4)]
    assert set(targets(ALL)) == {*tables, *rest}


@pytest.mark.parametrize("name", recipes.scales())
def test_every_entry_is_needed_once(name: str, tmp_path: Path) -> None:
    """Two needs with one file would overwrite each other's measurements; and all that is asked for is on offer."""
    chosen = scale(name)
    found = Reproduction(targets(ALL), chosen, chosen.seeds, leaderboards=tmp_path)
    needs = found._needs()
    places = [
        (
            need.recipe,
            need.dataset,
            need.cell,
            found.protocol(need).hash,
            found._root(need),
            found.protocol(need).threat,
        )
        for need in needs
    ]
    assert len(set(places)) == len(needs) > 20
    for need, metrics in needs.items():
        assert metrics
        assert metrics <= set(found.protocol(need).metrics)
    with pytest.raises(InputError, match=f"There is no entry for any table at scale {name} below"):
        found.write()


@pytest.mark.parametrize("name", ["supplement1", "supplement2", "supplement3"])
def test_what_is_attacked_is_trained_first(name: str, tmp_path: Path) -> None:
    found = Reproduction(targets(name), scale("digits"), (0, 1), runs=tmp_path / "a", leaderboards=tmp_path / "b")
    runs = found._runs(found._needs())
    training = [run.folder for run in runs if run.evaluation is None]
    attacking = [run for run in runs if run.evaluation is not None]
    assert len(set(training)) == len(training)
    assert set(training) == {folder for run in attacking for folder in {run.folder, *run.after}}


def test_table_has_both_sides(define: Callable[..., None], entry: Callable[..., Entry], tmp_path: Path) -> None:
    files = made(tmp_path / "boards", entry).write()
    folder = tmp_path / "boards" / REPRODUCTION / "tiny"
    assert {path.name for path in files} == {"pair.md", "pair.csv", "pair.tex", "pair.png"}
    assert (folder / "pair.png").read_bytes().startswith(b"\x89PNG")
    rows = table(folder)
    standard = rows["Standard", "cifar10"]
    assert (standard["clean_reported"], standard["clean"], standard["status"]) == ("96.1", "90.0", "reproduced")
    assert standard["pgd20_flags"].split()[:4] == ["data", "architecture", "budget", "part"]
    assert (standard["autoattack_reported"], standard["autoattack"]) == ("0.0", "")
    assert rows["Standard", "cifar100"]["status"] == "not at this scale"
    assert (rows["VART", "cifar10"]["status"], rows["VART", "cifar10"]["clean"]) == ("reported only", "")
    document = (folder / "pair.md").read_text()
    assert "| -6.10 (data, architecture, budget, part)" in document
    assert "VART: reported only: neither code nor text." in document
    assert "Standard (CIFAR-100): reported only at this scale: no data set stands for CIFAR-100." in document
    assert "AutoAttack: not measured at this scale: it takes too long." in document
    assert "What the paper did is not known." in document
    assert "Twenty images say nothing." in document
    (link,) = {line for line in document.splitlines() if line.startswith("- [trades-")}
    assert (folder / link.partition("(")[2].rstrip(")")).is_file()
    assert "96.10" in (folder / "pair.tex").read_text()


def test_seeds_are_a_mean_with_a_deviation(
    define: Callable[..., None], entry: Callable[..., Entry], tmp_path: Path
) -> None:
    made(tmp_path / "boards", entry, seeds=(0, 1)).write()
    folder = tmp_path / "boards" / REPRODUCTION / "tiny"
    row = table(folder)["TRADES", "cifar10"]
    assert (row["clean"], row["clean_std"], row["seeds"]) == ("91.0", "1.414214", "0 1")
    assert "| 91.00 ± 1.41 " in (folder / "pair.md").read_text()


def test_nothing_is_subtracted_at_a_scale_that_forbids_it(
    define: Callable[..., None], entry: Callable[..., Entry], tmp_path: Path
) -> None:
    found = made(tmp_path / "boards", entry)
    forbidding = found.scale.model_copy(update={"differences": False})
    Reproduction(found.targets, forbidding, (0,), leaderboards=found.leaderboards).write()
    document = (tmp_path / "boards" / REPRODUCTION / "tiny" / "pair.md").read_text()
    assert "difference" not in document
    assert "90.00" in document


@pytest.mark.parametrize(
    "change",
    [
        {"config_digest": "f" * 64},
        {"seed": 1},
        {"protocol": {"id": "digits-linf-v3", "hash": "b" * 12, "role": "standard"}},
        {"data": {"digests": {"test": "e" * 64}, "n": 20, "of": 100}},
        {"ablation": {"name": "weights", "row": "w1=0, w2=0.1, w3=0.9"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_foreign_entry_belongs_to_no_row(
    define: Callable[..., None], entry: Callable[..., Entry], tmp_path: Path, change: dict[str, Any]
) -> None:
    found = made(tmp_path / "made", entry)
    (own,) = [
        one for one in read_entries(tmp_path / "made" / "digits" / "linf-0.15").values() if one.recipe == "trades"
    ]
    write_entry(tmp_path / "boards", Entry.model_validate(own.model_dump() | change))
    with pytest.raises(InputError, match="There is no entry for pair at scale tiny"):
        Reproduction(found.targets, found.scale, (0,), leaderboards=tmp_path / "boards").write()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tabel2",), 'Did you mean "table2"?'),
        (("table2", "--scale", "digit"), 'Did you mean "digits"?'),
        (("table2", "--tables-only"), "There is no entry for table2 at scale digits"),
        (("table5", "--set", "options.w_energy=0.3"), 'varies "options.w_energy" itself'),
        (("table2", "--seeds", "one"), "--seeds takes whole numbers"),
        (("table2", "--workers", "0"), "--workers must be at least 1"),
    ],
)
def test_bad_usage_is_one_sentence(command: Any, arguments: tuple[str, ...], sentence: str) -> None:
    ended = command("reproduce", *arguments)
    assert ended.status == 2
    assert sentence in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize("presets", [True, False])
def test_a_scale_may_compare_recipes_under_the_preset_of_the_target(
    presets: bool, define: Callable[..., None], tmp_path: Path, entry: Callable[..., Entry]
) -> None:
    define(preset="common")
    reproduction = made(tmp_path, entry)
    reproduction = replace(reproduction, scale=reproduction.scale.model_copy(update={"presets": presets}), _plans={})
    needed = {need.recipe for need in reproduction._needs()}
    assert needed == ({"standard_common", "trades_common"} if presets else {"standard", "trades"})
    if not presets:
        reproduction.write()
        rows = table(reproduction.folder)
        assert rows["TRADES", "cifar10"]["recipe"] == "trades"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": [{"label": "VART", "recipe": "vart"}]}, 'there is no recipe "vart", and no reason is given'),
        ({"preset": "comon"}, 'there is no preset "comon". Did you mean "common"'),
        ({"columns": [{"name": "cleen"}]}, 'no metric fills the column "cleen"'),
        ({"columns": [{"name": "gap", "metric": "energy"}]}, "names a metric and no value of it"),
        ({"rows": [{"label": "S", "recipe": "standard", "only": ["fid"]}]}, 'there is no column "fid"'),
        ({"titel": "Two"}, 'unknown key "titel"'),
    ],
)
def test_malformed_file_is_refused(define: Callable[..., None], change: dict[str, Any], sentence: str) -> None:
    define(**change)
    with pytest.raises(InputError, match=sentence):
        targets("pair")


def test_paper_is_listed(command: Any) -> None:
    listed = command("list", "paper").out
    assert "table2" in listed
    assert "Weights of EB-JDAT's terms" in listed


def test_interrupted_and_finished_work_is_not_repeated(
    define: Callable[..., None], command: Any, poisoned: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("reproduce", "pair", "--scale", "tiny", "--device", "cpu", *SHORT)
    whole = pipeline.record

    def interrupted(run: pipeline.Run, measured: Measured) -> None:
        whole(run, measured)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "record", interrupted)
        ended = command(*arguments)
        assert ended.status == 130
        assert ended.err.endswith("Interrupted; the same command continues.\n")
    (first,) = Path("leaderboards/digits/linf-0.15/entries").glob("*.json")
    kept = first.read_bytes()

    ended = command(*arguments)
    assert ended.status == 0, ended.err
    assert "leaderboards/reproduction/tiny/pair.md" in ended.out
    rows = table(Path("leaderboards") / REPRODUCTION / "tiny")
    assert {key: row["status"] for key, row in rows.items() if key[1] == "cifar10"} == {
        ("Standard", "cifar10"): "reproduced",
        ("TRADES", "cifar10"): "reproduced",
        ("VART", "cifar10"): "reported only",
    }
    assert first.read_bytes() == kept

    before = {path: path.read_bytes() for path in Path("leaderboards").rglob("*") if path.is_file()}
    poisoned(TRAINING, *MEASURING)
    assert command(*arguments).status == 0
    assert command(*arguments, "--tables-only").status == 0
    assert {path: path.read_bytes() for path in Path("leaderboards").rglob("*") if path.is_file()} == before


def test_entry_keeps_what_another_command_measured(define: Callable[..., None], command: Any) -> None:
    define(rows=[TARGET["rows"][1]])
    own = ("--methods", "trades", "--limit", "10", "--metrics", "clean,energy,pgd20", "--device", "cpu", *SHORT)
    assert command("run", *own).status == 0
    assert command("reproduce", "pair", "--scale", "tiny", "--device", "cpu", *SHORT).status == 0
    (path,) = Path("leaderboards/digits/linf-0.15/entries").glob("*.json")
    assert set(read_entry(path).measurements) == {"clean", "pgd20", "energy"}


def test_attacks_stand_apart_and_transfer_has_its_surrogate(define: Callable[..., None], command: Any) -> None:
    point = {"radius": 2, "iterations": 3}
    metric = {"metric": "autoattack_custom", "value": "accuracy"}
    define(
        protocol="apgd-ce-v1",
        apart=True,
        columns=[{"name": "whole", **metric}, {"name": "half", "reading": 0.5, **metric}],
        rows=[{"label": "TRADES", "recipe": "trades", **point}],
    )
    ended = command("reproduce", "pair", "--scale", "tiny", "--device", "cpu", *SHORT)
    assert ended.status == 0, ended.err
    root = Path("leaderboards") / REPRODUCTION / "tiny" / ATTACKS
    found = {path.parent.parent.name: read_entry(path) for path in root.glob("*/*/entries/*.json")}
    assert set(found) == {"linf-0.15", "linf-0.3"}
    assert found["linf-0.3"].measurements["autoattack_custom"].config["iterations"] == 3
    assert not list(Path("leaderboards").glob("*/*/entries/*.json"))

    metric = {"metric": "transfer", "value": "mi_fgsm_accuracy"}
    define(protocol="attacks-v1", columns=[{"name": "mi_fgsm", **metric}], rows=[TARGET["rows"][1]])
    assert command("reproduce", "pair", "--scale", "tiny", "--device", "cpu", *SHORT).status == 0
    (path,) = Path("leaderboards/digits/linf-0.15/entries").glob("*.json")
    values = read_entry(path).measurements["transfer"].values
    assert values["surrogate"] == "pgd_at"
