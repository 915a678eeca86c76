"""Metrics: one module each, and the directory is the registry. Only the standard library is imported here.

A metric module has

- ``VERSION``: raised whenever the same subject would get another number;
- ``Config``: its settings, a :class:`benchmark.specs.schema.Strict` with a default for every field; one called
  ``images``
  is how many of the first images it is content with;
- ``NEEDS``: the metrics whose settings it shares (optional);
- ``conditions(data)``: plain data on what else decides its outcomes (optional), for the key of the store;
- ``COLUMNS``: its columns of the leaderboard, name -> :class:`Column`;
- ``verdicts(samples)``: name of an accuracy among its values -> bool per image (optional), from which confidence
  intervals and paired tests are made;
- ``check(subject)``: raises InputError where the metric is not defined for the model (optional), before any work;
- ``measure(data) -> Measurement``, of :class:`benchmark.evaluation.shards.Shards`, which holds subject and protocol;
- ``cross_check(results) -> Measurement``: its own measurement with what the finished results of other metrics say about
  it (optional); ``results`` is metric -> :class:`benchmark.evaluation.shards.Result`.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import NamedTuple

from methods.errors import InputError, nearest

DEFAULT = (
    *("clean", "pgd20", "autoattack", "energy", "generation", "landscape", "fid", "fid_ref"),
    *("sweep", "eot_pgd", "transfer", "marginal", "masking", "autoattack_custom", "autoattack_fast"),
)
"""The order in which metrics run: a cheap one first, and what another one reuses before it."""

_PACKAGE = "benchmark.metrics"
_RENAMED = {"pgd": "pgd20"}


class Column(NamedTuple):
    """One column of the leaderboard."""

    value: str
    """Key of the measurement's values."""
    meaning: str
    """For the legend under the table."""
    digits: int = 2

    def text(self, values: Mapping[str, float | int | str | None]) -> str:
        """Return the column's value among a measurement's, as it is shown."""
        value = values.get(self.value)
        return f"{value:.{self.digits}f}" if isinstance(value, int | float) else str(value or "-")


def _modules() -> dict[str, str]:
    found = (module.name for module in iter_modules(import_module(_PACKAGE).__path__))
    return {_RENAMED.get(name, name): f"{_PACKAGE}.{name}" for name in found}


def names() -> list[str]:
    """Return the names of all metrics in the order in which they run."""
    found = _modules()
    return [name for name in DEFAULT if name in found] + sorted(set(found) - set(DEFAULT))


def get(name: str) -> ModuleType:
    """Return the module of the metric called ``name``.

    Raises:
        InputError: there is no such metric.
    """
    modules = _modules()
    if name not in modules:
        raise InputError(f'There is no metric "{name}" (there are {", ".join(names())}).{nearest(name, modules)}')
    return import_module(modules[name])
