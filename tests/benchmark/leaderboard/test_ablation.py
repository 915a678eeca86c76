"""Ablations: files, their tables as a pure function of file and entries, and two tiny rows from end to end."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.leaderboard import ablation
from benchmark.leaderboard.tables import rebuild
from benchmark.results.entry import Entry, read_entry
from benchmark.results.layout import picture_path, write_entry
from benchmark.specs import recipes
from methods.errors import InputError

Entries = Callable[..., Entry]
QUOTED = [
    "TRADES,Table 1,beta 1,trades,cifar10,WRN-34-10,clean,88.64,,authors,",
    "TRADES,Table 1,beta 6,trades,cifar10,WRN-34-10,clean,84.92,,authors,",
    "TRADES,Table 1,beta 1,trades,cifar10,WRN-34-10,collapsed_at,20,,authors,",
    "TRADES,Table 1,beta 9,mart,cifar10,WRN-34-10,clean,1.0,,authors,",
    "TRADES,Table 2,beta 9,trades,cifar10,WRN-34-10,clean,2.0,,authors,",
]
PNG = b"\x89PNG\r\n\x1a\n"
FILE = {
    "title": "TRADES: the weight of the robust term",
    "source": "TRADES, Table 1",
    "reported": "TRADES, Table 1",
    "note": "Another network.",
    "recipe": "trades",
    "metrics": ["clean", "pgd20"],
    "rows": [
        {"name": "beta 1", "set": {"options": {"beta": 1.0}}},
        {"name": "beta 6", "set": {"options": {"beta": 6.0}}},
        {"name": "beta 9", "set": {"options": {"beta": 9.0}}},
    ],
}


@pytest.fixture
def define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the ablation "beta", changed as asked, among the project's configuration."""
    shutil.copytree(recipes.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path / "configs")
    with open(tmp_path / "configs" / "reported.csv", "a") as handle:
        handle.writelines(f"{line}\n" for line in QUOTED)

    def write(content: str | None = None, **changes: Any) -> Path:
        path = tmp_path / "configs" / "ablations" / "beta.yaml"
        path.write_text(yaml.safe_dump(FILE | changes) if content is None else content)
        return path

    write()
    return write


@pytest.fixture
def cell(entry: Entries) -> Entries:
    """Make an entry of a row of that ablation."""

    def make(beta: int, first: float | None = None, last: float | None = None, **fields: Any) -> Entry:
        training: dict[str, Any] = {"interventions": [], "restarts": 0, "collapse": None, "budget": "tiny"}
        for name, gap in (("first_epoch", first), ("last_epoch", last)):
            training[name] = {} if gap is None else {"energy_gap_logged": gap}
        content = {
            "overrides": [f"options.beta={float(beta)}"],
            "ablation": {"name": "beta", "row": f"beta {beta}"},
            "config_digest": str(beta) * 64,
            "training": training,
        }
        return entry(**(content | fields))

    return make


