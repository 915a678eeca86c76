"""An installed wheel holds the code and the recipes, and what the code imports is declared."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    """Return a distribution's name in the one spelling that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, away from the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("methods", "benchmark", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # Without isolation and dependencies, so that the build needs no network.
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True, timeout=300)
    shutil.rmtree(source)
    (wheel,) = folder.glob("trilemma-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_every_module_and_recipe(installed: Path) -> None:
    wanted = {
        path.relative_to(ROOT)
        for folder, pattern in (
            ("methods", "*.py"),
            ("benchmark", "*.py"),
            ("benchmark/leaderboard/page", "*.html"),
            ("benchmark/leaderboard/page", "*.css"),
            ("benchmark/leaderboard/page", "*.js"),
            ("configs", "*.yaml"),
            ("configs", "*.csv"),
            ("configs", "*.npz"),
        )
        for path in (ROOT / folder).rglob(pattern)
    }
    assert {Path("methods/trades.py"), Path("configs/trades.yaml")} <= wanted
    assert wanted <= {path.relative_to(installed) for path in installed.rglob("*")}
    assert not (installed / "tests").exists()


def test_installed_wheel_finds_its_recipes(installed: Path, tmp_path: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(installed)!r}); from benchmark.cli import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", script, "list", "recipes"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "trades" in finished.stdout


def test_every_import_is_a_declared_dependency() -> None:
    graph = grimp.build_graph("methods", "benchmark", include_external_packages=True, cache_dir=None)
    imported = {name for name in graph.modules if graph.is_module_squashed(name)} - sys.stdlib_module_names
    assert "torch" in imported
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cluster"]]
    declared = {canonical(re.split(r"[<>=!~\[; ]", line)[0]) for line in lines}
    owners = packages_distributions()
    undeclared = [name for name in imported if not {canonical(owner) for owner in owners[name]} & declared]
    assert undeclared == []


def test_every_dependency_has_a_lower_bound_and_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert len(PROJECT["dependencies"]) > 10
    for dependency in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cluster"]):
        assert re.search(">=|~=", dependency), f"{dependency} has no lower bound"
        assert re.search(rf'"{re.escape(dependency)}",\s+# \S', text), f"{dependency} has no reason beside it"


def test_installed_pyautoattack_is_the_one_whose_methods_are_replaced() -> None:
    """Early stopping and the cascade replace methods of its attacks, which another version may not have."""
    installed = version("pyautoattack")
    assert installed.startswith("0.2."), (
        f"pyautoattack {installed} is installed, and benchmark/attacks/ replaces methods of 0.2; "
        'install it with pip install "pyautoattack~=0.2.0", or adapt early_stopping.py and cascade.py to the new one.'
    )
