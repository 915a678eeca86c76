"""One row of a paper's table: its reported numbers, and the entries that reproduce it."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from benchmark.leaderboard.aggregate import ABSENT, FAILED, collapsed_at, mean
from benchmark.results.entry import Entry
from benchmark.results.reported import FLAGS, Number, differences
from benchmark.studies.targets import TargetColumn, TargetRow

_NONE = "none"


@dataclass(frozen=True)
class RowResult:
    """A row of a target on one of the paper's data sets."""

    row: TargetRow
    paper_dataset: str
    dataset: str | None
    """Data set that stands for the paper's; None: none does at this scale."""
    reported: Mapping[str, Number]
    """Name of a column -> the paper's number."""
    runs: Mapping[str, list[Entry]]
    """Name of a column -> its entries, by seed; without the columns that are not to be reproduced."""

    @property
    def entries(self) -> list[Entry]:
        """Every entry behind the row, once."""
        return list({id(entry): entry for runs in self.runs.values() for entry in runs}.values())

    @property
    def status(self) -> str:
        """Reason why nothing of the row is reproduced; empty where something is."""
        if self.row.missing:
            return "reported only"
        if self.dataset is None:
            return "not at this scale"
        return "" if self.entries else "not run"

    def found(self, column: TargetColumn) -> list[float | str]:
        """Return the reproduced values of a cell, FAILED where the metric failed."""
        metric, name = column.source
        measured = [
            entry.measurements[metric] for entry in self.runs.get(column.name, ()) if metric in entry.measurements
        ]
        values = [FAILED if each.status == "failed" else each.values.get(name) for each in measured]
        return [column.sign * it if isinstance(it, int | float) else it for it in values if it is not None]

    def numbers(self, column: TargetColumn) -> list[float]:
        """Return the numbers among the reproduced values of a cell."""
        if column.record:
            return []
        return [value for value in self.found(column) if isinstance(value, int | float)]

    def text(self, column: TargetColumn) -> str:
        """Return the reproduced cell."""
        runs = self.runs.get(column.name, [])
        if column.record:
            known = [run for run in runs if run.training.get("interventions") is not None]
            told = collapsed_at(known)
            return told if told != ABSENT or not known else _NONE
        found = self.numbers(column)
        if found:
            lost = "" if len(found) == len(runs) else f" ({len(found)} of {len(runs)})"
            return mean(found, column.places) + lost
        return FAILED if FAILED in self.found(column) else ABSENT

    def quoted(self, column: TargetColumn) -> str:
        """Return the reported cell."""
        number = self.reported.get(column.name)
        if number is None:
            return ABSENT
        return f"{number.value:.{0 if column.record else 2}f}"

    def flags(self, column: TargetColumn) -> tuple[str, ...]:
        """Return why the reproduced cell is not the same measurement as the reported one."""
        number = self.reported.get(column.name)
        if number is None or not self.numbers(column):
            return ()
        found = {flag for entry in self.runs[column.name] for flag in differences(number, entry)}
        return tuple(flag for flag in FLAGS if flag in found)

    def difference(self, column: TargetColumn) -> float | None:
        """Return reproduced minus reported."""
        number, found = self.reported.get(column.name), self.numbers(column)
        return statistics.fmean(found) - number.value if number and found else None
