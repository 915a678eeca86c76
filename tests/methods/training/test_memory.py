"""A full device: attacks in eval mode are taken apart, on the record; in train mode a sentence says what to lower."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from methods.backbones import Classifier
from methods.data import Dataset
from methods.errors import InputError
from methods.primitives.modes import DeviceFull, frozen, mode
from methods.training.config import Experiment
from methods.training.memory import fitted
from methods.training.method import Batch, Method
from methods.training.optim import Updater
from methods.training.run_folder import run_folder
from methods.training.trainer import train

CPU = torch.device("cpu")


@pytest.fixture
def device_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let the CPU behave as a device with room for the graphs of so many images; return the sizes of all passes."""

    def limit(eval_rows: int, train_rows: int = 10**6) -> list[int]:
        passes: list[int] = []
        run = Classifier._cast

        def cast(self: Classifier, function: Any, x: Tensor) -> Tensor:
            passes.append(len(x))
            if torch.is_grad_enabled() and len(x) > (train_rows if self.training else eval_rows):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return run(self, function, x)

        monkeypatch.setattr(Classifier, "_cast", cast)
        return passes

    return limit


def step(method: Method, model: Classifier, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Make one step of SGD; return the weights after it and the terms."""
    update = Updater(torch.optim.SGD(model.parameters(), 0.1), None)
    terms = method.step(model, batch, update).terms
    return [weight.detach().clone() for weight in model.parameters()], terms


@pytest.mark.parametrize("name", ["trades", "ebjdat", "jeat"])
def test_a_full_device_changes_a_step_by_rounding_and_its_record_by_a_line(
    name: str,
    device_for: Callable[..., list[int]],
    make_method: Callable[..., Method],
    trained: Classifier,
    batch: Batch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In float64, where no sign of the attack turns.
    trained.double()
    assert batch.x_density is not None
    batch = replace(batch, x=batch.x.double(), x_density=batch.x_density.double())
    state = {key: value.clone() for key, value in trained.state_dict().items()}
    wanted, terms = step(make_method(name, density_batch=12).double(), trained.train(), batch)
    assert "attack_rows" not in terms
    trained.load_state_dict(state)
    passes = device_for(5)
    method = make_method(name, density_batch=12).double()
    got, split = step(method, trained, batch)
    assert split["attack_rows"] == method.attack_rows == 4
    assert 4 in passes
    assert trained.rows is None
    # Logits and losses alone are float32: a gradient is the sum of 16 images, each rounded by 2^-24.
    torch.testing.assert_close(got, wanted, rtol=16 * 2**-24, atol=16 * 2**-24)
    assert capsys.readouterr().err == "The device is full: attacks in eval mode now run on 4 images at a time.\n"
    step(method, trained, batch)
    assert capsys.readouterr().err == ""


def test_a_run_says_in_log_and_manifest_that_it_was_split(
    device_for: Callable[..., list[int]],
    digits: Dataset,
    make_experiment: Callable[..., Experiment],
    tmp_path: Path,
) -> None:
    device_for(8)
    experiment = make_experiment("trades", epochs=1, select_attack={"steps": 1})
    # Validation is the trainer's own business, on images without number here.
    without = Dataset(
        digits.name,
        digits.classes,
        digits.train,
        digits.validation.select(slice(0)),
        digits.test,
        digits.mean,
        digits.std,
    )
    folder = train(experiment, without, tmp_path, CPU)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["attack_rows"] for line in lines if "loss" in line] == [8] * 3
    assert json.loads((folder / "manifest.json").read_text())["attack_rows"] == 8


def test_without_room_for_the_training_batch_a_sentence_names_the_setting(
    device_for: Callable[..., list[int]],
    digits: Dataset,
    make_experiment: Callable[..., Experiment],
    tmp_path: Path,
) -> None:
    device_for(10**6, train_rows=20)
    experiment = make_experiment("jempp", epochs=1)
    with pytest.raises(InputError, match=r"no memory for a training step of 32 images: lower train\.batch_size\.$"):
        train(experiment, digits, tmp_path, CPU)
    assert not (run_folder(tmp_path, experiment, digits) / "manifest.json").exists()


def test_train_mode_is_never_taken_apart(
    device_for: Callable[..., list[int]], make_method: Callable[..., Method], trained: Classifier, batch: Batch
) -> None:
    passes = device_for(10**6, train_rows=5)
    with pytest.raises(DeviceFull) as error:
        step(make_method("jempp", density_batch=12), trained.train(), batch)
    assert error.value.training
    assert passes == [12]


def test_a_single_image_is_the_least(trained: Classifier) -> None:
    tries: list[int | None] = []

    def inner() -> None:
        tries.append(trained.rows)
        with frozen(trained):
            raise torch.OutOfMemoryError

    with pytest.raises(DeviceFull):
        fitted(inner, trained, images=6, rows=None)
    assert tries == [None, 3, 1]
    assert trained.rows is None


def test_what_did_not_fit_is_gone_before_the_next_try(trained: Classifier) -> None:
    held: list[StorageWeakRef] = []
    freed: list[bool] = []

    def inner() -> Tensor:
        freed.extend(reference.expired() for reference in held)
        with frozen(trained):
            x = torch.ones(4, 1, 8, 8, requires_grad=True)
            hidden = x.exp()
            held.append(StorageWeakRef(hidden.untyped_storage()))
            if trained.rows != 1:
                raise torch.OutOfMemoryError
            return hidden.detach()

    gc.disable()
    try:
        _, rows = fitted(inner, trained, images=4, rows=None)
    finally:
        gc.enable()
    assert rows == 1
    assert freed == [True, True, True]


def test_the_innermost_mode_is_the_one_that_counts(trained: Classifier) -> None:
    with pytest.raises(DeviceFull) as error, mode(trained, training=False), mode(trained, training=True):
        raise torch.OutOfMemoryError
    assert error.value.training
