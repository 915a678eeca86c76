"""The examples of CONTRIBUTING.md and README.md, executed as a reader would."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyautoattack
import pytest
import torch

import methods
from benchmark import metrics
from benchmark.cli import main
from benchmark.specs import recipes

ROOT = Path(__file__).resolve().parents[1]
NAMED_BLOCK = re.compile(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_examples(document: Path, folder: Path) -> set[str]:
    """Write the fenced blocks that follow a line with nothing but a file's name, and return these names."""
    examples = dict(NAMED_BLOCK.findall(document.read_text(encoding="utf-8")))
    for name, content in examples.items():
        (folder / name).write_text(content, encoding="utf-8")
    return set(examples)


def python(folder: Path, *arguments: str) -> str:
    """Run Python in a folder with the project there or, else, this one; return what it printed."""
    source = folder if (folder / "benchmark").is_dir() else ROOT
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def run(*arguments: str) -> None:
    """Run a command in this process, to success."""
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert not stop.value.code


SMOOTHED = ("run", "--methods", "smoothing", "--dataset", "digits", "--set", "train.epochs=1", "--metrics", "clean")
SMOOTHED += ("--limit", "50", "--device", "cpu")


def assert_smoothing_is_an_entry(folder: Path) -> None:
    (entry,) = (folder / "leaderboards" / "digits").glob("*/entries/*.json")
    record = json.loads(entry.read_text(encoding="utf-8"))
    assert record["method"] == "smoothing"
    assert record["partial"] is True
    assert record["measurements"]["clean"]["n"] == 50
    (table,) = (folder / "leaderboards" / "digits").glob("*/leaderboard.csv")
    assert "smoothing" in table.read_text(encoding="utf-8")


def test_method_added_as_contributing_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: the two files lie in folders that are taken for those of the project."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "methods").mkdir()
    (tmp_path / "benchmark" / "metrics").mkdir(parents=True)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path / "configs")
    assert "smoothing" not in methods.names()
    written = write_examples(ROOT / "CONTRIBUTING.md", tmp_path)
    assert written == {"methods/smoothing.py", "configs/smoothing.yaml", *METRIC}

    for what in ("methods", "recipes"):
        run("list", what)
        assert "smoothing" in capsys.readouterr().out
    try:
        run(*SMOOTHED, "--set", "backbone.widen=1", "--set", "train.batch_size=256")
    finally:
        sys.modules.pop("methods.smoothing", None)
    assert_smoothing_is_an_entry(tmp_path)


METRIC = ("benchmark/metrics/confidence.py", "confidence-v1.yaml")


