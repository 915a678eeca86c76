"""Comparing two methods: which rows a name means, what is refused and why, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.leaderboard.compare import Comparison, compare, lines
from benchmark.results.entry import Entry, pack
from benchmark.results.layout import write_entry
from benchmark.results.significance import difference, interval
from methods.errors import InputError

Entries = Callable[..., Entry]


@pytest.fixture
def judged(entry: Entries) -> Entries:
    """Make an entry whose accuracies have outcomes per image: those given, or some drawn with the given shares."""

    def make(recipe: str, outcomes: dict[str, np.ndarray] | None = None, draw: int = 0, **fields: Any) -> Entry:
        if outcomes is None:
            rng = np.random.default_rng([draw, fields.get("seed", 0)])
            n = fields.get("n", 100)
            outcomes = {"clean": rng.permutation(n) < 0.9 * n, "autoattack": rng.permutation(n) < 0.5 * n}
        values = {name: 100 * float(found.mean()) for name, found in outcomes.items()}
        content = entry(recipe, values=values, **fields).model_dump()
        for name, found in outcomes.items():
            content["measurements"][name]["verdicts"] = {"accuracy": pack(found)}
        return Entry.model_validate(content)

    return make


def split(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the outcomes of two methods with these counts."""
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_two_checkpoints_by_their_files(judged: Entries, tmp_path: Path) -> None:
    clean_a, clean_b = split(80, 10, 8, 2)
    robust_a, robust_b = split(30, 25, 5, 40)
    a = write_entry(tmp_path, judged("pgd_at", {"clean": clean_a, "autoattack": robust_a}))
    b = write_entry(tmp_path, judged("trades", {"clean": clean_b, "autoattack": robust_b}))
    found = compare(str(a), str(b), tmp_path / "nowhere")
    assert (found.a, found.b, found.n) == ("pgd_at (seed 0)", "trades (seed 0)", 100)
    assert (found.dataset, found.threat, found.protocol) == ("digits", "Linf:0.15", "digits-linf-v1")
    clean, robust = found.outcomes
    assert (clean.column, robust.column) == ("clean", "autoattack")
    assert (robust.only_a, robust.only_b, robust.a.value, robust.b.value) == (25, 5, pytest.approx(55), 35)
    assert (robust.a.low, robust.a.high) == interval(robust_a[None])
    assert robust.difference == difference(robust_a[None], robust_b[None])
    # 2 * sum over k <= 5 of C(30, k) / 2^30
    assert robust.difference.p == pytest.approx(2 * 174437 / 2**30)
    assert list(lines(found)) == [
        "pgd_at (seed 0) and trades (seed 0) on digits at Linf:0.15, digits-linf-v1, n = 100 images; 95 % intervals",
        "clean: no significant difference (pgd_at (seed 0) minus trades (seed 0): 2.0 points [-6.5, 10.4], p = 0.81).",
        "  pgd_at (seed 0): 90.00 % [82.56, 94.48], 1 seed",
        "  trades (seed 0): 88.00 % [80.19, 93.00], 1 seed",
        "  images that only pgd_at (seed 0) has right: 10; only trades (seed 0): 8; McNemar's exact test",
        "autoattack: pgd_at (seed 0) is ahead by 20.0 points [9.5, 29.7], p = 0.00032.",
        "  pgd_at (seed 0): 55.00 % [45.24, 64.39], 1 seed",
        "  trades (seed 0): 35.00 % [26.36, 44.75], 1 seed",
        "  images that only pgd_at (seed 0) has right: 25; only trades (seed 0): 5; McNemar's exact test",
        "note: pgd_at (seed 0) has a single seed: how its trainings would differ is unknown, and neither in the "
        "intervals nor in the tests.",
        "note: trades (seed 0) has a single seed: how its trainings would differ is unknown, and neither in the "
        "intervals nor in the tests.",
        "note: The p values are not corrected for the number of columns.",
    ]
    json.dumps(asdict(found))


def test_who_is_ahead_does_not_depend_on_the_order(judged: Entries, tmp_path: Path) -> None:
    robust_a, robust_b = split(30, 25, 5, 40)
    for name, found in (("pgd_at", robust_a), ("trades", robust_b)):
        write_entry(tmp_path, judged(name, {"autoattack": found}))
    told = [list(lines(compare(*names, tmp_path)))[1] for names in (("pgd_at", "trades"), ("trades", "pgd_at"))]
    assert told == ["autoattack: pgd_at is ahead by 20.0 points [9.5, 29.7], p = 0.00032."] * 2