def built(root: Path, *entries: Entry, file: str = "table.csv") -> list[dict[str, str]]:
    """Write entries, rebuild, and return a table of the ablation."""
    for entry in entries:
        write_entry(root, entry)
    rebuild(root)
    with open(folder(root) / file, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def folder(root: Path) -> Path:
    return root / "digits" / "linf-0.15" / "ablations" / "beta"


@pytest.mark.parametrize("name", recipes.ablations())
def test_every_ablation_is_of_one_recipe_and_its_rows_differ(name: str) -> None:
    found = ablation.load(name)
    assert found.recipe in recipes.recipes()
    assert set(found.metrics) >= {"clean", "pgd20", "autoattack", "energy"}
    settings = [recipes.flat(row.set) for row in found.rows]
    assert all(settings)
    assert all(settings.count(each) == 1 for each in settings)


def test_rows_stand_in_the_order_of_the_file_and_those_not_run_say_so(
    define: Callable[..., Path], cell: Entries, tmp_path: Path
) -> None:
    rows = built(
        tmp_path,
        cell(9, 1.0, 2.0, values={"clean": 80.0, "pgd20": 60.0}),
        cell(1, 0.5, -1.0, seed=0, values={"clean": 90.0, "pgd20": 40.0}),
        cell(1, 0.5, -2.0, seed=1, values={"clean": 92.0, "pgd20": 40.0}),
    )
    assert [row["row"] for row in rows] == ["beta 1", "beta 6", "beta 9"]
    assert [row["seeds"] for row in rows] == ["2", "not run", "1"]
    assert rows[0] == {
        **{"row": "beta 1", "dataset": "digits", "threat": "Linf:0.15", "seeds": "2", "clean": "91.00 ± 1.41"},
        **{"pgd20": "40.00 ± 0.00", "autoattack": "-", "energy_gap_mean": "-"},
        **{"logged_gap_first": "0.500 ± 0.000", "logged_gap_last": "-1.500 ± 0.707"},
        **{"restarts": "0", "collapsed_at": "-", "reported_clean": "88.64", "reported_collapsed_at": "20"},
        **{"reported_source": "TRADES, Table 1 (cifar10)", "protocol": "digits-linf-v1", "n": "100", "partial": "-"},
        **{"architecture": "wrn-10-2", "config_digest": "11111111", "overrides": "-", "budget": "tiny"},
        **{"selection": "best", "flags": "-"},
    }
    assert (rows[1]["clean"], rows[1]["reported_clean"], rows[1]["reported_collapsed_at"]) == ("-", "84.92", "-")
    assert (rows[2]["logged_gap_last"], rows[2]["reported_clean"], rows[2]["reported_source"]) == ("2.000", "-", "-")


def test_restarts_and_collapses_are_in_the_table(define: Callable[..., Path], cell: Entries, tmp_path: Path) -> None:
    record = {
        "interventions": [{"step": 9, "epoch": 3.24, "cause": "saturated", "to": 0}],
        "restarts": 1,
        "collapse": {"step": 20, "epoch": 7.9, "cause": "nonfinite"},
    }
    row = built(tmp_path, cell(1, training=record))[0]
    assert (row["restarts"], row["collapsed_at"]) == ("1", "s0: 3.2, 7.9")
    assert (row["logged_gap_first"], row["logged_gap_last"]) == ("-", "-")


def test_document_says_what_the_numbers_are(define: Callable[..., Path], cell: Entries, tmp_path: Path) -> None:
    built(tmp_path, cell(1, 0.5, 1.5))
    text = (folder(tmp_path) / "table.md").read_text()
    assert text.startswith("# TRADES: the weight of the robust term\n\ndigits at Linf:0.15, recipe `trades`.")
    assert "Source: TRADES, Table 1. Another network." in text
    assert "![TRADES: the weight of the robust term](figure.png)" in text
    assert "| beta 6" in text
    assert "- `logged_gap_last`: " in text
    assert (folder(tmp_path) / "figure.png").read_bytes().startswith(PNG)


def test_other_settings_parts_and_protocols_do_not_mix(
    define: Callable[..., Path], cell: Entries, tmp_path: Path
) -> None:
    other = {"overrides": ["options.beta=1.0", "train.epochs=1"], "config_digest": "a" * 64}
    rows = built(
        tmp_path,
        cell(1, seed=0, values={"clean": 90.0}),
        cell(1, seed=1, values={"clean": 70.0}, **other),
        cell(1, seed=2, n=20, values={"clean": 50.0}),
        cell(1, seed=3, values={"clean": 30.0}, protocol=("mine", "b" * 12, "custom")),
    )
    found = {(row["clean"], row["overrides"], row["partial"]) for row in rows if row["row"] == "beta 1"}
    assert found == {("90.00", "-", "-"), ("70.00", "train.epochs=1", "-"), ("50.00", "-", "20 of 100")}
    (first, *_) = built(tmp_path, file="table-mine-bbbbbbbb.csv")
    assert (first["clean"], first["protocol"]) == ("30.00", "mine")


def test_entry_of_a_row_that_changed_is_listed_and_not_counted(
    define: Callable[..., Path], cell: Entries, tmp_path: Path
) -> None:
    path = write_entry(tmp_path, cell(9))
    write_entry(tmp_path, cell(1))
    define(rows=[*FILE["rows"][:2], {"name": "beta 9", "set": {"options": {"beta": 8.0}}}])
    assert [row["seeds"] for row in built(tmp_path)] == ["1", "not run", "not run"]
    text = (folder(tmp_path) / "table.md").read_text()
    assert f"## Entries that no row describes any more\n\n- `{path.name}`\n" in text


def test_same_entries_give_the_same_bytes_and_the_figure_is_drawn_once(
    define: Callable[..., Path], cell: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path, cell(1, 0.5, 1.5))
    before = {path: path.read_bytes() for path in folder(tmp_path).glob("*.*")}
    (folder(tmp_path) / "figure.png").unlink()
    rebuild(tmp_path)
    assert {path: path.read_bytes() for path in folder(tmp_path).glob("*.*")} == before
    drawn: list[Path] = []
    monkeypatch.setattr(ablation, "dot_plot", lambda path, *_: drawn.append(path))
    rebuild(tmp_path)
    assert drawn == []
    built(tmp_path, cell(6))
    assert drawn == [folder(tmp_path) / "figure.png"]


def test_what_lost_its_entries_is_deleted(define: Callable[..., Path], cell: Entries, tmp_path: Path) -> None:
    mine = cell(1, protocol=("mine", "b" * 12, "custom"))
    built(tmp_path, cell(1), mine)
    paths = sorted((folder(tmp_path) / "entries").iterdir())
    picture = picture_path(paths[0])
    picture.parent.mkdir()
    picture.write_bytes(PNG)
    paths[1].unlink()
    rebuild(tmp_path)
    names = {path.name for path in folder(tmp_path).iterdir()}
    assert names == {"entries", "samples", "table.csv", "table.md", "table.tex", "figure.png"}
    assert not picture.exists()
    paths[0].unlink()
    assert rebuild(tmp_path) == []
    assert {path.name for path in folder(tmp_path).iterdir()} == {"entries", "samples"}


def test_entry_of_another_ablation_is_refused(define: Callable[..., Path], cell: Entries, tmp_path: Path) -> None:
    path = write_entry(tmp_path, cell(1))
    path.write_text(cell(1, ablation={"name": "weights", "row": "beta 1"}).model_dump_json())
    with pytest.raises(InputError, match=r"belongs in digits/linf-0\.15/ablations/weights"):
        rebuild(tmp_path)


TINY = ("--device", "cpu", "--set", "backbone.widen=1", "--set", "train.epochs=1", "--set", "train.batch_size=256")
FEW = ("--limit", "20")


def test_two_rows_from_end_to_end(define: Callable[..., Path], command: Any, tmp_path: Path) -> None:
    define(rows=FILE["rows"][:2])
    finished = command("ablate", "beta", *TINY, *FEW)
    assert finished.status == 0, finished.err
    where = folder(tmp_path / "leaderboards")
    assert f"tables: {where.relative_to(tmp_path)}" in finished.out
    assert "beta 6" in finished.out
    found = [read_entry(path) for path in sorted((where / "entries").iterdir())]
    assert [(entry.ablation.row, entry.seed) for entry in found if entry.ablation] == [*[("beta 1", 0), ("beta 6", 0)]]
    for entry in found:
        assert (entry.recipe, entry.partial, set(entry.measurements)) == ("trades", True, {"clean", "pgd20"})
        assert f"options.beta={entry.training['settings']['options']['beta']}" in entry.overrides
        assert entry.training["last_epoch"]["loss"] > 0
    rows = built(tmp_path / "leaderboards")
    assert [(row["row"], row["seeds"], row["partial"]) for row in rows] == [
        *[("beta 1", "1", "20 of 300"), ("beta 6", "1", "20 of 300")]
    ]
    assert rows[0]["overrides"] == "backbone.widen=1; train.batch_size=256; train.epochs=1"
    assert (where / "figure.png").read_bytes().startswith(PNG)

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert command("leaderboard").status == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # A cell is an ordinary run, and is trained once for both.
    same = command("run", "--methods", "trades", *TINY, *FEW, "--metrics", "clean", "--set", "options.beta=6.0")
    assert same.status == 0
    assert len(list((tmp_path / "runs" / "trades" / "digits").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("weight",),
            'There is no ablation "weight" (there are beta, inner_objective, weights). Did you mean "weights"?',
        ),
        (("beta", "--set", "options.beta=2"), 'The ablation "beta" varies "options.beta" itself'),
        (("beta", "--set", "options.alpha=2"), 'Unknown key "options.alpha"'),
        (("beta", "--metrics", "pgd2"), 'Did you mean "pgd20"?'),
        (("beta", "--dataset", "digit"), 'Did you mean "digits"?'),
        (("beta", "--seeds", "x"), "--seeds takes whole numbers"),
        (("beta", "--limit", "0"), "The limit must be at least 1, not 0."),
        ((), "Missing argument 'name'"),
    ],
)
def test_ablate_refuses(
    define: Callable[..., Path], command: Any, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    finished = command("ablate", *arguments)
    assert (finished.status, finished.out) == (2, "")
    (line,) = finished.err.splitlines()
    assert complaint in line
    assert {path.name for path in tmp_path.iterdir()} == {"configs"}


ROW = {"name": "one", "set": {}}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("title: [", "beta.yaml is not valid YAML"),
        ("- 1", "beta.yaml must hold a mapping of settings, not list."),
        (FILE | {"recipes": "trades"}, 'unknown key "recipes". Did you mean "recipe"?'),
        ({key: value for key, value in FILE.items() if key != "rows"}, 'the key "rows" is missing.'),
        (FILE | {"rows": []}, '"rows" is []'),
        (FILE | {"reported": "", "rows": [ROW, ROW]}, 'has two rows called "one".'),
        (FILE | {"rows": [{"name": "one"}]}, 'the key "rows.0.set" is missing.'),
        (FILE | {"rows": [ROW | {"reported": {"clean": 5.0}}]}, 'unknown key "rows.0.reported".'),
        (FILE | {"rows": [ROW]}, 'no row of "TRADES, Table 1" is quoted for it.'),
        (FILE | {"reported": "TRADES, Tabel 1"}, 'Did you mean "TRADES, Table 1"?'),
        (FILE | {"reported": "", "rows": [ROW | {"set": {"seed": 1}}]}, '"seed" is no setting, --seeds gives it.'),
        (
            FILE | {"reported": "", "rows": [ROW | {"set": {"options": {"bta": 1}}}]},
            'Unknown key "options.bta". Did you mean "beta"?',
        ),
        (FILE | {"reported": "", "recipe": "tradse"}, 'There is no recipe "tradse". Did you mean "trades"?'),
        (FILE | {"metrics": ["clan"]}, 'Did you mean "clean"?'),
    ],
)
def test_malformed_file_is_refused(
    define: Callable[..., Path], command: Any, tmp_path: Path, content: str | dict[str, Any], complaint: str
) -> None:
    define(content if isinstance(content, str) else yaml.safe_dump(content))
    finished = command("ablate", "beta")
    assert (finished.status, finished.out) == (2, "")
    (line,) = finished.err.splitlines()
    assert complaint in line
    assert {path.name for path in tmp_path.iterdir()} == {"configs"}
