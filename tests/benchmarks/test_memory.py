"""Peaks are read in fresh processes, and every recipe can be measured on synthetic images."""

import json

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


def test_a_process_that_fails_is_told() -> None:
    with pytest.raises(InputError, match=r"memory of no such recipe ended with status 1"):
        memory._fresh("step", "no such recipe", CPU)


def test_the_targets_of_starts_are_covariance_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_fresh", lambda *_: {"peak": 1.0, "before": 0.0, "precision": "float32"})
    rows = list(memory.run(CPU))
    assert [row.target for row in rows if row.target is not None] == [3600, 5760, 576, 5760]
