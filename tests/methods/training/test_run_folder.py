"""The folder of a run: where it lies, and its manifest."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from methods.data import Dataset
from methods.errors import InputError
from methods.training.checkpoint import load_checkpoint
from methods.training.config import Experiment
from methods.training.run_folder import read_manifest, run_folder
from methods.training.trainer import train

Make = Callable[..., Experiment]
Crash = Callable[[int], AbstractContextManager[None]]

CPU = torch.device("cpu")


def test_manifest_of_a_finished_run(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    experiment = make_experiment("trades", epochs=2)
    folder = train(experiment, data, tmp_path, CPU)
    manifest = read_manifest(folder)
    assert (manifest["status"], manifest["steps"], manifest["epochs"]) == ("finished", 6, 2)
    assert manifest["data_digests"] == dict(data.digests)
    assert manifest["digest"] == experiment.digest(data.digests)
    assert folder == tmp_path / "tiny_trades" / "digits" / f"{manifest['digest'][:8]}-s0"
    assert manifest["provenance"]["device"] == "cpu"
    assert manifest["parameters"] == sum(p.numel() for p in load_checkpoint(folder).model.parameters())
    last = load_checkpoint(folder, "last").metadata
    assert (last["which"], last["epoch"], last["method"], last["seed"]) == ("last", 2, "trades", 0)


def test_damaged_manifest_is_refused(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    experiment = make_experiment("standard")
    path = run_folder(tmp_path, experiment, data) / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"status": "fin')
    with pytest.raises(InputError, match="truncated or foreign"):
        train(experiment, data, tmp_path, CPU)
