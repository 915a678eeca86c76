"""The directory is the registry, and one broken paper is no other paper's trouble."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import methods
from methods.errors import InputError
from methods.training.method import Method

PLUG_IN = """
from dataclasses import dataclass

from methods.standard import Standard
from methods.training.method import Card


@dataclass(frozen=True)
class Config:
    pass


class Mine(Standard):
    Config = Config
    card = Card("Mine", "2500.00000", "none", "standard", "reconstruction")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose files count as files of methods/; what it imports is forgotten afterwards."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("methods.broken", "methods.two", "methods.none", "my_plug_in"):
        # First set, so that monkeypatch removes on leaving what a test imports.
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    return tmp_path


def announce(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Let other distributions announce methods: name -> module."""
    found = [EntryPoint(name, module, methods.GROUP) for name, module in points.items()]

    def entry_points(**wanted: Any) -> list[EntryPoint]:
        return [point for point in found if point.group == wanted["group"]]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


def test_every_paper_of_the_directory_is_found() -> None:
    energy_based = {"jem", "jempp", "sadajem", "mebm", "jeat", "ebjdat"}
    assert {"standard", "pgd_at", "trades", "weat"} | energy_based <= set(methods.names())
    assert energy_based == {name for name in methods.names() if methods.get(name).card.family == "energy-based"}
    assert methods.names() == sorted(methods.names())
    assert not {"errors", "files", "training", "data", "primitives", "backbones"} & set(methods.names())
    for name in methods.names():
        cls = methods.get(name)
        assert issubclass(cls, Method)
        assert cls.__module__ == f"methods.{name}"


@pytest.mark.parametrize(
    ("name", "meant"), [("trade", "trades"), ("PGD-AT", "pgd_at"), ("eb_jdat", "ebjdat"), ("xyzzy", None)]
)
def test_unknown_name_offers_the_nearest(name: str, meant: str | None) -> None:
    with pytest.raises(InputError) as caught:
        methods.get(name)
    assert str(caught.value) == f'There is no method "{name}".' + (f' Did you mean "{meant}"?' if meant else "")


@pytest.mark.parametrize("code", ["import a_package_that_is_not_installed", "1 / 0", "def ("])
def test_a_paper_that_does_not_import_breaks_only_itself(code: str, folder: Path) -> None:
    (folder / "broken.py").write_text(code)
    assert "broken" in methods.names()
    assert issubclass(methods.get("trades"), Method)
    with pytest.raises(InputError, match=r'The method "broken" does not import: .*Error: ') as caught:
        methods.get("broken")
    assert "\n" not in str(caught.value)


def test_a_file_defines_one_method(folder: Path) -> None:
    (folder / "two.py").write_text(PLUG_IN + "\n\nclass Other(Mine):\n    pass\n")
    (folder / "none.py").write_text("from methods.standard import Standard\n")
    for name, count in (("two", 2), ("none", 0)):
        with pytest.raises(InputError, match=f'"{name}" defines {count} Method classes'):
            methods.get(name)


def test_entry_point_joins_the_catalogue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "my_plug_in.py").write_text(PLUG_IN)
    # A file of methods/ holds its name against a distribution that announces the same one.
    announce(monkeypatch, mine="my_plug_in", trades="my_plug_in", gone="no_such_module")
    assert {"mine", "gone", "trades"} <= set(methods.names())
    assert methods.get("mine").__name__ == "Mine"
    assert methods.get("mine").card.title == "Mine"
    assert methods.get("trades").__module__ == "methods.trades"
    with pytest.raises(InputError, match='"gone" does not import: ModuleNotFoundError'):
        methods.get("gone")


def test_listing_the_catalogue_imports_neither_torch_nor_a_paper() -> None:
    code = (
        "import json, sys, methods; found = methods.names(); "
        "print(json.dumps([found, [name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy')"
        " or name.startswith('methods.')]]))"
    )
    root = Path(methods.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    found, imported = json.loads(done.stdout)
    assert "trades" in found
    assert imported == ["methods.errors"]
