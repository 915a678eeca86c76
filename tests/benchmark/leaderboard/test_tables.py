"""Leaderboards: tables as a pure function of the entries."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.leaderboard.tables import COLUMNS, SHOWN, read_tables, rebuild
from benchmark.results.entry import Entry, pack
from benchmark.results.layout import entry_path, picture_path, write_entry
from benchmark.results.significance import interval
from methods.errors import InputError

Entries = Callable[..., Entry]


def table(path: Path) -> list[dict[str, str]]:
    """Read a CSV table."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def built(root: Path, *entries: Entry) -> list[dict[str, str]]:
    """Write entries, rebuild, and return the headline table."""
    for entry in entries:
        write_entry(root, entry)
    rebuild(root)
    return table(root / "digits" / "linf-0.15" / "leaderboard.csv")


def test_columns_are_the_promised_ones_in_order(entry: Entries, tmp_path: Path) -> None:
    (row,) = built(tmp_path, entry())
    assert " ".join(row) == " ".join(COLUMNS)
    assert " ".join(COLUMNS) == (
        "rank method dataset threat seeds clean pgd20 autoattack fid inception_score generation_agreement "
        "generation_agreement_start energy_gap_mean energy_gap_std masking reported_clean reported_pgd20 "
        "reported_autoattack difference_clean difference_pgd20 difference_autoattack "
        "protocol architecture n partial restarts collapsed_at config_digest overrides budget selection flags "
        "rank_interval tie clean_interval pgd20_interval autoattack_interval kid fid_ref energy_overlap eot_pgd "
        "transfer"
    )


def test_one_entry_gives_one_row(entry: Entries, tmp_path: Path) -> None:
    (row,) = built(tmp_path, entry(overrides=["train.epochs=5", "train.lr=0.1"]))
    assert row == {
        **{"rank": "1", "method": "trades", "dataset": "digits", "threat": "Linf:0.15", "seeds": "1"},
        **{"clean": "90.00", "pgd20": "-", "autoattack": "50.00", "fid": "-", "inception_score": "-"},
        **{"energy_gap_mean": "-", "energy_gap_std": "-", "masking": "-", "reported_clean": "-"},
        **{"reported_pgd20": "-", "reported_autoattack": "-"},
        **{"difference_clean": "-", "difference_pgd20": "-", "difference_autoattack": "-"},
        **{"protocol": "digits-linf-v1", "architecture": "wrn-10-2", "n": "100"},
        **{"partial": "-", "config_digest": "cccccccc", "overrides": "train.epochs=5; train.lr=0.1", "budget": "-"},
        **{"generation_agreement": "-", "generation_agreement_start": "-", "restarts": "-", "collapsed_at": "-"},
        **{"selection": "best", "flags": "-", "rank_interval": "-", "tie": "-", "kid": "-", "fid_ref": "-"},
        **{"clean_interval": "-", "pgd20_interval": "-", "autoattack_interval": "-"},
        **{"energy_overlap": "-", "eot_pgd": "-", "transfer": "-"},
    }


def test_seeds_are_averaged_with_the_sample_deviation(entry: Entries, tmp_path: Path) -> None:
    (row,) = built(
        tmp_path,
        *(entry(seed=seed, values={"clean": value, "autoattack": 50.0}) for seed, value in enumerate([89, 90, 94])),
    )
    # mean 91, deviations -2, -1, 3: sqrt(14 / 2)
    assert (row["seeds"], row["clean"], row["autoattack"]) == ("3", "91.00 ± 2.65", "50.00 ± 0.00")


@pytest.mark.parametrize(
    "other",
    [{"config_digest": "f" * 64}, {"which": "last"}, {"n": 50}, {"recipe": "pgd_at"}],
)
def test_what_is_no_seed_of_the_same_experiment_is_another_row(
    entry: Entries, tmp_path: Path, other: dict[str, Any]
) -> None:
    rows = built(tmp_path, entry(seed=0), entry(seed=1, **other))
    assert [row["seeds"] for row in rows] == ["1", "1"]


