"""The house rules of CONTRIBUTING.md: who may import whom, and what a cheap command may load."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    {"methods.errors"},
    {"methods.files"},
    {"methods.primitives"},
    {"methods.backbones", "methods.data"},
    {"methods.training"},
)
"""Packages of methods/, from low to high; above them the papers, and above these benchmark/."""
BENCHMARK = {
    "engines": "jobs, and what carries them out",
    "specs": "what configs/ says",
    "results": "what was measured, on disk",
    "models": "what is evaluated",
    "evaluation": "running metrics on shards, evidence",
    "attacks": "AutoAttack, masking checks",
    "generation": "chains, scores of images",
    "metrics": "one metric a file",
    "leaderboard": "tables, figures, page",
    "runs": "from recipe to entry",
    "studies": "analyses on top of runs",
    "robustbench": "submissions",
    "cli": "commands",
}
"""Who may import whom in benchmark/: each package only those above it."""
REGISTRY = "methods"
PAPER_RANK = len(LAYERS)
BENCHMARK_RANK = PAPER_RANK + 1
MEASURING = "benchmarks"
LOOP = {f"methods.training.{name}" for name in ("trainer", "setup", "state", "validation", "run_folder", "devices")}
"""The training loop and what belongs to it alone."""
MAY_ASK_THE_REGISTRY = {"benchmark.cli.listing", "methods.training", "paper", MEASURING}
ROBUSTBENCH_FILE = "benchmark.models.robustbench_import"
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "core", "misc"}
SLOW_PACKAGES = {"torch", "torchvision", "timm", "sklearn", "pandas", "matplotlib"}

Rule = Callable[[grimp.ImportGraph], list[str]]


def unit(module: str) -> str:
    """Return the part of the house a module belongs to, such as `methods.trades` or `benchmark`."""
    package = module.split(".")[0]
    return package if package in ("benchmark", MEASURING) else ".".join(module.split(".")[:2])


def is_paper(module: str) -> bool:
    """Tell whether a module is one of the files of methods/ that hold one paper each."""
    name = unit(module)
    return name.startswith("methods.") and not any(name in layer for layer in LAYERS)


def rank(module: str) -> int:
    """Return how high a module stands; it may import only what stands lower, or its own unit."""
    if unit(module) in ("benchmark", MEASURING):
        return BENCHMARK_RANK + (unit(module) == MEASURING)
    return next((i for i, layer in enumerate(LAYERS) if unit(module) in layer), PAPER_RANK)


def own_imports(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    """Yield (importer, imported) for every import inside methods, benchmark and benchmarks."""
    for importer in sorted(graph.modules):
        if not graph.is_module_squashed(importer):
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if not graph.is_module_squashed(imported):
                    yield importer, imported


def package_violations(graph: grimp.ImportGraph) -> list[str]:
    """Return the imports inside benchmark/ of a package that does not stand above the importer's in BENCHMARK."""
    order = {f"benchmark.{name}": place for place, name in enumerate((*BENCHMARK, "__main__"))}
    found = []
    for importer, imported in own_imports(graph):
        above, below = (".".join(module.split(".")[:2]) for module in (imported, importer))
        if {above, below} <= order.keys() and above != below and order[above] >= order[below]:
            found.append(f"{importer} imports {imported}")
    return found


