"""The paper, reproduced: train what is missing, measure it, and put it beside what is reported.

Every number takes the way of ``run`` and ``ablate``: plan, training, evaluation under a protocol, entry. The tables are
a pure function of the entries, the files of configs/paper/ and configs/scales/, and configs/reported.csv.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmark.engines import Engine
from benchmark.evaluation.selection import Selection
from benchmark.leaderboard import ablation as ablations
from benchmark.leaderboard import tables
from benchmark.results.entry import Cell, Entry
from benchmark.results.layout import ATTACKS, REPRODUCTION, read_entries, table_folder
from benchmark.runs.jobs import Evaluation
from benchmark.runs.pipeline import carry_out, failures
from benchmark.runs.plan import Plan
from benchmark.runs.run import Run
from benchmark.specs import protocol as protocols
from benchmark.specs import recipes as files
from benchmark.specs.protocol import Protocol
from benchmark.studies import comparison_table
from benchmark.studies.comparison_table import About
from benchmark.studies.row_results import RowResult
from benchmark.studies.targets import Scale, Target, TargetColumn, TargetRow
from methods.errors import InputError
from methods.primitives.threat import ThreatModel
from methods.training.run_folder import run_folder

_TRANSFER = "transfer"
_WHICH = "best"


@dataclass(frozen=True)
class Need:
    """What a cell is read from: the entries of one experiment under one protocol."""

    recipe: str
    dataset: str
    cell: Cell | None
    protocol: str | None
    """None: the scale's."""
    apart: bool = False
    radius: float = 1.0
    """In radii of the scale's protocol."""
    iterations: int | None = None