def test_failed_and_missing_metrics_are_said(entry: Entries, tmp_path: Path) -> None:
    (row,) = built(tmp_path, entry(values={"clean": 90.0, "autoattack": None}))
    assert (row["clean"], row["pgd20"], row["autoattack"]) == ("90.00", "-", "failed")
    (row,) = built(
        tmp_path,
        entry(seed=1, values={"clean": 90.0, "autoattack": 48.0}),
        entry(seed=2, values={"clean": 90.0}),
    )
    assert row["autoattack"] == "48.00 (1 of 3, 1 failed)"
    assert row["clean"] == "90.00 ± 0.00"


def test_rows_are_ranked_by_autoattack_and_partial_ones_come_last(entry: Entries, tmp_path: Path) -> None:
    rows = built(
        tmp_path,
        entry("weak", values={"clean": 99.0, "autoattack": 10.0}),
        entry("strong", values={"clean": 80.0, "autoattack": 60.0}),
        entry("tied_better", values={"clean": 90.0, "autoattack": 10.0, "pgd20": 12.0}),
        entry("broken", values={"clean": 99.5, "autoattack": None}),
        entry("half", n=50, values={"clean": 100.0, "autoattack": 99.0}),
        entry("half_weak", n=50, values={"clean": 100.0, "autoattack": 98.0}),
        entry("tenth", n=10, values={"clean": 100.0, "autoattack": 100.0}),
    )
    assert [(row["rank"], row["method"], row["partial"]) for row in rows] == [
        ("1", "strong", "-"),
        ("2", "tied_better", "-"),
        ("3", "weak", "-"),
        ("4", "broken", "-"),
        ("1", "half", "50 of 100"),
        ("2", "half_weak", "50 of 100"),
        ("1", "tenth", "10 of 100"),
    ]


def test_protocols_never_share_a_table(entry: Entries, tmp_path: Path) -> None:
    newest = ("digits-linf-v10", "b" * 12, "standard")
    rows = built(
        tmp_path,
        entry("old", protocol=("digits-linf-v9", "a" * 12, "standard")),
        entry("new", protocol=newest),
        entry("edited", protocol=("digits-linf-v10", "c" * 12, "standard")),
        entry("edited_too", protocol=newest),
        entry("theirs", protocol=("zz-authors-v1", "d" * 12, "authors")),
    )
    folder = tmp_path / "digits" / "linf-0.15"
    assert {row["method"] for row in rows} == {"new", "edited_too"}
    others = {path.name: [row["method"] for row in table(path)] for path in folder.glob("leaderboard-*.csv")}
    assert others == {
        "leaderboard-digits-linf-v9-aaaaaaaa.csv": ["old"],
        "leaderboard-digits-linf-v10-cccccccc.csv": ["edited"],
        "leaderboard-zz-authors-v1-dddddddd.csv": ["theirs"],
    }
    markdown = (folder / "leaderboard.md").read_text()
    assert [line for line in markdown.splitlines() if line.startswith("## ")] == [
        *["## digits-linf-v10", "## digits-linf-v10", "## digits-linf-v9", "## zz-authors-v1", "## Columns"]
    ]


def test_threats_and_data_sets_have_folders_of_their_own(entry: Entries, tmp_path: Path) -> None:
    for threat, dataset in (("Linf:0.15", "digits"), ("Linf:0.1", "digits"), ("L2:0.5", "imagefolder:/a/b")):
        write_entry(tmp_path, entry(threat=threat, dataset=dataset))
    assert [str(path.relative_to(tmp_path)) for path in rebuild(tmp_path)] == [
        f"{folder}/leaderboard.{kind}"
        for folder in ("digits/linf-0.1", "digits/linf-0.15", "imagefolder-b/l2-0.5")
        for kind in ("csv", "md", "tex")
    ]


def test_without_a_standard_protocol_there_is_no_headline_table(entry: Entries, tmp_path: Path) -> None:
    write_entry(tmp_path, entry(protocol=("mine", "a" * 12, "custom")))
    assert [path.name for path in rebuild(tmp_path)] == [
        *["leaderboard-mine-aaaaaaaa.csv", "leaderboard-mine-aaaaaaaa.tex", "leaderboard.md"]
    ]


