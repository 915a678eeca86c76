"""Cells: what stands in them of one seed, of several, and of seeds that failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmark.leaderboard.aggregate import collapsed_at, interval, measured, restarts, span, verdicts
from benchmark.results.entry import Entry, pack
from benchmark.results.significance import interval as mean_interval
from benchmark.results.significance import wilson
from benchmark.specs.registry import Column
from methods.errors import InputError

Entries = Callable[..., Entry]


def trained(*epochs: float, stopped: float | None = None) -> dict[str, Any]:
    """Return the record of a training that was put back at some epochs, and stopped at another."""
    return {
        "interventions": [{"step": 10, "epoch": epoch, "cause": "buffer_std", "to": 0} for epoch in epochs],
        "restarts": len(epochs),
        "collapse": None if stopped is None else {"step": 20, "epoch": stopped, "cause": "nonfinite"},
    }


@pytest.mark.parametrize(
    ("records", "restarts_cell", "collapsed_cell"),
    [
        ([trained()], "0", "-"),
        ([trained(), trained()], "0", "-"),
        ([trained(3.25, 7.94)], "2", "s0: 3.2, 7.9"),
        ([trained(), trained(3.25, 7.94), trained()], "2 (1 of 3 seeds)", "s1: 3.2, 7.9"),
        ([trained(1.0), trained(2.0, stopped=4.0)], "2 (2 of 2 seeds)", "s0: 1.0; s1: 2.0, 4.0"),
        ([trained(stopped=0.5)], "0", "s0: 0.5"),
        ([{}], "-", "-"),
        ([{}, trained(2.0)], "-", "s1: 2.0"),
    ],
)
def test_restarts_and_collapses(
    entry: Entries, records: list[dict[str, Any]], restarts_cell: str, collapsed_cell: str
) -> None:
    runs = [entry(seed=seed, training=record) for seed, record in enumerate(records)]
    assert (restarts(runs), collapsed_at(runs)) == (restarts_cell, collapsed_cell)


def judged(entry: Entries, correct: np.ndarray | None, seed: int = 0) -> Entry:
    """Return an entry whose clean accuracy has these outcomes per image; None: an accuracy without any."""
    share = 50.0 if correct is None else 100 * float(correct.mean())
    found = entry(seed=seed, values={"clean": share, "autoattack": None})
    if correct is not None:
        clean = found.measurements["clean"].model_copy(update={"verdicts": {"accuracy": pack(correct)}})
        found = found.model_copy(update={"measurements": found.measurements | {"clean": clean}})
    return found


def test_verdicts_are_those_of_every_seed(entry: Entries) -> None:
    correct = np.random.default_rng(0).random((3, 100)) < 0.8
    runs = [judged(entry, one, seed) for seed, one in enumerate(correct)]
    found = verdicts(runs, "clean")
    assert found is not None
    assert np.array_equal(found, correct)
    assert verdicts([*runs, judged(entry, None, 3)], "clean") is None
    assert verdicts(runs, "autoattack") is None
    assert verdicts(runs, "pgd20") is None
    assert verdicts(runs, "nothing") is None


def test_damaged_verdicts_are_named(entry: Entries) -> None:
    found = judged(entry, np.ones(99, bool))
    assert verdicts([found], "clean") is not None
    with pytest.raises(InputError, match="clean of trades, seed 0: The verdicts hold 1 bytes"):
        verdicts([judged(entry, np.ones(5, bool))], "clean")


def test_interval_is_wilsons_of_one_seed_and_over_seeds_of_several(entry: Entries) -> None:
    correct = np.random.default_rng(0).random((3, 100)) < 0.8
    runs = [judged(entry, one, seed) for seed, one in enumerate(correct)]
    low, high = wilson(int(correct[0].sum()), 100)
    assert interval(runs[:1], "clean") == f"{low:.2f}–{high:.2f}"
    low, high = mean_interval(correct)
    assert interval(runs, "clean") == f"{low:.2f}–{high:.2f}"
    assert interval([judged(entry, None)], "clean") == "-"
    assert interval(runs, "autoattack") == "-"
    assert (span("1", "1"), span("1", "3")) == ("1", "1–3")


CLEAR, SUSPECT = "clear", "suspect: one step, zero gradients"


@pytest.mark.parametrize(
    ("words", "cell"),
    [
        ([CLEAR], "clear"),
        ([CLEAR, CLEAR, CLEAR], "clear"),
        ([SUSPECT], SUSPECT),
        (
            [CLEAR, SUSPECT, "suspect: one step, square"],
            "suspect (2 of 3 seeds): one step, zero gradients, square",
        ),
        ([SUSPECT, SUSPECT], "suspect (2 of 2 seeds): one step, zero gradients"),
        ([CLEAR, None, CLEAR], "clear (2 of 3, 1 failed)"),
        ([CLEAR, SUSPECT, None], "suspect (1 of 2 seeds): one step, zero gradients (2 of 3, 1 failed)"),
        ([None, None], "failed"),
        ([], "-"),
    ],
)
def test_words_of_several_seeds(
    entry: Entries, monkeypatch: pytest.MonkeyPatch, words: list[str | None], cell: str
) -> None:
    columns = {"masking": ("clean", Column("verdict", ""))}
    monkeypatch.setattr("benchmark.leaderboard.aggregate.metric_columns", lambda: columns)
    runs: list[Entry] = []
    for seed, word in enumerate(words or [""]):
        found = entry(seed=seed, values={"clean": None if word is None else 90.0})
        clean = found.measurements["clean"].model_copy(update={"values": {"verdict": word} if word else {}})
        runs.append(found.model_copy(update={"measurements": {"clean": clean}}))
    assert measured(runs, "masking") == cell
