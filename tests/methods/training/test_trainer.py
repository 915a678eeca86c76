"""The training loop: exact resume, selection, and failures that leave a record."""

import json
import multiprocessing
import random
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
from methods.training.guard import Guard
from methods.training.method import Batch, Inner, Losses
from methods.training.pictures import load_buffer
from methods.training.trainer import (
    TrainingFailed,
    check,
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
    papers = ("ebjdat", "jempp", "standard", "trades")
    context.set_forkserver_preload(
        ["methods.training.trainer", *(f"methods.{paper}" for paper in papers), "torch._dynamo"]
    )
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


COLLAPSING = {"lr": 30.0, "schedule": "one-cycle", "warmup_steps": 16}
"""A rate that grows until the loss of standard training explodes, around step 12."""
ROLLBACK = Guard(action="rollback", loss_size=20.0, lr_factor=0.01)


@pytest.mark.parametrize(
    ("method", "settings", "guard"),
    [("trades", {}, Guard()), ("ebjdat", {}, Guard()), ("standard", COLLAPSING, ROLLBACK)],
)
def test_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    method: str,
    settings: dict[str, Any],
    guard: Guard,
    make_experiment: Make,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The number of threads can change the last bit of a sum.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    experiment = replace(make_experiment(method, checkpoint_seconds=0.0, **settings), guard=guard)
    straight = train(experiment, digits, tmp_path / "straight", CPU)
    expected = results(straight)
    assert (read_manifest(straight)["restarts"] > 0) == (guard == ROLLBACK)

    steps = sorted(random.sample(range(1, STEPS - 4), 3))
    where = [kill_at(step, experiment, digits, tmp_path / "killed") for step in steps]
    print("killed:", where)
    folder = run_folder(tmp_path / "killed", experiment, digits)
    assert not (folder / "manifest.json").exists()
    assert train(experiment, digits, tmp_path / "killed", CPU) == folder
    found = results(folder)
    assert [name for name in RESULTS if found[name] != expected[name]] == [], where
    found, wanted = read_manifest(folder), read_manifest(straight)
    assert found["steps"] == STEPS
    assert found["interventions"] == wanted["interventions"]


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
        ("lbgat", {"gradient_clip": 0.5}),
        ("las_at", {}),
        (
            "standard",
            {
                "ema": 0.9,
                "ema_warmup": 0.2,
                "schedule": "one-cycle",
                "warmup_steps": 6,
                "epoch_schedule": True,
                "momentum_cycle": [0.85, 0.95],
                "decay_norm": False,
                "first_statistics": True,
                "select_attack": {"steps": 2, "objective": "margin"},
            },
        ),
        ("dhat", {}),
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
    options = {"las_at": {"every": 2, "optimizer": {"momentum": 0.9}, "choices": {"steps": [1, 2]}}}.get(method)
    experiment = make_experiment(method, options, checkpoint_seconds=0.0, **settings)
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
    assert manifest["error"] == "The loss and gradient_norm of tiny_standard became non-finite at step 8."
    step, stop = lines(folder)[-2:]
    assert (step["step"], step["loss"], step["natural"] > 0, step["nonfinite"]) == (8, None, True, 2)
    assert stop["event"] == "stop"
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
    assert {"loss", "clean", "robust", "epoch", "delta_max", "gradient_norm", "nonfinite"} < set(steps[0])
    assert steps[-1]["clean"] < steps[0]["clean"] - 0.1


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


def test_first_statistics_are_those_of_the_first_batch(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    """imrahulr/adversarial_robustness_pytorch: momentum 1 in the first step, as Haiku begins."""
    found = {}
    for first_statistics in (False, True):
        experiment = make_experiment("standard", first_statistics=first_statistics)
        training = trainer._Training(experiment, data, tmp_path, CPU)
        training.model.train()
        layer = next(module for module in training.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
        for step in range(2):
            training._step(step)
            assert layer.momentum == 0.1
            found[first_statistics, step] = layer.running_mean.clone() if layer.running_mean is not None else None
    torch.testing.assert_close(found[False, 0], 0.1 * found[True, 0])
    assert not torch.equal(found[True, 1], found[True, 0])


def test_what_does_not_decay_is_recorded(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    """adversarial-training.md, trap 15."""
    manifest = trainer.read_manifest(train(make_experiment("standard", epochs=1), data, tmp_path, CPU))
    assert manifest["undecayed"] == []
    folder = train(make_experiment("standard", epochs=1, decay_norm=False), data, tmp_path, CPU)
    spared = trainer.read_manifest(folder)["undecayed"]
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


def test_methods_own_weights_depend_on_the_seed_alone(
    make_experiment: Make, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Headed(Standard):
        def __init__(self, config: Any, task: Any) -> None:
            super().__init__(config, task)
            self.head = nn.Linear(3, 3)

    monkeypatch.setattr(trainer, "get", lambda name: Headed)
    experiment = make_experiment("standard")
    first = flat(trainer.build_method(experiment, data))
    torch.rand(1)
    assert torch.equal(first, flat(trainer.build_method(experiment, data)))
    assert not torch.equal(first, flat(trainer.build_method(replace(experiment, seed=1), data)))


def test_replay_buffer_is_shown_measured_and_saved(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    options = {"negatives": {"buffer_size": 40, "sampler": {"steps": 1}}}
    experiment = make_experiment("jempp", options, epochs=3, validate_every=2)
    folder = train(experiment, data, tmp_path, CPU)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["epoch-0002.png", "epoch-0003.png"]
    looked = [line for line in lines(folder) if "validation" in line]
    last = lines(folder)[-2]
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
    monkeypatch.setattr(trainer._Training, "_look", lambda *arguments: {})
    blind = load_file(train(experiment, data, tmp_path / "blind", CPU) / "weights.safetensors")
    assert all(torch.equal(looked[name], blind[name]) for name in looked)


def test_large_replay_buffers_are_looked_at_in_part(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr(trainer, "_SAMPLES", 30)
    monkeypatch.setattr(trainer, "write_grid", lambda path, images, labels, classes: shown.append(images))
    training = trainer._Training(make_experiment("jem"), data, tmp_path, CPU)
    samples = torch.rand(100, 1, 8, 8)
    first, again = (training._look(epoch, samples) for epoch in (1, 2))
    assert first == again
    assert torch.equal(shown[0], shown[1])
    assert len(shown[0].flatten(1).unique(dim=0)) == 30


def test_log_shorter_than_at_the_checkpoint_is_refused(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("standard", checkpoint_seconds=0.0)
    interrupt(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train(experiment, data, tmp_path, CPU)
    log = run_folder(tmp_path, experiment, data) / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(
        InputError, match=r"log\.jsonl is shorter than at the last checkpoint; delete .* to train again"
    ):
        train(experiment, data, tmp_path, CPU)


def test_flight_record_of_an_energy_based_method(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    folder = train(make_experiment("ebjdat", epochs=1), data, tmp_path, CPU)
    steps = [line for line in lines(folder) if "lr" in line]
    energies = {"energy_data", "energy_samples", "energy_clean", "energy_adv"}
    accuracies = {"accuracy_clean", "accuracy_adv", "clean", "adversarial"}
    buffer = {"buffer_mean", "buffer_std", "buffer_saturated", "clip_rate"}
    others = {"step", "epoch", "attempt", "lr", "loss", "gradient_norm", "delta_max", "inner_nonfinite", "nonfinite"}
    assert set(steps[0]) == energies | accuracies | buffer | others
    assert [(line["step"], line["attempt"], line["nonfinite"]) for line in steps] == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert all(0 < line["delta_max"] <= 0.15 + 1e-6 for line in steps)
    assert all(0 <= line["accuracy_adv"] <= 100 for line in steps)
    assert steps[0]["loss"] == pytest.approx(
        steps[0]["energy_data"]
        - steps[0]["energy_samples"]
        + 0.1 * (steps[0]["energy_data"] - steps[0]["energy_adv"])
        + steps[0]["clean"]
        + steps[0]["adversarial"],
        rel=1e-4,
    )


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
