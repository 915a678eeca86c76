"""What only reads results does without torch, which takes seconds to load and gigabytes to install."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import importlib, pkgutil, sys
for package in map(importlib.import_module, ("benchmark.leaderboard", "benchmark.results")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        if "torch" in sys.modules:
            sys.exit(f"{module.name} loads torch")
print(*sys.modules)
"""


def test_no_module_of_leaderboard_and_results_loads_torch() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    loaded = set(finished.stdout.split())
    files = [path for name in ("leaderboard", "results") for path in (ROOT / "benchmark" / name).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert {"benchmark.leaderboard.figures.canvas", "benchmark.leaderboard.page.section_data"} <= modules <= loaded
    assert {"pandas", "matplotlib"} & loaded == set()
