"""Files of a run: whole or not there, and clear about what is wrong with them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from methods.backbones import Classifier
from methods.data import Dataset
from methods.errors import InputError
from methods.training import checkpoint
from methods.training.checkpoint import (
    load_checkpoint,
    load_state,
    save_state,
    save_weights,
)
from methods.training.config import Experiment
from methods.training.pictures import save_buffer
from methods.training.run_folder import describe
from methods.training.setup import build_method, build_model


@pytest.fixture
def described(make_experiment: Callable[..., Experiment], digits: Dataset) -> tuple[Classifier, dict[str, Any]]:
    """Return a small model and the description that belongs to it."""
    experiment = make_experiment("trades")
    description = describe(experiment, digits, build_method(experiment, digits))
    return build_model(experiment, digits), description | {"epoch": 3, "which": "best"}


@pytest.fixture
def file(described: tuple[Classifier, dict[str, Any]], tmp_path: Path) -> Path:
    """Return a checkpoint's file, alone in its folder."""
    model, description = described
    path = tmp_path / "run" / "best.safetensors"
    save_weights(path, model.state_dict(), description)
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("writer", "kind"),
    [
        ("weights", OSError),
        # Each library reports a failed write as an error of its own.
        ("weights", SafetensorError),
        ("buffer", SafetensorError),
        ("state", RuntimeError),
    ],
)
def test_full_disk_while_tensors_are_written(
    writer: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(tensors: Any, path: Path, *arguments: Any) -> None:
        path.write_bytes(b"half")
        raise kind("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", failing)
    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(InputError, match="No space left on device"):
        if writer == "weights":
            save_weights(tmp_path / "w", {"a": torch.zeros(1)}, {})
        elif writer == "buffer":
            save_buffer(tmp_path / "b", torch.zeros(1, 1, 8, 8))
        else:
            save_state(tmp_path / "s", {"a": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_round_trip(described: tuple[Classifier, dict[str, Any]], file: Path) -> None:
    model, description = described
    loaded = load_checkpoint(file)
    assert loaded.metadata == json.loads(json.dumps(description))
    assert loaded.path == file
    assert not any(module.training for module in loaded.model.modules())
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.model(x), model.eval()(x))


def test_run_folder_offers_best_and_last(described: tuple[Classifier, dict[str, Any]], file: Path) -> None:
    model, description = described
    save_weights(file.parent / "weights.safetensors", model.state_dict(), description | {"which": "last"})
    assert load_checkpoint(file.parent).metadata["which"] == "best"
    assert load_checkpoint(file.parent, "last").metadata["which"] == "last"


def test_channels_last_weights_are_saved_alike(
    described: tuple[Classifier, dict[str, Any]], file: Path, tmp_path: Path
) -> None:
    model, description = described
    model.to(memory_format=torch.channels_last)
    save_weights(tmp_path / "other", model.state_dict(), description)
    assert (tmp_path / "other").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(share: float, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(file, "truncated or no safetensors file")


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.safetensors", "There is no checkpoint at")
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_checkpoint(tmp_path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    refused(path, "not written by this project")


class Trap:
    """An object whose unpickling would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    refused(path, "truncated or no safetensors file")
    with pytest.raises(InputError, match="truncated or foreign"):
        load_state(path)
    torch.save({"state": Trap(mark)}, path)
    refused(path, "truncated or no safetensors file")
    with pytest.raises(InputError, match="truncated or foreign") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_classes": 7}, "size mismatch for network.head"),
        ({"num_classes": "ten"}, "do not fit"),
        ({"image_shape": [1, 8]}, "do not fit"),
        ({"backbone": {"depth": 16}}, "Missing key"),
        ({"backbone": {"depht": 10}}, 'Unknown key "backbone.depht". Did you mean "depth"'),
        ({"backbone": {"architecture": "vgg"}}, 'No backbone "vgg"'),
    ],
)
def test_description_that_does_not_fit_the_weights(change: dict[str, Any], match: str, file: Path) -> None:
    metadata = load_checkpoint(file).metadata
    save_weights(file, load_file(file), metadata | change)
    refused(file, match)


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '"text"'])
def test_malformed_description(text: str, file: Path) -> None:
    save_file(load_file(file), file, {"trilemma": text})
    refused(file, "do not fit")


def test_state_round_trip_and_truncation(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"done": 3, "model": {"weight": torch.arange(4.0)}})
    state = load_state(path)
    assert state["done"] == 3
    assert torch.equal(state["model"]["weight"], torch.arange(4.0))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="delete it to train from the start") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)
