"""Peaks are read in fresh processes, and every recipe can be measured on synthetic images."""

import io
import json
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import torch

from benchmark.specs import recipes
from benchmarks import memory, synthetic
from benchmarks.timing import Settings
from methods.errors import InputError
from methods.training.setup import check

CPU = Settings(torch.device("cpu"), quick=True, repeats=1)


def test_the_peak_is_what_was_in_use_and_is_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    before = memory._settled(CPU.device)
    held = torch.ones(2**24)
    del held
    assert 60 < memory._peak(CPU.device, before) < 90
    memory.start("class_gaussian:2:16:40", "cpu", True)
    assert 0 <= json.loads(capsys.readouterr().out)["peak"] < 60


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is to run in a fresh process run in this one."""

    def ran(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        python, option, program = command
        assert (python, option) == (sys.executable, "-c")
        out = io.StringIO()
        try:
            with redirect_stdout(out):
                exec(program, {})
        except Exception:
            return subprocess.CompletedProcess(command, 1, out.getvalue(), traceback.format_exc())
        return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

    # Not the module's own function, which others call too.
    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=ran))


@pytest.mark.usefixtures("beside")
def test_a_step_is_measured() -> None:
    found = memory._fresh("step", "trades", CPU)
    # This process may have room left from before.
    assert 0 <= found["peak"] < 500
    assert found["precision"] == "float32"


@pytest.mark.slow
def test_a_step_is_measured_in_a_fresh_process() -> None:
    found = memory._fresh("step", "trades", CPU)
    assert 1 < found["peak"] < 500
    assert found["precision"] == "float32"


@pytest.mark.parametrize("recipe", [name for name, path in recipes.recipes().items() if path.parent == recipes.CONFIGS])
def test_every_recipe_fits_the_synthetic_images(recipe: str) -> None:
    experiment = memory.experiment_of(recipe, quick=True)
    mixed = experiment.data.generated.file is not None
    check(experiment, synthetic.dataset(512, side=8, generated=512 if mixed else 0))
    assert experiment.train.batch_size == 64


@pytest.mark.usefixtures("beside")
def test_a_step_that_fails_is_told() -> None:
    with pytest.raises(InputError, match="memory of no such recipe ended with status 1: KeyError: 'no such"):
        memory._fresh("step", "no such recipe", CPU)


@pytest.mark.slow
def test_a_process_that_fails_is_told() -> None:
    with pytest.raises(InputError, match=r"memory of no such recipe ended with status 1"):
        memory._fresh("step", "no such recipe", CPU)


def test_the_targets_of_starts_are_covariance_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_fresh", lambda *_: {"peak": 1.0, "before": 0.0, "precision": "float32"})
    rows = list(memory.run(CPU))
    assert [row.target for row in rows if row.target is not None] == [3600, 5760, 576, 5760]
