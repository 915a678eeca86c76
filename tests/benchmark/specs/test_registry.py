"""The registry of metrics: the directory, names, and no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.specs import registry
from benchmark.specs.registry import Column
from benchmark.specs.schema import Strict
from methods.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


def test_names_are_the_default_ones_in_order() -> None:
    assert tuple(registry.names()) == registry.DEFAULT
    assert registry.DEFAULT[:5] == ("clean", "pgd20", "autoattack", "energy", "generation")


@pytest.mark.parametrize("name", registry.names())
def test_every_metric_keeps_the_contract(name: str) -> None:
    module = registry.get(name)
    assert isinstance(module.VERSION, int)
    assert issubclass(module.Config, Strict)
    assert module.Config()
    assert all(isinstance(column, Column) and column.meaning for column in module.COLUMNS.values())
    assert set(getattr(module, "NEEDS", ())) <= set(registry.names())
    assert callable(module.measure)


def test_no_two_metrics_fill_the_same_column() -> None:
    columns = [column for name in registry.names() for column in registry.get(name).COLUMNS]
    assert len(columns) == len(set(columns))


@pytest.mark.parametrize(("name", "nearest"), [("autoatack", "autoattack"), ("pgd", "pgd20")])
def test_unknown_metric_answers_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f'Did you mean "{nearest}"'):
        registry.get(name)


def test_listing_names_needs_only_the_standard_library() -> None:
    script = (
        "import sys; before = set(sys.modules); from benchmark.specs import registry; registry.names();"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert set(finished.stdout.split()) == {"benchmark", "methods"}
