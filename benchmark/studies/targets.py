"""The tables and figures of a paper, and the scales at which they are reproduced, as files.

``configs/paper/<target>.yaml`` says what a table has: its columns, its rows, and where the reported numbers stand.
``configs/scales/<scale>.yaml`` says on which data, with which seeds, and what is measured. Nothing here trains.
"""

from typing import Annotated, Literal

from pydantic import Field

from benchmark.leaderboard.aggregate import metric_columns
from benchmark.results.reported import Number, numbers
from benchmark.specs import recipes as files
from benchmark.specs.schema import Strict, checked
from methods.errors import InputError, nearest

ALL, GAP = "all", "gap"

_TITLES = {
    "clean": "clean",
    "pgd20": "PGD-20",
    "autoattack": "AutoAttack",
    "fid": "FID",
    "inception_score": "Inception Score",
    "energy_overlap": "clean, adversarial",
    "generation_agreement": "agreement",
    "generation_agreement_start": "agreement of the starts",
}


class TargetColumn(Strict):
    """One column of a paper's table; without ``metric`` and ``record``, ``name`` is a column of the leaderboards."""

    name: str
    reported: str | None = None
    """The metric in configs/reported.csv; None where the paper has no such number."""
    metric: str | None = None
    value: str | None = None
    """Name of a value of that metric's measurement."""
    record: Literal["collapsed_at"] | None = None
    """Entry of the training's record that is shown in place of a metric."""
    sign: Literal[-1, 1] = 1
    """Factor of the value."""
    reading: Annotated[float, Field(gt=0)] = 1.0
    """Factor that brings a nominal radius to the units of [0, 1] pixels."""
    digits: int = 2
    title: str = ""
    quote: str = ""
    """Heading of the reported number, where that differs from the reproduced one's."""
    meaning: str = ""

    @property
    def source(self) -> tuple[str, str]:
        """The metric, and the name of the value of its measurement."""
        if self.metric is not None:
            return self.metric, self.value or ""
        metric, place = metric_columns()[self.name]
        return metric, place.value

    @property
    def places(self) -> int:
        """Digits after the point."""
        return metric_columns()[self.name][1].digits if self._plain else self.digits

    @property
    def heading(self) -> str:
        """The column's name in figures and in print."""
        return self.title or _TITLES.get(self.name, self.name)

    @property
    def explanation(self) -> str:
        """The column's meaning in a phrase, for the legend."""
        return metric_columns()[self.name][1].meaning if self._plain else self.meaning

    @property
    def _plain(self) -> bool:
        return self.metric is None and self.record is None


class TargetRow(Strict):
    """A method of the table, or a setting of one."""

    label: str
    recipe: str
    """The project's name of the method, by which configs/reported.csv knows it too; it need not exist."""
    row: str = ""
    """Name that tells it apart from other rows of that method: there, and among the rows of its ablation."""
    datasets: list[str] = Field(default=["cifar10"], min_length=1)
    """Data sets for which the paper reports it."""
    ablation: str | None = None
    """Ablation whose row of that name is trained in place of the recipe as it is."""
    missing: str = ""
    """Reason why the project cannot train it; empty where it can."""
    only: list[str] | None = None
    """Names of the columns that are reproduced; None: all."""
    radius: Annotated[float, Field(gt=0)] = 1.0
    """Radius of the attack, in radii of the scale's protocol."""
    iterations: int | None = None
    """Iterations of the attack; None: the protocol's."""


class Quotes(Strict):
    """Source and table of the numbers of configs/reported.csv that are the target's."""

    source: str
    table: str