def circle_violations(graph: grimp.ImportGraph) -> list[str]:
    """Return an import that closes a circle of modules; those inside functions count."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in own_imports(graph):
        sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as error:
        first, second = error.args[1][:2]
        return [f"{second} imports {first}"]
    return []


def measuring_violations(graph: grimp.ImportGraph) -> list[str]:
    """Return the modules outside benchmarks/ that import it; it measures the project and is no part of it."""
    return [
        f"{importer} imports {imported}"
        for importer, imported in own_imports(graph)
        if imported.split(".")[0] == MEASURING and importer.split(".")[0] != MEASURING
    ]


def external_imports(graph: grimp.ImportGraph, package: str) -> set[str]:
    """Return the top-level names of everything outside methods and benchmark that a package imports."""
    modules = {package, *graph.find_descendants(package)}
    imported = {name for module in modules for name in graph.find_modules_directly_imported_by(module)}
    return {name for name in imported if graph.is_module_squashed(name)}


def layer_violations(graph: grimp.ImportGraph) -> list[str]:
    """Return the imports that go upwards, or sideways between two papers or between backbones and data."""
    return [
        f"{importer} imports {imported}"
        for importer, imported in own_imports(graph)
        if REGISTRY not in (importer, imported)
        and unit(importer) != unit(imported)
        and rank(importer) <= rank(imported)
    ]


def trainer_violations(graph: grimp.ImportGraph) -> list[str]:
    """Return the papers that import the training loop; a method is called by it and never calls it."""
    return [
        f"{importer} imports {imported}"
        for importer, imported in own_imports(graph)
        if is_paper(importer) and imported in LOOP
    ]


def metric_violations(graph: grimp.ImportGraph) -> list[str]:
    """Return the metrics that import a paper or the registry; a metric sees a model and not its origin."""
    return [
        f"{importer} imports {imported}"
        for importer, imported in own_imports(graph)
        if importer.startswith("benchmark.metrics") and (is_paper(imported) or imported == REGISTRY)
    ]


def registry_violations(graph: grimp.ImportGraph) -> list[str]:
    """Return the modules that ask the registry without being entitled to."""
    return [
        f"{importer} imports {imported}"
        for importer, imported in own_imports(graph)
        if imported == REGISTRY
        and not MAY_ASK_THE_REGISTRY & {importer, unit(importer), "paper" if is_paper(importer) else ""}
    ]


def robustbench_violations(graph: grimp.ImportGraph) -> list[str]:
    """Return the modules besides the one adapter that import robustbench."""
    if "robustbench" not in graph.modules:
        return []
    importers = graph.find_modules_that_directly_import("robustbench")
    return [f"{importer} imports robustbench" for importer in sorted(importers - {ROBUSTBENCH_FILE})]


RULES: tuple[Rule, ...] = (
    layer_violations,
    trainer_violations,
    metric_violations,
    registry_violations,
    robustbench_violations,
    measuring_violations,
    package_violations,
    circle_violations,
)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """The import graph of the project, with the outside packages as leaves."""
    built = grimp.build_graph("methods", "benchmark", MEASURING, include_external_packages=True, cache_dir=None)
    pillars = {
        "methods.errors",
        "methods.files",
        "methods.primitives.attacks",
        "methods.backbones.wide_resnet",
        "methods.data.streams",
        *LOOP,
        "methods.trades",
        "benchmark.models.subject",
        "benchmark.metrics.clean",
        "benchmarks.timing",
    }
    assert pillars <= built.modules, f"the graph lacks {sorted(pillars - built.modules)}"
    assert len(list(own_imports(built))) > len(pillars)
    return built


@pytest.mark.parametrize("violations", RULES)
def test_house_rule(graph: grimp.ImportGraph, violations: Rule) -> None:
    assert violations(graph) == []


@pytest.mark.parametrize(
    ("violations", "importer", "imported"),
    [
        (layer_violations, "methods.primitives.attacks", "methods.training.method"),
        (layer_violations, "methods.files", "methods.training.checkpoint"),
        (layer_violations, "methods.data.streams", "methods.backbones.wide_resnet"),
        (layer_violations, "methods.training.trainer", "methods.trades"),
        (layer_violations, "methods.trades", "methods.ebjdat"),
        (layer_violations, "methods.trades", "benchmark.metrics.pgd"),
        (trainer_violations, "methods.trades", "methods.training.trainer"),
        (trainer_violations, "methods.trades", "methods.training.setup"),
        (metric_violations, "benchmark.metrics.pgd", "methods.trades"),
        (metric_violations, "benchmark.metrics.pgd", "methods"),
        (registry_violations, "benchmark.evaluation.runner", "methods"),
        (robustbench_violations, "benchmark.models.subject", "robustbench"),
        (layer_violations, "benchmark.evaluation.runner", "benchmarks.timing"),
        (measuring_violations, "methods.training.trainer", "benchmarks.timing"),
        (package_violations, "benchmark.models.zoo", "benchmark.attacks.autoattack"),
        (package_violations, "benchmark.leaderboard.tables", "benchmark.runs.pipeline"),
    ],
)
def test_rule_catches_a_planted_violation(violations: Rule, importer: str, imported: str) -> None:
    planted = grimp.ImportGraph()
    planted.add_module(importer)
    planted.add_module(imported, is_squashed=imported == "robustbench")
    planted.add_import(importer=importer, imported=imported)
    assert violations(planted) == [f"{importer} imports {imported}"]


def test_a_circle_is_found() -> None:
    planted = grimp.ImportGraph()
    for importer, imported in (
        ("benchmark.models.a", "benchmark.models.b"),
        ("benchmark.models.b", "benchmark.models.a"),
    ):
        planted.add_module(importer)
        planted.add_import(importer=importer, imported=imported)
    assert len(circle_violations(planted)) == 1


def test_every_package_of_benchmark_has_its_place(graph: grimp.ImportGraph) -> None:
    found = {module.split(".")[1] for module in graph.modules if module.startswith("benchmark.")}
    assert found == {*BENCHMARK, "__main__"}


def test_tests_mirror_the_source() -> None:
    folders = [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and any(path.glob("test_*.py"))]
    assert len(folders) > 15
    strange = [path for path in folders if not (ROOT / path.relative_to(ROOT / "tests")).is_dir()]
    assert strange == []


def test_modules_are_short() -> None:
    """No module has more than 350 lines: one that needs more does two jobs."""
    files = [path for folder in ("methods", "benchmark", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    long = {str(path.relative_to(ROOT)): lines for path in files if (lines := len(path.read_text().splitlines())) > 350}
    assert long == {}


def test_primitives_need_torch_and_nothing_else(graph: grimp.ImportGraph) -> None:
    outside = external_imports(graph, "methods.primitives") - sys.stdlib_module_names
    assert outside == {"torch"}


@pytest.mark.parametrize(
    "module", ["methods", "methods.errors", "methods.files", "methods.data.catalogue", "methods.primitives.norm_ball"]
)
def test_what_cheap_commands_read_needs_only_the_standard_library(module: str) -> None:
    script = f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    imported = {name.split(".")[0] for name in finished.stdout.split()}
    assert "methods" in imported
    assert imported - sys.stdlib_module_names == {"methods"}


def test_no_file_has_a_vague_name() -> None:
    files = [
        path for folder in ("methods", "benchmark", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 30
    vague = [path for path in files if VAGUE_NAMES & {*path.relative_to(ROOT).parts[:-1], path.stem}]
    assert vague == []


def test_tests_are_no_package() -> None:
    """Two dependencies install a top-level package called tests, so ours must not be importable as one."""
    assert list((ROOT / "tests").rglob("test_*.py"))
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("list",)] + [("list", kind) for kind in ("methods", "recipes", "datasets", "protocols", "metrics")],
    ids=" ".join,
)
def test_cheap_command_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "benchmark", *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rsplit("|", 1)[1].strip() for line in finished.stderr.splitlines() if "|" in line}
    assert {"typer", "benchmark"} <= imported
    assert {name.split(".")[0] for name in imported} & SLOW_PACKAGES == set()
    assert finished.stdout.strip()