def test_markdown_says_protocol_images_and_columns(entry: Entries, tmp_path: Path) -> None:
    built(tmp_path, entry("a|b"))
    markdown = (tmp_path / "digits" / "linf-0.15" / "leaderboard.md").read_text()
    assert markdown.startswith("# digits at Linf:0.15\n")
    assert f"standard protocol, hash `{'a' * 12}`, n = 100 images" in markdown
    assert "clean minus PGD-20" in markdown
    assert "a\\|b" in markdown
    assert cells(markdown)[""] == [
        *["rank", "rank_interval", "tie", "method", "seeds", "clean", "pgd20", "autoattack"],
        *["1", "-", "-", "a\\|b", "1", "90.00", "-", "50.00"],
    ]


def cells(markdown: str) -> dict[str, list[str]]:
    """Return the cells of each table of a Markdown file, header first, by the heading above it."""
    found: dict[str, list[str]] = defaultdict(list)
    title = ""
    for line in markdown.splitlines():
        if line.startswith("#"):
            title = line.removeprefix("### ") if line.startswith("### ") else ""
        elif line.startswith("| "):
            found[title] += [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    return found


def test_markdown_has_what_matters_first_and_the_rest_by_subject(entry: Entries, tmp_path: Path) -> None:
    found = entry(overrides=["train.epochs=5"]).model_dump()
    clean = found["measurements"]["clean"]
    found["measurements"]["energy"] = clean | {"metric": "energy", "values": {"energy_gap_mean": -1.5}}
    found["measurements"]["autoattack"]["values"]["after_apgd_ce"] = 52.0
    (row,) = built(tmp_path, Entry.model_validate(found))
    assert list(row)[-1] == "cascade_apgd_ce"
    tables = cells((tmp_path / "digits" / "linf-0.15" / "leaderboard.md").read_text())
    assert {title: table[: len(table) // 2] for title, table in tables.items()} == {
        "": [
            *["rank", "rank_interval", "tie", "method", "seeds", "clean", "pgd20", "autoattack", "energy_gap_mean"],
        ],
        "Intervals and further attacks": ["rank", "method", "cascade_apgd_ce"],
        "Generation and energy": ["rank", "method", "energy_gap_mean"],
        "Settings and records": ["rank", "method", "architecture", "n", "config_digest", "overrides", "selection"],
    }
    shown = {column for table in tables.values() for column in table[: len(table) // 2]}
    filled = {column for column, cell in row.items() if cell != "-"}
    assert filled - shown == {"dataset", "threat", "protocol"}


def test_same_entries_give_the_same_bytes_in_any_order(entry: Entries, tmp_path: Path) -> None:
    entries = [entry("a"), entry("b"), entry("a", seed=1), entry("c", n=20)]
    contents = []
    for name, order in (("one", entries), ("two", entries[::-1])):
        built(tmp_path / name, *order)
        rebuild(tmp_path / name)
        files = sorted((tmp_path / name).rglob("leaderboard*"))
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_tables_without_entries_are_deleted(entry: Entries, tmp_path: Path) -> None:
    written = entry(protocol=("mine", "b" * 12, "custom"))
    built(tmp_path, entry(), written)
    folder = tmp_path / "digits" / "linf-0.15"
    (folder / "notes.md").write_text("kept")
    entry_path(tmp_path, written).unlink()
    rebuild(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        *["entries", "leaderboard.csv", "leaderboard.md", "leaderboard.tex", "notes.md"]
    ]
    entry_path(tmp_path, entry()).unlink()
    assert rebuild(tmp_path) == []
    assert sorted(path.name for path in folder.iterdir()) == ["entries", "notes.md"]


def test_tables_read_back_with_the_headline_first(entry: Entries, tmp_path: Path) -> None:
    rows = built(tmp_path, entry(), entry("other", protocol=("mine", "b" * 12, "custom")))
    tables = read_tables(tmp_path / "digits" / "linf-0.15")
    assert [title for title, _ in tables] == [
        "digits at Linf:0.15, protocol digits-linf-v1",
        "digits at Linf:0.15, protocol mine",
    ]
    assert tables[0][1] == rows
    assert set(SHOWN) <= set(COLUMNS)


def test_no_leaderboards_are_no_tables(tmp_path: Path) -> None:
    assert rebuild(tmp_path / "nowhere") == []


def quoting(root: Path, *entries: Entry) -> tuple[dict[str, str], str]:
    """Write entries on CIFAR-10 or its JPEG edition, rebuild, and return the first row and leaderboard.md."""
    for one in entries:
        write_entry(root, one)
    rebuild(root)
    folder = root / entries[0].dataset / "linf-8_255"
    return table(folder / "leaderboard.csv")[0], (folder / "leaderboard.md").read_text()


def test_difference_stands_with_what_sets_the_two_measurements_apart(entry: Entries, tmp_path: Path) -> None:
    fields = {"dataset": "cifar10-jpeg", "threat": "Linf:8/255", "training": {"budget": "tiny"}}
    values = {"clean": 80.0, "pgd20": 50.0, "autoattack": None}
    row, text = quoting(tmp_path, entry("ebjdat", values=values, **fields), entry("ebjdat", seed=1, **fields))
    assert [row[f"reported_{name}"] for name in ("clean", "pgd20", "autoattack")] == ["91.43", "65.69", "64.34"]
    assert row["difference_clean"] == "-6.43 (data, architecture, budget, noise)"
    assert row["difference_pgd20"] == "-15.69 (data, architecture, budget, eps, attack, noise)"
    assert row["difference_autoattack"] == "-14.34 (data, architecture, budget, eps, attack, noise)"
    assert "### Reported beside reproduced" in text
    assert "*noise*: one of the two evaluators adds noise to test images" in text
    assert "*part*" not in text
    assert (
        "- ebjdat, clean 91.43: EB-JDAT v1 (arXiv 2505.19459), Table 2 (cifar10; WRN-28-10; protocol "
        "ebjdat-release-v1). The released evaluator adds noise"
    ) in text


def test_difference_of_the_same_measurement_has_no_flag(entry: Entries, tmp_path: Path) -> None:
    same = entry(dataset="cifar10", threat="Linf:8/255", values={"clean": 86.0, "autoattack": 53.0})
    same = same.model_copy(update={"subject": same.subject.model_copy(update={"architecture": "wrn-34-10"})})
    row, text = quoting(tmp_path, same)
    assert [row[f"difference_{name}"] for name in ("clean", "pgd20", "autoattack")] == ["+0.28", "-", "-0.40"]
    assert "same as far as the records go.\n" in text


def test_numbers_of_other_data_sets_are_not_quoted(entry: Entries, tmp_path: Path) -> None:
    (row,) = built(tmp_path, entry())
    assert {row[f"{kind}_clean"] for kind in ("reported", "difference")} == {"-"}
    assert "Reported beside" not in (tmp_path / "digits" / "linf-0.15" / "leaderboard.md").read_text()


def test_flags_are_counted(entry: Entries, tmp_path: Path) -> None:
    plain = entry().model_dump()
    plain["measurements"]["autoattack"]["flags"] = ["masked?", "noise?"]
    plain["subject"]["flags"] = ["was training"]
    (row,) = built(tmp_path, Entry.model_validate(plain))
    assert row["flags"] == "subject: 1, autoattack: 2"


def test_energies_have_three_decimals(entry: Entries, tmp_path: Path) -> None:
    plain = entry().model_dump()
    plain["measurements"]["energy"] = plain["measurements"]["clean"] | {
        "metric": "energy",
        "values": {"energy_gap_mean": -1.23456, "energy_gap_std": None},
    }
    (row,) = built(tmp_path, Entry.model_validate(plain))
    assert (row["energy_gap_mean"], row["energy_gap_std"]) == ("-1.235", "-")


def test_restarts_and_collapses_are_in_the_table(entry: Entries, tmp_path: Path) -> None:
    calm = {"interventions": [], "restarts": 0, "collapse": None}
    rolled = calm | {"interventions": [{"step": 70, "epoch": 3.18, "cause": "saturated", "to": 22}], "restarts": 1}
    stopped = calm | {"collapse": {"step": 180, "epoch": 8.18, "cause": "nonfinite"}}
    (row,) = built(tmp_path, *(entry(seed=i, training=found) for i, found in enumerate((calm, rolled, stopped))))
    assert (row["restarts"], row["collapsed_at"]) == ("1 (1 of 3 seeds)", "s1: 3.2; s2: 8.2")
    legend = (tmp_path / "digits" / "linf-0.15" / "leaderboard.md").read_text()
    assert "- `restarts`: " in legend
    assert "- `collapsed_at`: " in legend


def test_pictures_without_their_entry_are_deleted(entry: Entries, tmp_path: Path) -> None:
    generating = [entry(seed=seed, values={"clean": 90.0, "generation": 50.0}) for seed in (0, 1)]
    paths = [
        write_entry(tmp_path, found)
        for found in (*generating, entry("pgd_at"), entry("ebjdat", values={"generation": None}))
    ]
    pictures = [picture_path(path) for path in paths]
    pictures[0].parent.mkdir()
    for picture in pictures:
        picture.write_bytes(b"picture")
    (pictures[0].parent / "notes.txt").write_text("kept")
    paths[1].unlink()
    rebuild(tmp_path)
    assert {path.name for path in pictures[0].parent.iterdir()} == {pictures[0].name, "notes.txt"}


def test_models_from_elsewhere_are_rows_of_their_own(entry: Entries, tmp_path: Path) -> None:
    external = []
    for digest in ("1" * 64, "2" * 64):
        plain = entry("model:make", which=None, seed=None, config_digest=None).model_dump()
        plain["subject"] |= {"kind": "external", "weights_digest": digest}
        external.append(Entry.model_validate(plain))
    rows = built(tmp_path, *external)
    assert [(row["seeds"], row["config_digest"], row["selection"]) for row in rows] == [("-", "-", "-")] * 2


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"recipe": 3}'])
def test_malformed_entry_is_named(entry: Entries, tmp_path: Path, content: str) -> None:
    path = write_entry(tmp_path, entry())
    path.with_name("bad.json").write_text(content)
    with pytest.raises(InputError, match=r"entries/bad\.json"):
        rebuild(tmp_path)


def test_entry_in_the_wrong_folder_or_without_threat_is_named(entry: Entries, tmp_path: Path) -> None:
    path = write_entry(tmp_path, entry())
    path.write_text(entry(threat="Linf:0.1").model_dump_json())
    with pytest.raises(InputError, match=r"belongs in digits/linf-0\.1"):
        rebuild(tmp_path)
    path.write_text(entry(threat="nothing").model_dump_json())
    with pytest.raises(InputError, match=path.name):
        rebuild(tmp_path)


def test_same_run_twice_is_refused(entry: Entries, tmp_path: Path) -> None:
    path = write_entry(tmp_path, entry())
    path.with_name("copy.json").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="same run twice"):
        rebuild(tmp_path)


def judged(entry: Entries, recipe: str, outcomes: dict[str, np.ndarray], **fields: Any) -> Entry:
    """Return an entry whose accuracies have these outcomes per image."""
    plain = entry(recipe, values={name: 100 * float(found.mean()) for name, found in outcomes.items()}, **fields)
    content = plain.model_dump()
    for name, found in outcomes.items():
        content["measurements"][name]["verdicts"] = {"accuracy": pack(found)}
    return Entry.model_validate(content)


def drawn(share: float, seed: int, n: int = 100) -> np.ndarray:
    """Return outcomes of which this share is right, on images drawn anew."""
    return np.random.default_rng(seed).permutation(n) < share * n


def test_rows_that_do_not_differ_share_a_letter(entry: Entries, tmp_path: Path) -> None:
    rows = built(
        tmp_path,
        judged(entry, "good", {"clean": drawn(1, 0), "autoattack": drawn(0.62, 1)}),
        judged(entry, "same", {"clean": drawn(1, 0), "autoattack": drawn(0.60, 2)}),
        judged(entry, "between", {"clean": drawn(1, 0), "autoattack": drawn(0.45, 3)}),
        judged(entry, "bad", {"clean": drawn(1, 0), "autoattack": drawn(0.30, 4)}),
        judged(entry, "weaker_attack", {"clean": drawn(1, 0), "pgd20": drawn(0.9, 5)}),
        entry("older", values={"clean": 90.0, "autoattack": 61.0}),
        judged(entry, "half", {"autoattack": drawn(0.7, 6, 50)}, n=50),
    )
    assert [(row["rank"], row["method"], row["rank_interval"], row["tie"]) for row in rows] == [
        ("1", "good", "1–4", "a"),
        ("2", "older", "-", "-"),
        ("3", "same", "1–4", "a"),
        ("4", "between", "1–5", "ab"),
        ("5", "bad", "4–5", "b"),
        ("6", "weaker_attack", "6", "c"),
        ("1", "half", "1", "d"),
    ]
    assert (rows[0]["clean_interval"], rows[0]["autoattack_interval"]) == ("96.30–100.00", "52.21–70.90")
    assert (rows[1]["clean_interval"], rows[5]["pgd20_interval"]) == ("-", "82.56–94.48")
    legend = (tmp_path / "digits" / "linf-0.15" / "leaderboard.md").read_text()
    for column in ("rank_interval", "tie", "*_interval"):
        assert f"- `{column}`: " in legend


def test_other_test_images_are_not_tested_against_each_other(entry: Entries, tmp_path: Path) -> None:
    outcomes = {"autoattack": drawn(0.9, 0)}
    other = judged(entry, "other", outcomes, data={"digests": {"test": "f" * 64}, "n": 100, "of": 100})
    rows = built(tmp_path, judged(entry, "one", outcomes), other)
    assert [row["tie"] for row in rows] == ["a", "b"]


def test_intervals_of_several_seeds_are_over_seeds_too(entry: Entries, tmp_path: Path) -> None:
    outcomes = np.stack([drawn(share, seed) for seed, share in enumerate((0.5, 0.6, 0.7))])
    (row,) = built(
        tmp_path, *(judged(entry, "trades", {"autoattack": found}, seed=seed) for seed, found in enumerate(outcomes))
    )
    low, high = interval(outcomes)
    assert row["autoattack"] == "60.00 ± 10.00"
    assert row["autoattack_interval"] == f"{low:.2f}–{high:.2f}"
    assert high - low > 2 * 10


def test_letters_go_on_after_z(entry: Entries, tmp_path: Path) -> None:
    alone = [
        judged(entry, f"r{n}", {"clean": drawn(1, 0, n)}, n=n) for n in range(30, 58)
    ]  # measured on a number of images of its own, each row is alone
    rows = built(tmp_path, *alone)
    assert [row["tie"] for row in rows] == [*"abcdefghijklmnopqrstuvwxyz", "a1", "b1"]


def test_tables_are_for_papers_too(entry: Entries, tmp_path: Path) -> None:
    entries = [judged(entry, "pgd_at", {"clean": drawn(0.9, 0), "autoattack": drawn(0.5, 1)}, seed=s) for s in (0, 1)]
    built(tmp_path, *entries, entry("theirs", protocol=("zz-v1", "b" * 12, "authors")), entry("some", n=50))
    folder = tmp_path / "digits" / "linf-0.15"
    assert {path.name for path in folder.glob("*.tex")} == {"leaderboard.tex", "leaderboard-zz-v1-bbbbbbbb.tex"}
    comment, meaning, *lines = (folder / "leaderboard.tex").read_text().splitlines()
    assert comment == (
        f"% digits at Linf:0.15, standard protocol digits-linf-v1, hash {'a' * 12}, n = 100, 50 test images, "
        "training seeds: 2, 1."
    )
    assert meaning.startswith("% Mean ± standard deviation (n - 1) over seeds.")
    assert [" ".join(line.split()) for line in lines] == [
        r"\begin{tabular}{llllll}",
        r"\toprule",
        r"Method & Clean (\%) & PGD-20 (\%) & AutoAttack (\%) & Ties & Images \\",
        r"\midrule",
        r"pgd\_at & 90.00 $\pm$ 0.00 & - & 50.00 $\pm$ 0.00 & a & - \\",
        r"some & 90.00 & - & 50.00 & - & 50 of 100 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_several_attacks_of_a_metric_are_columns_where_they_are_measured(entry: Entries, tmp_path: Path) -> None:
    plain = entry("a").model_dump()
    plain["measurements"]["autoattack"]["values"] |= {"after_apgd_ce": 52.0, "after_apgd_t": 50.0}
    rows = built(tmp_path, Entry.model_validate(plain), entry("b"), entry("c", protocol=("mine", "b" * 12, "custom")))
    assert [(row["method"], row["cascade_apgd_ce"], row["cascade_apgd_t"]) for row in rows] == [
        ("a", "52.00", "50.00"),
        ("b", "-", "-"),
    ]
    assert "cascade_fab_t" not in rows[0]
    (other,) = table(tmp_path / "digits" / "linf-0.15" / "leaderboard-mine-bbbbbbbb.csv")
    assert list(other) == list(COLUMNS)