class Target(Strict):
    """A file in configs/paper/."""

    title: str
    source: str
    shows: str
    kind: Literal["table", "energies", "samples"] = "table"
    quotes: Quotes | None = None
    protocol: str | None = None
    """Protocol under which it is measured; None: the scale's."""
    apart: bool = False
    """Whether its entries are no leaderboard's: attacks at other radii, or with other iterations."""
    preset: str | None = None
    """Preset under which its recipes are compared at scales that are not the paper's."""
    columns: Annotated[list[TargetColumn], Field(min_length=1)]
    rows: Annotated[list[TargetRow], Field(min_length=1)]
    notes: list[str] = Field(default=[])
    """Sentences on what cannot be compared, and why."""

    def reported(self, row: TargetRow, dataset: str, column: TargetColumn) -> Number | None:
        """Return the number of a cell."""
        if self.quotes is None or column.reported is None:
            return None
        wanted = (self.quotes.source, self.quotes.table, row.recipe, row.row, dataset, column.reported)
        return next((number for number in numbers() if place_of(number) == wanted), None)

    def shown(self, row: TargetRow, column: TargetColumn) -> bool:
        """Tell whether a cell is to be reproduced."""
        return not row.missing and (row.only is None or column.name in row.only)


def place_of(number: Number) -> tuple[str, ...]:
    """Return where a reported number stands: source, table, method, row, data set, metric."""
    return number.source, number.table, number.recipe, number.row, number.dataset, number.metric


class Scale(Strict):
    """A file in configs/scales/."""

    title: str
    datasets: Annotated[dict[str, str], Field(min_length=1)]
    """Data set of the paper -> data set that stands for it."""
    protocols: dict[str, str]
    """Data set -> protocol."""
    seeds: Annotated[list[int], Field(min_length=1)]
    limit: int | None = None
    """Number of test images measured, the first ones; None: all."""
    metrics: list[str] | None = None
    """Names of those of the protocol's metrics that are measured; None: all."""
    presets: bool = False
    """Whether a target that names a preset takes it, so that its rows share one budget and one backbone."""
    surrogate: str = "pgd_at"
    """The recipe on whose checkpoints transfer attacks are made."""
    differences: bool
    """Whether reproduced minus reported is printed at all."""
    comment: list[str]
    """Sentences on what sets the whole scale apart from the paper."""
    unmeasured: dict[str, str] = Field(default={})
    """Name of a column -> why it is not measured."""


def targets(name: str) -> dict[str, Target]:
    """Return the target of that name, or all of them.

    Raises:
        InputError: there is none, or a file is malformed; the sentence says what is wrong.
    """
    known = files.papers()
    if name != ALL and name not in known:
        choices = [*known, ALL, GAP]
        raise InputError(f'There is no "{name}" to reproduce (there are {", ".join(choices)}).{nearest(name, choices)}')
    chosen = known if name == ALL else {name: known[name]}
    found = {key: checked(Target, files.read_yaml(path), f"The file {path}") for key, path in chosen.items()}
    for key, target in found.items():
        _refuse_misfits(target, f"The file {known[key]}")
    return found


def scale(name: str) -> Scale:
    """Return a scale by its name.

    Raises:
        InputError: there is none, or its file is malformed; the sentence says what is wrong.
    """
    known = files.scales()
    if name not in known:
        raise InputError(f'There is no scale "{name}" (there are {", ".join(known)}).{nearest(name, known)}')
    return checked(Scale, files.read_yaml(known[name]), f"The file {known[name]}")


def _refuse_misfits(target: Target, where: str) -> None:
    names = [column.name for column in target.columns]
    for column in target.columns:
        if column.metric is None and column.record is None and column.name not in metric_columns():
            raise InputError(f'{where}: no metric fills the column "{column.name}".{nearest(column.name, names)}')
        if column.metric is not None and column.value is None:
            raise InputError(f'{where}: the column "{column.name}" names a metric and no value of it.')
    if target.preset is not None and target.preset not in files.presets():
        raise InputError(f'{where}: there is no preset "{target.preset}".{nearest(target.preset, files.presets())}')
    recipes = files.recipes()
    for row in target.rows:
        if not row.missing and row.recipe not in recipes:
            raise InputError(f'{where}: there is no recipe "{row.recipe}", and no reason is given.')
        for name in row.only or ():
            if name not in names:
                raise InputError(f'{where}, row "{row.label}": there is no column "{name}".{nearest(name, names)}')