def test_rows_by_name_are_compared_over_all_their_seeds(judged: Entries, tmp_path: Path) -> None:
    for seed in range(3):
        write_entry(tmp_path, judged("pgd_at", seed=seed, draw=1))
    for seed in range(2):
        write_entry(tmp_path, judged("trades", seed=seed, draw=2))
    found = compare("PGD-AT", "trades", tmp_path)
    assert (found.a, found.b) == ("pgd_at", "trades")
    for outcome in found.outcomes:
        assert (outcome.a.seeds, outcome.b.seeds) == (3, 2)
        assert outcome.difference.test == "Welch's t over images and seeds"
        assert outcome.only_a - outcome.only_b == pytest.approx(outcome.a.value - outcome.b.value)
    assert found.notes == ("The p values are not corrected for the number of columns.",)
    assert "  pgd_at: 90.00 % " in list(lines(found))[2]
    assert list(lines(found))[2].endswith(", 3 seeds")


def test_a_file_and_a_name_share_the_files_table(judged: Entries, tmp_path: Path) -> None:
    old = ("digits-linf-v0", "b" * 12, "standard")
    path = write_entry(tmp_path, judged("pgd_at", protocol=old, n=50, draw=1))
    for fields in ({}, {"protocol": old}, {"protocol": old, "n": 50}):
        write_entry(tmp_path, judged("trades", draw=2, **fields))
    found = compare(str(path), "trades", tmp_path)
    assert (found.protocol, found.n) == ("digits-linf-v0", 50)
    assert "Only the first 50 of 100 test images were measured." in found.notes


def test_names_mean_the_newest_standard_protocol_and_most_images(judged: Entries, tmp_path: Path) -> None:
    for protocol in (("digits-linf-v9", "a" * 12, "standard"), ("digits-linf-v10", "b" * 12, "standard")):
        for n in (50, 80, 100):
            write_entry(tmp_path, judged("pgd_at", protocol=protocol, n=n))
            if n < 100:
                write_entry(tmp_path, judged("trades", protocol=protocol, n=n, draw=1))
    assert (compare("pgd_at", "trades", tmp_path).protocol, compare("pgd_at", "trades", tmp_path).n) == (
        *("digits-linf-v10", 80),
    )
    for chosen in ("digits-linf-v9", "aaaa"):
        assert compare("pgd_at", "trades", tmp_path, protocol=chosen).protocol == "digits-linf-v9"


def test_parts_of_file_names_choose_among_rows_of_a_recipe(judged: Entries, tmp_path: Path) -> None:
    write_entry(tmp_path, judged("pgd_at"))
    for digest, which in (("1" * 64, "best"), ("1" * 64, "last"), ("2" * 64, "best")):
        write_entry(tmp_path, judged("trades", config_digest=digest, which=which, draw=1))
    with pytest.raises(InputError, match=r'"trades" may be several rows .* \(trades-11111111-s0-best-'):
        compare("trades", "pgd_at", tmp_path)
    assert compare("trades-22222222", "pgd_at", tmp_path).a == "trades"
    assert compare("trades-last", "pgd_at", tmp_path).a == "trades"
    both = compare("trades-11111111-best", "trades-last", tmp_path)
    assert (both.a, both.b) == ("trades-11111111-best", "trades-last")


def test_what_one_of_them_lacks_is_said(judged: Entries, tmp_path: Path) -> None:
    write_entry(tmp_path, judged("pgd_at"))
    write_entry(tmp_path, judged("trades", {"clean": split(80, 10, 8, 2)[1]}))
    found = compare("pgd_at", "trades", tmp_path)
    assert [outcome.column for outcome in found.outcomes] == ["clean"]
    assert "autoattack is left out, because trades has no outcomes per image of it." in found.notes


