"""What a training is made of depends on the seed alone, and what does not fit is refused before it starts."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.data import Dataset, ImageSet
from methods.errors import InputError
from methods.standard import Standard
from methods.training import setup, trainer
from methods.training.checkpoint import load_checkpoint
from methods.training.config import Experiment
from methods.training.run_folder import read_manifest
from methods.training.setup import build_method, build_model, check
from methods.training.trainer import train

Make = Callable[..., Experiment]
Crash = Callable[[int], AbstractContextManager[None]]

CPU = torch.device("cpu")


def flat(model: nn.Module) -> Tensor:
    """Return all weights in one vector, a copy."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_initial_weights_depend_on_the_seed_alone(make_experiment: Make, data: Dataset) -> None:
    def initial(method: str, seed: int) -> Tensor:
        experiment = replace(make_experiment(method), seed=seed)
        return flat(build_model(experiment, data))

    state = torch.get_rng_state()
    first = initial("standard", 0)
    torch.rand(1)
    assert torch.equal(first, initial("trades", 0))
    assert not torch.equal(first, initial("standard", 1))
    torch.set_rng_state(state)
    initial("standard", 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_methods_own_weights_depend_on_the_seed_alone(
    make_experiment: Make, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Headed(Standard):
        def __init__(self, config: Any, task: Any) -> None:
            super().__init__(config, task)
            self.head = nn.Linear(3, 3)

    monkeypatch.setattr(setup, "get", lambda name: Headed)
    experiment = make_experiment("standard")
    first = flat(build_method(experiment, data))
    torch.rand(1)
    assert torch.equal(first, flat(build_method(experiment, data)))
    assert not torch.equal(first, flat(build_method(replace(experiment, seed=1), data)))


def test_batch_larger_than_the_data_is_refused(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch"):
        train(make_experiment("jem", {"negatives": {"buffer_size": 200}}, batch_size=200), data, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_what_a_method_refuses_is_refused_before_anything_is_written(
    make_experiment: Make, data: Dataset, tmp_path: Path
) -> None:
    refused = make_experiment("jem", batch_size=64)
    for attempt in (lambda: check(refused, data), lambda: train(refused, data, tmp_path, CPU)):
        with pytest.raises(InputError, match="buffer_size is 40, fewer than the 64 chains of a step"):
            attempt()
    assert not list(tmp_path.iterdir())
    smaller = replace(refused, data=replace(refused.data, density_batch=40))
    check(smaller, data)


def test_what_does_not_decay_is_recorded(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    """adversarial-training.md, trap 15."""
    manifest = read_manifest(train(make_experiment("standard", epochs=1), data, tmp_path, CPU))
    assert manifest["undecayed"] == []
    folder = train(make_experiment("standard", epochs=1, decay_norm=False), data, tmp_path, CPU)
    spared = read_manifest(folder)["undecayed"]
    assert "model.network.norm.weight" in spared
    assert all(".norm" in name for name in spared)


def test_generated_images_are_trained_on_beside_the_real_ones(
    make_experiment: Make, data: Dataset, tmp_path: Path
) -> None:
    generated = ImageSet(torch.full((10, *data.image_shape), 255, dtype=torch.uint8), torch.zeros(10).long())
    experiment = make_experiment("standard", epochs=2)
    both = replace(data, generated=generated)
    assert experiment.digest(both.digests) != experiment.digest(data.digests)
    training = trainer._Training(experiment, both, tmp_path, CPU)
    x, y = training.labelled.batch(0)
    white = (x[:, :, 1:-1, 1:-1] == 1).flatten(1).all(1)
    assert int(white.sum()) == int(0.7 * len(x))
    assert torch.equal(y[white], torch.zeros(int(white.sum())).long())
    plain, mixed = (load_checkpoint(train(experiment, d, tmp_path, CPU), "last").model for d in (data, both))
    assert not torch.equal(flat(plain), flat(mixed))