@dataclass(frozen=True)
class Reproduction:
    """Some of the paper at one scale."""

    targets: Mapping[str, Target]
    scale: Scale
    seeds: Sequence[int]
    overrides: Sequence[str] = ()
    device: str = "auto"
    runs: Path = Path("runs")
    leaderboards: Path = Path("leaderboards")
    engine: Engine = field(default_factory=Engine)
    _plans: dict[tuple[str, str, Cell | None], Plan] = field(default_factory=dict)
    _kept: dict[Any, Any] = field(default_factory=dict)
    _protocols: dict[Need, Protocol] = field(default_factory=dict)
    _shelves: dict[Path, list[Entry]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the tables are written."""
        return self.leaderboards / REPRODUCTION / self.scale.title

    def run(self) -> list[str]:
        """Train and measure what is missing, write the entries, and rebuild the leaderboards.

        Returns:
            A sentence for each training or metric that failed; all others are kept.

        Raises:
            InputError: something named does not fit.
        """
        needs = self._needs()
        standard = [need for need in needs if need.protocol is None]
        rest = [need for need in needs if need.protocol is not None]
        # Ablations are long and come last in the paper, short trainings first: from its end, no process waits long for
        # the last run. Attacks follow what they attack.
        runs = self._runs({need: needs[need] for need in (*standard[::-1], *rest)})
        outcomes = carry_out(runs, self.engine)
        self._shelves.clear()
        tables.rebuild(self.leaderboards)
        return failures(outcomes)

    def write(self) -> list[Path]:
        """Write every target from the entries there are; return the files.

        Raises:
            InputError: there is no entry for any row, or a file cannot be written.
        """
        shown = {name: self._shown(target) for name, target in self.targets.items()}
        if not any(row.entries for rows in shown.values() for row in rows):
            names = next(iter(self.targets)) if len(self.targets) == 1 else "any table"
            raise InputError(
                f"There is no entry for {names} at scale {self.scale.title} below {self.leaderboards}; without "
                "--tables-only what is missing is trained."
            )
        about = About(self.scale, self.seeds, tuple(self.overrides), self.leaderboards)
        return [
            path
            for name, target in self.targets.items()
            for path in comparison_table.write(self.folder / name, target, shown[name], about)
        ]

    def _shown(self, target: Target) -> list[RowResult]:
        rows = []
        for row in target.rows:
            for dataset in row.datasets:
                reported = {column.name: target.reported(row, dataset, column) for column in target.columns}
                place = self.scale.datasets.get(dataset)
                runs = {
                    column.name: self.entries(self._need(target, row, place, column))
                    for column in target.columns
                    if place is not None and target.shown(row, column)
                }
                rows.append(RowResult(row, dataset, place, {key: it for key, it in reported.items() if it}, runs))
        return rows

    def _need(self, target: Target, row: TargetRow, place: str, column: TargetColumn) -> Need:
        cell = None if row.ablation is None else Cell(name=row.ablation, row=row.row)
        radius = row.radius * column.reading
        recipe = files.under(row.recipe, target.preset if self.scale.presets and cell is None else None)
        return Need(recipe, place, cell, target.protocol, target.apart, radius, row.iterations)

    def _needs(self) -> dict[Need, set[str]]:
        """Return what all targets need at this scale, and the metrics of each."""
        needs: dict[Need, set[str]] = {}
        for target in self.targets.values():
            for row in target.rows:
                for place in [self.scale.datasets[name] for name in row.datasets if name in self.scale.datasets]:
                    for column in target.columns:
                        if target.shown(row, column):
                            need = self._need(target, row, place, column)
                            needs.setdefault(need, set()).update(self._metrics(need, column))
        for need, metrics in list(needs.items()):
            # An entry that has more keeps it: what it has is in the store, or measured again.
            for entry in self.entries(need):
                metrics |= {name for name, found in entry.measurements.items() if found.status == "done"}
            # Where it is only attacked, one job trains it, and the others come after that.
            needs.setdefault(Need(need.recipe, need.dataset, need.cell, None), set())
            if _TRANSFER in metrics:
                needs.setdefault(self._surrogate(need), set())
        return needs

    def _metrics(self, need: Need, column: TargetColumn) -> set[str]:
        """Return what is measured for a cell: all that the scale has for a recipe under its own protocol."""
        offered = set(self.protocol(need).metrics)
        if need.protocol is None:
            offered &= set(self.scale.metrics or offered)
            if need.cell is None:
                return offered
        own = set() if column.record else {column.source[0]}
        usual = () if need.cell is None else ablations.load(need.cell.name).metrics
        return offered & {*own, *usual}

    def _surrogate(self, need: Need) -> Need:
        return Need(self.scale.surrogate, need.dataset, None, None)

    def _runs(self, needs: Mapping[Need, set[str]]) -> list[Run]:
        runs = []
        for need, metrics in needs.items():
            for number, seed in enumerate(self.seeds):
                plan = replace(self.plan(need), seeds=(seed,))
                surrogate = None
                if _TRANSFER in metrics:
                    surrogate = self._folder(self.plan(self._surrogate(need)), number)
                evaluation = Evaluation(
                    Selection(sorted(metrics), self.scale.limit),
                    surrogate=surrogate,
                    device=self.device,
                    engine=self.engine,
                )
                run = Run(
                    plan,
                    plan.experiments[0],
                    evaluation if metrics else None,
                    self.protocol(need),
                    self._root(need),
                    need.cell,
                    evidence=not need.apart,
                    after=frozenset() if surrogate is None else frozenset({surrogate}),
                )
                runs.append(run)
        return runs

    def _folder(self, plan: Plan, number: int) -> Path:
        run = plan.experiments[number]
        return run_folder(self.runs, run, plan.data(run))

    def plan(self, need: Need) -> Plan:
        """Return the plan of a need's trainings."""
        key = need.recipe, need.dataset, need.cell
        if key not in self._plans:
            plan = Plan(
                recipes=[need.recipe],
                dataset=need.dataset,
                seeds=self.seeds,
                protocol=self.scale.protocols.get(need.dataset),
                overrides=self.overrides,
                device=self.device,
                runs=self.runs,
                kept=self._kept,
            )
            settings = {} if need.cell is None else _settings(need.cell, plan)
            self._plans[key] = replace(plan, settings=settings)
        return self._plans[key]

    def protocol(self, need: Need) -> Protocol:
        """Return the protocol of a need."""
        if need not in self._protocols:
            self._protocols[need] = self._protocol(need)
        return self._protocols[need]

    def _protocol(self, need: Need) -> Protocol:
        standard = self.plan(need).evaluation_protocol
        if need.protocol is None:
            return standard
        threat = ThreatModel.parse(standard.threat)
        chosen = protocols.load(need.protocol, str(replace(threat, eps=threat.eps * Fraction(need.radius))))
        if need.iterations is None:
            return chosen
        changed = {"autoattack_custom": chosen.metrics["autoattack_custom"] | {"iterations": need.iterations}}
        return chosen.model_copy(update={"metrics": chosen.metrics | changed})

    def entries(self, need: Need) -> list[Entry]:
        """Return the entries of a need, by seed."""
        plan, protocol = self.plan(need), self.protocol(need)
        ablation = None if need.cell is None else need.cell.name
        folder = table_folder(self._root(need), need.dataset, protocol.threat, ablation)
        if folder not in self._shelves:
            self._shelves[folder] = list(read_entries(folder).values())
        protocol_hash = protocol.hash
        return [
            entry
            for run in plan.experiments
            for entry in self._shelves[folder]
            if entry.recipe == run.recipe
            and (entry.ablation, entry.seed, entry.subject.which) == (need.cell, run.seed, _WHICH)
            and (entry.protocol.hash, entry.config_digest) == (protocol_hash, run.digest(entry.data.digests))
            and entry.data.n == min(self.scale.limit or entry.data.of, entry.data.of)
        ]

    def _root(self, need: Need) -> Path:
        return self.folder / ATTACKS if need.apart else self.leaderboards


def _settings(cell: Cell, plan: Plan) -> Mapping[str, object]:
    """Return what a row of an ablation sets.

    Raises:
        InputError: there is no such row, or the plan sets what the ablation varies.
    """
    ablation = ablations.load(cell.name)
    if taken := ablations.varied(ablation, plan.changes):
        raise InputError(f'The ablation "{cell.name}" varies "{taken[0]}" itself; it cannot be set for all rows.')
    found = [row.set for row in ablation.rows if row.name == cell.row]
    if not found:
        raise InputError(f'The ablation "{cell.name}" has no row "{cell.row}".')
    return found[0]
