"""Cells of restarts and collapses: what happened to the trainings behind a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmark.cells import collapsed_at, restarts
from benchmark.results import Entry

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
