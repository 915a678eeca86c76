"""Validation: what it measures, which epoch it selects, and what it shows of a replay buffer."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from methods.backbones import Classifier
from methods.data import Dataset
from methods.primitives.threat import ThreatModel
from methods.training import trainer, validation
from methods.training.checkpoint import load_checkpoint
from methods.training.config import Experiment
from methods.training.guard import read_log
from methods.training.pictures import load_buffer
from methods.training.run_folder import read_manifest
from methods.training.trainer import train
from methods.training.validation import look, nonfinite_values, validate

Make = Callable[..., Experiment]
Crash = Callable[[int], AbstractContextManager[None]]

CPU = torch.device("cpu")


def validations(folder: Path) -> dict[int, dict[str, float]]:
    return {line["epoch"]: line["validation"] for line in read_log(folder / "log.jsonl") if "validation" in line}


@dataclass
class Script:
    """Validation results to come, in order."""

    scores: list[tuple[float, float]]

    def __call__(self, *arguments: Any) -> dict[str, float]:
        clean, robust = self.scores.pop(0)
        return {"clean": clean, "robust": robust}


@pytest.mark.parametrize(
    ("select", "scores", "best"),
    [
        ("robust", [(90.0, 10.0), (80.0, 50.0), (99.0, 40.0)], 2),
        ("clean", [(90.0, 10.0), (80.0, 50.0), (99.0, 40.0)], 3),
        ("robust", [(90.0, 50.0), (80.0, 50.0), (99.0, 49.0)], 2),
        ("robust", [(10.0, 0.0), (10.0, 0.0), (10.0, 0.0)], 3),
    ],
)
def test_best_epoch_is_the_argmax_of_validation_and_ties_go_to_the_later(
    select: str,
    scores: list[tuple[float, float]],
    best: int,
    make_experiment: Make,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "validate", Script(list(scores)))
    folder = train(make_experiment("standard", epochs=3, select=select), data, tmp_path, CPU)
    metadata = load_checkpoint(folder).metadata
    assert (metadata["which"], metadata["epoch"]) == ("best", best)
    manifest = read_manifest(folder)
    clean, robust = scores[best - 1]
    assert manifest["best"]["epoch"] == best
    assert manifest["best"]["validation"] == {"clean": clean, "robust": robust}
    # The best weights are those of its epoch: the last ones exactly where it is the last.
    files = [load_file(folder / name) for name in ("best.safetensors", "weights.safetensors")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0]) == (best == 3)


def test_best_weights_score_what_the_log_says(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    experiment = make_experiment("pgd_at")
    folder = train(experiment, data, tmp_path, CPU)
    logged = validations(folder)
    assert list(logged) == [1, 2, 3, 4, 5, 6]
    for which in ("best", "last"):
        loaded = load_checkpoint(folder, which)
        again = validate(loaded.model, data.validation, experiment.threat_model, 0, CPU)
        assert again == logged[loaded.metadata["epoch"]]
    chosen = load_checkpoint(folder).metadata["epoch"]
    top = max(score["robust"] for score in logged.values())
    assert chosen == max(epoch for epoch, score in logged.items() if score["robust"] == top)


def test_validation_every_few_epochs_ends_with_the_last(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    folder = train(make_experiment("standard", validate_every=4), data, tmp_path, CPU)
    assert list(validations(folder)) == [4, 6]


def test_without_validation_images_the_best_is_the_last(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    nothing = replace(data, validation=data.validation.select(slice(0)))
    folder = train(make_experiment("standard", epochs=1), nothing, tmp_path, CPU)
    weights = [load_file(folder / name) for name in ("best.safetensors", "weights.safetensors")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert load_checkpoint(folder).metadata["which"] == "best"


def test_validation_measures_clean_and_robust_accuracy(data: Dataset, trained: Classifier) -> None:
    found = validate(trained, data.train, ThreatModel.parse("Linf:0.15"), 0, CPU)
    with torch.no_grad():
        correct = trained.eval()(data.train.unit()).argmax(1) == data.train.labels
    assert found["clean"] == pytest.approx(100 * correct.float().mean().item())
    assert found["robust"] < found["clean"] - 20
    nowhere = validate(trained, data.train, ThreatModel.parse("Linf:0"), 0, CPU)
    assert nowhere["robust"] == nowhere["clean"] == found["clean"]


def test_replay_buffer_is_shown_measured_and_saved(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    options = {"negatives": {"buffer_size": 40, "sampler": {"steps": 1}}}
    experiment = make_experiment("jempp", options, epochs=3, validate_every=2)
    folder = train(experiment, data, tmp_path, CPU)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["epoch-0002.png", "epoch-0003.png"]
    looked = [line for line in read_log(folder / "log.jsonl") if "validation" in line]
    last = read_log(folder / "log.jsonl")[-2]
    assert last["step"] == looked[-1]["step"] == 9
    # Fewer chains than are looked at: all of them, after the last step.
    assert looked[-1]["samples"]["std"] == pytest.approx(last["buffer_std"], rel=1e-4)
    assert looked[-1]["samples"]["saturated"] == pytest.approx(last["buffer_saturated"], rel=1e-4)
    for which in ("best", "last"):
        assert load_buffer(folder / f"{which}-buffer.safetensors").shape == (40, 1, 8, 8)
        assert load_checkpoint(folder, which).metadata["generation"] == {
            "energy": "marginal",
            "mode": "train",
            "start": "class_gaussian",
            "sampler": experiment.resolved()["options"]["negatives"]["sampler"],
        }


def test_looking_at_the_replay_buffer_changes_no_weight(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"negatives": {"buffer_size": 40, "sampler": {"steps": 1}}}
    experiment = make_experiment("jempp", options, epochs=2)
    looked = load_file(train(experiment, data, tmp_path / "looked", CPU) / "weights.safetensors")
    monkeypatch.setattr(trainer, "look", lambda *arguments: {})
    blind = load_file(train(experiment, data, tmp_path / "blind", CPU) / "weights.safetensors")
    assert all(torch.equal(looked[name], blind[name]) for name in looked)


def test_large_replay_buffers_are_looked_at_in_part(
    data: Dataset, trained: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr(validation, "_SAMPLES", 30)
    monkeypatch.setattr(validation, "write_grid", lambda path, images, labels, classes: shown.append(images))
    samples = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, again = (look(tmp_path / "grid.png", samples, trained, data.train.images, 10, seed=0) for _ in range(2))
    assert first == again
    assert torch.equal(shown[0], shown[1])
    assert len(shown[0].flatten(1).unique(dim=0)) == 30


def test_values_that_are_not_finite_are_counted_in_weights_and_buffers(trained: Classifier) -> None:
    assert nonfinite_values(trained) == 0
    with torch.no_grad():
        next(trained.parameters()).view(-1)[0] = torch.nan
        next(buffer for buffer in trained.buffers() if buffer.is_floating_point()).view(-1)[0] = torch.inf
    assert nonfinite_values(trained) == 2