def test_metric_added_as_contributing_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: the file lies in a folder that is taken for one of the project."""
    monkeypatch.chdir(tmp_path)
    for folder in ("methods", "configs", "benchmark/metrics"):
        (tmp_path / folder).mkdir(parents=True)
    write_examples(ROOT / "CONTRIBUTING.md", tmp_path)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path / "benchmark" / "metrics")])
    weights = ROOT / "leaderboards" / "digits" / "weights" / "5d219fc1a89d91fc.safetensors"
    try:
        run("evaluate", "--checkpoint", str(weights), "--protocol", METRIC[1], "--limit", "50", "--json", "out.json")
    finally:
        sys.modules.pop("benchmark.metrics.confidence", None)
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["metrics"]["confidence"]
    assert found["n"] == 50
    assert 50 < found["mean"] <= 100


@pytest.mark.slow
def test_method_added_to_a_copy_as_contributing_says(tmp_path: Path) -> None:
    for name in ("methods", "benchmark", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert "smoothing" not in python(tmp_path, "-m", "benchmark", "list", "methods")
    write_examples(ROOT / "CONTRIBUTING.md", tmp_path)
    assert "smoothing" in python(tmp_path, "-m", "benchmark", "list", "methods")
    assert "smoothing" in python(tmp_path, "-m", "benchmark", "list", "recipes")
    python(tmp_path, "-m", "benchmark", *SMOOTHED)
    assert_smoothing_is_an_entry(tmp_path)


def test_own_model_evaluated_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_examples(ROOT / "README.md", tmp_path) == {"my_model.py", "prepare.py", "cifar_resnet.py"}
    # A script finds what lies beside it.
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with torch.random.fork_rng():
            runpy.run_path("prepare.py", run_name="__main__")
    finally:
        sys.modules.pop("my_model", None)
    model = ["--model", "my_model.py:make_model", "--weights", "my_weights.pt"]
    data = ["--dataset", "npz:my_data.npz", "--threat", "Linf:0.1", "--json", "result.json"]
    cheap = ["--metrics", "clean,pgd20", "--limit", "50", "--device", "cpu", "--runs", "my-runs"]
    for option in ("--model my_model.py", "--weights my_weights.pt", "--dataset npz:", "--json result.json"):
        assert option in (ROOT / "README.md").read_text(encoding="utf-8")
    run("evaluate", *model, *data, *cheap)

    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["threat"] == "Linf:0.1"
    assert result["n"] == 50
    assert result["metrics"]["clean"]["accuracy"] >= 80
    assert result["metrics"]["pgd20"]["accuracy"] <= result["metrics"]["clean"]["accuracy"]


def test_model_from_elsewhere_evaluated_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_examples(ROOT / "README.md", tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=np.arange(12) % 10, x_test=x[:2], y_test=np.arange(2))
    weights = Path(pyautoattack.__path__[0]) / "examples" / "model_test.pt"
    model = ["--model", "cifar_resnet.py:make_model", "--weights", str(weights)]
    data = ["--dataset", "npz:data.npz", "--threat", "Linf:8/255", "--device", "cpu", "--json", "result.json"]
    run("evaluate", *model, *data, "--metrics", "clean")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["subject"], result["n"]) == ("cifar_resnet:make_model", 2)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/cluster.md"])
def test_links_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    files = [link for link in links if not link.startswith("https://")]
    assert document != "README.md" or len(files) >= 3
    assert [link for link in files if not (ROOT / document).parent.joinpath(link).is_file()] == []


STAND_INS = {
    # What Slurm would start, and Ray around it, is only written down: one argument a line.
    "python": """printf '%s\\n' "$@" > command""",
    "srun": """while [ "$1" != -- ]; do shift; done; shift; exec "$@" """,
}


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run a script of docs/cluster.md as Slurm does, with its variables, in an empty folder; then what it starts."""
    scripts = write_examples(ROOT / "docs" / "cluster.md", tmp_path)
    assert scripts == {"train.sbatch", "evaluate.sbatch", "tables.sbatch", "grid.sbatch"}
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def submit(script: str, *arguments: str, **variables: str) -> list[str]:
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"} | variables
        subprocess.run(["bash", script, *arguments], env=environment, check=True, timeout=60)
        module, name, *command = (tmp_path / "command").read_text().splitlines()
        assert (module, name) == ("-m", "benchmark")
        if "--engine" in command:
            return command
        run(*command)
        return command

    return submit


def test_slurm_scripts_train_measure_and_assemble(
    submitted: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("backbone.widen=1", "train.epochs=1", "train.batch_size=256", "train.warmup_steps=0")
    settings = [part for override in overrides for part in ("--set", override)]
    few = ["--metrics", "clean,pgd20", "--limit", "201", "--device", "cpu"]
    for task in range(4):
        submitted("train.sbatch", *settings, "--device", "cpu", SLURM_ARRAY_TASK_ID=str(task))
    trained = {path.parent.relative_to(tmp_path / "runs") for path in (tmp_path / "runs").rglob("manifest.json")}
    assert {(path.parts[0], path.name[-3:]) for path in trained} == {
        (recipe, f"-s{seed}") for recipe in ("standard", "trades") for seed in (0, 1)
    }
    chosen = next(path for path in trained if path.parts[0] == "trades")
    for task in range(1, 4):
        place = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "3"}
        submitted("evaluate.sbatch", "--checkpoint", f"runs/{chosen}", *few, **place)
        assert len(list((tmp_path / "runs").glob("measurements/pgd20-*/shard-*.npz"))) == task
    assert not list(tmp_path.glob("leaderboards/**/*.json"))

    monkeypatch.setattr("methods.training.trainer._Training", lambda *_: pytest.fail("a run was trained again"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("measurements/*/shard-*.npz")}
    submitted("tables.sbatch", *settings, *few)
    assert len(list(tmp_path.glob("leaderboards/digits/*/entries/*.json"))) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_slurm_script_of_a_ray_cluster_asks_for_its_nodes(submitted: Callable[..., list[str]]) -> None:
    nodes = {"SLURM_JOB_NUM_NODES": "4", "SLURM_CPUS_PER_TASK": "8"}
    command = submitted("grid.sbatch", "--methods", "ebjdat,trades", "--seeds", "0,1,2", **nodes)
    assert " ".join(command) == ("run --engine ray --address auto --workers 4 --methods ebjdat,trades --seeds 0,1,2")


def test_readme_lists_every_method_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    known = methods.names()
    assert "trades" in known
    assert [name for name in known if f"| `{name}` |" not in readme] == []
    run("--help")
    commands = re.findall(r"^[│|] ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"run", "train", "evaluate", "leaderboard", "list"} <= set(commands)
    assert [name for name in commands if f"python -m benchmark {name}" not in readme] == []