def test_suspected_masking_is_said(judged: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def suspicion(runs: list[Entry], column: str) -> str:
        return "suspect: one step" if (runs[0].recipe, column) == ("trades", "masking") else "-"

    monkeypatch.setattr("benchmark.leaderboard.compare.measured", suspicion)
    for name in ("pgd_at", "trades"):
        write_entry(tmp_path, judged(name))
    notes = compare("pgd_at", "trades", tmp_path).notes
    assert [note for note in notes if "masking" in note] == ["Gradient masking of trades: suspect: one step."]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"dataset": "imagefolder:/a/b"}, "different data sets: digits, imagefolder-b"),
        ({"threat": "Linf:0.1"}, "different threat models: Linf:0.15, Linf:0.1"),
        (
            {"protocol": ("digits-linf-v1", "b" * 12, "standard")},
            "different protocols: digits-linf-v1 (aaaaaaaaaaaa), ",
        ),
        (
            {"data": {"digests": {"test": "f" * 64}, "n": 100, "of": 100}},
            "different test images: SHA-256 eeeeeeeeeeee, ",
        ),
        ({"n": 50}, "different numbers of test images: 100, 50"),
    ],
)
def test_what_is_not_comparable_is_refused(judged: Entries, tmp_path: Path, other: dict[str, Any], reason: str) -> None:
    a = write_entry(tmp_path / "a", judged("pgd_at"))
    b = write_entry(tmp_path / "b", judged("trades", **other))
    with pytest.raises(InputError) as refused:
        compare(str(a), str(b), tmp_path)
    assert str(refused.value).startswith("pgd_at (seed 0) and trades (seed 0) cannot be compared: they have ")
    assert reason in str(refused.value)


def test_entries_without_outcomes_are_refused(judged: Entries, entry: Entries, tmp_path: Path) -> None:
    write_entry(tmp_path, judged("pgd_at"))
    older = write_entry(tmp_path, entry("trades"))
    for name in ("trades", str(older)):
        with pytest.raises(InputError, match=r"trades.* has no outcomes per image.*: evaluate it again"):
            compare("pgd_at", name, tmp_path)


def test_nothing_in_common_is_refused(judged: Entries, tmp_path: Path) -> None:
    robust, clean = split(80, 10, 8, 2)
    write_entry(tmp_path, judged("pgd_at", {"autoattack": robust}))
    write_entry(tmp_path, judged("trades", {"clean": clean}))
    with pytest.raises(InputError, match="pgd_at and trades have no accuracy in common"):
        compare("pgd_at", "trades", tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"recipe": 3}', "\x00\x01"])
def test_foreign_files_are_refused(judged: Entries, tmp_path: Path, content: str) -> None:
    path = write_entry(tmp_path, judged("pgd_at"))
    foreign = tmp_path / "foreign.json"
    foreign.write_text(content)
    with pytest.raises(InputError, match=r"foreign\.json"):
        compare(str(path), str(foreign), tmp_path)
    with pytest.raises(InputError, match=r"missing\.json cannot be read"):
        compare(str(tmp_path / "missing.json"), "pgd_at", tmp_path)


def test_damaged_outcomes_are_refused(judged: Entries, tmp_path: Path) -> None:
    write_entry(tmp_path, judged("pgd_at"))
    content = judged("trades").model_dump()
    content["measurements"]["clean"]["verdicts"]["accuracy"] = "AAAA"
    write_entry(tmp_path, Entry.model_validate(content))
    with pytest.raises(InputError, match="clean of trades, seed 0: The verdicts hold 3 bytes"):
        compare("pgd_at", "trades", tmp_path)
    content["measurements"]["clean"] |= {"n": 24}
    write_entry(tmp_path, Entry.model_validate(content))
    with pytest.raises(InputError, match="pgd_at and trades have clean of different numbers of images"):
        compare("pgd_at", "trades", tmp_path)


def test_unknown_names_and_tables_are_told(judged: Entries, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'There is no entry of "pgd_at" in .*nowhere\.'):
        compare("pgd_at", "trades", tmp_path / "nowhere")
    write_entry(tmp_path, judged("pgd_at"))
    write_entry(tmp_path, judged("trades", threat="Linf:0.1"))
    with pytest.raises(InputError, match=r'There is no entry of "trads" in .*\. Did you mean "trades"\?'):
        compare("pgd_at", "trads", tmp_path)
    with pytest.raises(InputError, match=r"pgd_at and trades have no table in common"):
        compare("pgd_at", "trades", tmp_path)
    with pytest.raises(InputError, match=r'no entry of "pgd_at" in .*, data set digits, threat model Linf:0\.1\.'):
        compare("pgd_at", "trades", tmp_path, dataset="digits", threat="Linf:0.1")


def test_several_tables_ask_for_a_choice(judged: Entries, tmp_path: Path) -> None:
    for threat in ("Linf:0.15", "Linf:0.1"):
        for name in ("pgd_at", "trades"):
            write_entry(tmp_path, judged(name, threat=threat))
    with pytest.raises(InputError, match=r"several tables \(digits/linf-0\.1, digits/linf-0\.15\): choose with"):
        compare("pgd_at", "trades", tmp_path)
    found: Comparison = compare("pgd_at", "trades", tmp_path, threat="Linf:0.1")
    assert found.threat == "Linf:0.1"
