"""The training loop: exact resume, selection, and failures that leave a record."""

import json
import multiprocessing
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from methods.backbones import Classifier
from methods.data import Dataset, ImageSet
from methods.errors import InputError
from methods.standard import Standard
from methods.training import trainer
from methods.training.checkpoint import load_checkpoint
from methods.training.config import Experiment
from methods.training.method import Batch, Inner, Losses
from methods.training.trainer import (
    TrainingFailed,
    read_manifest,
    run_folder,
    select_device,
    train,
    validate,
)

Make = Callable[..., Experiment]

CPU = torch.device("cpu")
RESULTS = ("weights.safetensors", "best.safetensors", "log.jsonl", "config.yaml")
STEPS = 18


class Poisoned(ImageSet):
    """Images that only their digest may be asked for: the test split during training."""

    def select(self, index: Any) -> Any:
        raise AssertionError("training selected test images")

    def unit(self, index: Any = None) -> Any:
        raise AssertionError("training looked at test images")

    def to(self, device: Any) -> Any:
        raise AssertionError("training moved test images")


@pytest.fixture
def data(digits: Dataset) -> Dataset:
    """Return the digits with a test split that nobody may look at."""
    return replace(digits, test=Poisoned(digits.test.images, digits.test.labels))


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def flat(model: nn.Module) -> Tensor:
    """Return all weights in one vector, a copy."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def validations(folder: Path) -> dict[int, dict[str, float]]:
    return {line["epoch"]: line["validation"] for line in lines(folder) if "validation" in line}


def kill_at(step: int, experiment: Experiment, data: Dataset, runs: Path) -> str:
    """Train in a process of its own and kill it some moments after it has logged ``step``; say where.

    The processes are forked from a server that has imported torch once.
    """
    context = multiprocessing.get_context("forkserver")
    # An optimiser imports torch._dynamo when it is made, which takes seconds.
    context.set_forkserver_preload(["methods.training.trainer", "methods.ebjdat", "methods.trades", "torch._dynamo"])
    process = context.Process(target=train, args=(experiment, replace(data), runs, CPU))
    process.start()
    log = run_folder(runs, experiment, data) / "log.jsonl"
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count('"lr"') >= step:
            # A step takes some 10 ms: the moment falls anywhere in it, the writing of files included.
            time.sleep(random.random() * 0.03)
            break
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the process ended before it could be killed"
    return f"asked for step {step}, {log.read_text().count('lr')} steps in the log"


@pytest.mark.parametrize("method", ["trades", "ebjdat"])
def test_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    method: str, make_experiment: Make, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number of threads can change the last bit of a sum.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    experiment = make_experiment(method, checkpoint_seconds=0.0)
    expected = results(train(experiment, digits, tmp_path / "straight", CPU))

    steps = sorted(random.sample(range(1, STEPS - 4), 3))
    where = [kill_at(step, experiment, digits, tmp_path / "killed") for step in steps]
    print("killed:", where)
    folder = run_folder(tmp_path / "killed", experiment, digits)
    assert not (folder / "manifest.json").exists()
    assert train(experiment, digits, tmp_path / "killed", CPU) == folder
    found = results(folder)
    assert [name for name in RESULTS if found[name] != expected[name]] == [], where
    assert read_manifest(folder)["steps"] == STEPS


class Interrupted(Exception):
    """Stands for a crash inside a process."""


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = trainer._Training._step

    def interrupted(self: Any, number: int) -> Any:
        if number == step:
            raise Interrupted
        return original(self, number)

    monkeypatch.setattr(trainer._Training, "_step", interrupted)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("standard", {"ema": 0.9, "momentum": 0.9, "schedule": "cosine", "warmup_steps": 4}),
        ("standard", {"optimizer": "adam", "lr": 0.01, "validate_every": 2, "gradient_clip": 0.5}),
        ("pgd_at", {"schedule": "one-cycle", "warmup_steps": 6, "drop_last": True}),
    ],
)
def test_resume_restores_every_part_of_the_state(
    method: str,
    settings: dict[str, Any],
    make_experiment: Make,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make_experiment(method, checkpoint_seconds=0.0, **settings)
    expected = results(train(experiment, data, tmp_path / "straight", CPU))
    for step in (5, 11):
        with monkeypatch.context() as patch:
            interrupt(patch, step)
            with pytest.raises(Interrupted):
                train(experiment, data, tmp_path / "resumed", CPU)
    folder = train(experiment, data, tmp_path / "resumed", CPU)
    assert results(folder) == expected


def test_resume_goes_back_to_the_last_checkpoint(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps after the last checkpoint are done again, and leave one line each in the log."""
    straight = make_experiment("standard", checkpoint_seconds=1e9)
    expected = results(train(straight, data, tmp_path / "straight", CPU))
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(Interrupted):
            train(make_experiment("standard", checkpoint_seconds=0.0), data, tmp_path / "r", CPU)
    with monkeypatch.context() as patch:
        interrupt(patch, 11)
        with pytest.raises(Interrupted):
            train(straight, data, tmp_path / "r", CPU)
    folder = run_folder(tmp_path / "r", straight, data)
    assert torch.load(folder / "state.pt")["done"] == 4
    assert results(train(straight, data, tmp_path / "r", CPU)) == expected
    assert [line["step"] for line in lines(folder) if "lr" in line] == list(range(1, STEPS + 1))


class Noisy(Standard):
    """Draws from torch's global generator, as dropout does."""

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        noise = 0.1 * torch.randn(batch.x.shape)
        return super().loss(model, replace(batch, x=batch.x + noise), inner)


def test_resume_restores_the_global_generator(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "get", lambda name: Noisy)
    experiment = make_experiment("standard", epochs=2, checkpoint_seconds=0.0)
    expected = results(train(experiment, data, tmp_path / "straight", CPU))
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(Interrupted):
            train(experiment, data, tmp_path / "resumed", CPU)
    torch.manual_seed(1)
    assert results(train(experiment, data, tmp_path / "resumed", CPU)) == expected


def test_resume_remembers_the_best_epoch(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("standard", epochs=3, checkpoint_seconds=0.0)
    monkeypatch.setattr(trainer, "validate", Script([(90.0, 50.0), (90.0, 40.0), (90.0, 30.0)]))
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(Interrupted):
            train(experiment, data, tmp_path, CPU)
    folder = train(experiment, data, tmp_path, CPU)
    assert load_checkpoint(folder).metadata["epoch"] == 1
    assert read_manifest(folder)["best"] == {
        "score": 50.0,
        "epoch": 1,
        "validation": {"clean": 90.0, "robust": 50.0},
    }


@pytest.mark.parametrize("damage", ["truncated", "foreign", "another run's"])
def test_state_that_cannot_be_resumed_is_refused(
    damage: str, make_experiment: Make, data: Dataset, tmp_path: Path
) -> None:
    experiment = make_experiment("standard")
    path = run_folder(tmp_path, experiment, data) / "state.pt"
    path.parent.mkdir(parents=True)
    if damage == "truncated":
        path.write_bytes(b"PK\x03\x04")
    else:
        torch.save({"done": 3} if damage == "foreign" else {"model": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match="delete it to train from the start") as caught:
        train(experiment, data, tmp_path, CPU)
    assert "\n" not in str(caught.value)
    assert [item.name for item in path.parent.iterdir()] == ["state.pt"]


def forbidden(*arguments: Any, **keywords: Any) -> None:
    raise AssertionError("trained again")


def test_finished_run_is_not_repeated(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("standard", epochs=1)
    folder = train(experiment, data, tmp_path, CPU)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(times) == {*RESULTS, "manifest.json"}
    monkeypatch.setattr(trainer, "_Training", forbidden)
    assert train(experiment, data, tmp_path, CPU) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    with pytest.raises(AssertionError, match="trained again"):
        train(replace(experiment, seed=1), data, tmp_path, CPU)


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


class Diverging(Standard):
    """Its loss is infinite from optimiser step 7 on, counted from 0."""

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        losses = super().loss(model, batch, inner)
        factor = float("inf") if batch.step >= 7 else 1.0
        return Losses(losses.total * factor, {"natural": losses.total.detach()})


@pytest.mark.parametrize("log_every", [1, 100])
def test_non_finite_loss_stops_with_a_record(
    log_every: int, make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("standard", log_every=log_every)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "get", lambda name: Diverging)
        with pytest.raises(TrainingFailed, match="non-finite at step 8"):
            train(experiment, data, tmp_path, CPU)
    folder = run_folder(tmp_path, experiment, data)
    manifest = read_manifest(folder)
    assert (manifest["status"], manifest["steps"]) == ("failed", 8)
    assert re.fullmatch(
        r"The loss \(loss inf, natural [\d.]+\) of tiny_standard became non-finite at step 8\.", manifest["error"]
    )
    assert lines(folder)[-1]["step"] == 8
    assert not (folder / "weights.safetensors").exists()

    monkeypatch.setattr(trainer, "_Training", forbidden)
    with pytest.raises(TrainingFailed, match=r"at step 8\. Delete .* to train it again"):
        train(experiment, data, tmp_path, CPU)


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
    found = validate(trained, data.train, trainer.ThreatModel.parse("Linf:0.15"), 0, CPU)
    with torch.no_grad():
        correct = trained.eval()(data.train.unit()).argmax(1) == data.train.labels
    assert found["clean"] == pytest.approx(100 * correct.float().mean().item())
    assert found["robust"] < found["clean"] - 20
    nowhere = validate(trained, data.train, trainer.ThreatModel.parse("Linf:0"), 0, CPU)
    assert nowhere["robust"] == nowhere["clean"] == found["clean"]


def test_training_learns_and_logs(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    folder = train(make_experiment("trades", log_every=2), data, tmp_path, CPU)
    steps = [line for line in lines(folder) if "lr" in line]
    # Every second step, and the last one of each epoch of three.
    assert [line["step"] for line in steps[:4]] == [2, 3, 4, 6]
    assert {"loss", "natural", "robust", "epoch"} < set(steps[0])
    assert steps[-1]["natural"] < steps[0]["natural"] - 0.1


def test_initial_weights_depend_on_the_seed_alone(make_experiment: Make, data: Dataset) -> None:
    def initial(method: str, seed: int) -> Tensor:
        experiment = replace(make_experiment(method), seed=seed)
        return flat(trainer.build_model(experiment, data))

    state = torch.get_rng_state()
    first = initial("standard", 0)
    torch.rand(1)
    assert torch.equal(first, initial("trades", 0))
    assert not torch.equal(first, initial("standard", 1))
    torch.set_rng_state(state)
    initial("standard", 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_moving_average_of_weights_and_copy_of_buffers(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    """adversarial-training.md, trap 8."""
    experiment = make_experiment("standard", ema=0.9)
    training = trainer._Training(experiment, data, tmp_path, CPU)
    training.model.train()
    assert training.ema is not None
    averaged = training.ema.module
    expected = None
    for step in range(4):
        training._step(step)
        weights = flat(training.model)
        # The first average is the first weights.
        expected = weights if expected is None else 0.9 * expected + 0.1 * weights
        torch.testing.assert_close(flat(averaged), expected)
    assert not torch.allclose(flat(averaged), flat(training.model))
    buffers = dict(averaged.named_buffers())
    for name, value in training.model.named_buffers():
        assert torch.equal(buffers[name], value), name
        assert buffers[name].data_ptr() != value.data_ptr(), name


def test_moving_average_is_what_is_saved(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    plain = load_checkpoint(train(make_experiment("standard", epochs=2), data, tmp_path, CPU), "last").model
    averaged = load_checkpoint(train(make_experiment("standard", epochs=2, ema=0.9), data, tmp_path, CPU), "last").model
    assert (flat(plain) - flat(averaged)).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["pgd_at", "ebjdat"])
def test_bf16_trains_and_its_checkpoint_gives_float32(
    method: str, make_experiment: Make, data: Dataset, tmp_path: Path
) -> None:
    folder = train(make_experiment(method, epochs=2, precision="bf16"), data, tmp_path, CPU)
    assert read_manifest(folder)["precision"] == "bf16"
    state = load_file(folder / "weights.safetensors")
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    model = load_checkpoint(folder, "last").model
    logits = model(data.validation.unit())
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    exact = train(make_experiment(method, epochs=2, precision="float32"), data, tmp_path, CPU)
    other = load_file(exact / "weights.safetensors")
    assert any(not torch.equal(state[name], other[name]) for name in state)


def test_batch_larger_than_the_data_is_refused(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch"):
        train(make_experiment("ebjdat", batch_size=200), data, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_full_disk_while_logging(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer._Training, "_loop", full)
    with pytest.raises(InputError, match=r"Cannot write .*log\.jsonl: .*No space left on device"):
        train(make_experiment("standard"), data, tmp_path, CPU)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "mps", "meta", "cpu cuda"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(InputError, match=r"auto, cpu, cuda or cuda:N") as caught:
        select_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_asked_for_and_absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f'"{name}" was asked for'):
        select_device(name)
    assert select_device("auto") == select_device("cpu") == CPU


def test_cuda_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("cuda:1") == torch.device("cuda:1")
    assert select_device("auto").type == "cuda"
    with pytest.raises(InputError, match="no such CUDA device"):
        select_device("cuda:2")
