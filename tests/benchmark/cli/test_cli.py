"""The command line: what it refuses, what it merely flags, and what it keeps when something breaks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmark.results.entry import read_entry
from methods.backbones import BackboneConfig, build
from methods.training.checkpoint import save_weights

TINY = ("--device", "cpu", "--set", "backbone.widen=1", "--set", "train.epochs=1", "--set", "train.batch_size=256")
FEW = ("--limit", "20", "--metrics", "clean,pgd20")
RUN = ("run", "--methods", "standard", *TINY, *FEW)

ROOT = Path(__file__).resolve().parents[3]

GOOD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, pixels=64):
        super().__init__()
        self.linear = nn.Linear(pixels, num_classes)
    def forward(self, x):
        return self.linear(x.flatten(1))

class Probabilities(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)

class Noisy(Net):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))

def good():
    torch.manual_seed(0)
    return Net().eval()

def training():
    return good().train()

def probabilities():
    return Probabilities().eval()

def noisy():
    return Noisy().eval()

def broken():
    raise OSError("no such\\nluck")

def nothing():
    return None

def seven():
    return Net(7).eval()

def other_pixels():
    return Net(pixels=3072).eval()

number = 5
"""


def files(folder: Path) -> dict[Path, bytes | None]:
    """Return everything below a folder: files with their content, and folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(command: Any, tmp_path: Path) -> Callable[..., str]:
    """Run a command that is to be refused, and return the sentence."""

    def call(*arguments: str | Path) -> str:
        before = files(tmp_path)
        finished = command(*arguments)
        assert finished.status == 2, finished
        assert finished.out == ""
        lines = finished.err.splitlines()
        assert len(lines) == 1, finished.err
        assert lines[0].startswith("Error: ")
        assert files(tmp_path) == before
        return lines[0].removeprefix("Error: ")

    return call


def write_checkpoint(path: Path, num_classes: int = 10, **other: Any) -> Path:
    """Write an untrained checkpoint for digits, its description changed by ``other``."""
    config = BackboneConfig(depth=10, widen=1)
    description = {
        "backbone": {"depth": 10, "widen": 1},
        "num_classes": num_classes,
        "image_shape": [1, 8, 8],
        "mean": [0.5],
        "std": [0.5],
        "recipe": "trades",
        "dataset": "digits",
        "threat": "Linf:0.15",
    }
    state = build(config, num_classes, (1, 8, 8), (0.5,), (0.5,)).state_dict()
    kept = {key: value for key, value in (description | other).items() if value is not None}
    save_weights(path, state, kept)
    return path


def write_arrays(path: Path, **replaced: np.ndarray | None) -> str:
    """Write a small valid .npz with some arrays replaced, or left out, and return its data set's name."""
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {
        "x_train": draw.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": draw.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8),
        "y_test": np.arange(30) % 3,
    }
    kept = {name: value for name, value in (arrays | replaced).items() if value is not None}
    np.savez(path, allow_pickle=False, **kept)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--methods", "standard,tradse"), 'There is no recipe "tradse". Did you mean "trades"?'),
        (("--methods", ","), '"," names nothing.'),
        (("--dataset", "digit"), 'Did you mean "digits"?'),
        (("--dataset", "cifar-10"), 'Did you mean "cifar10"?'),
        (("--dataset", "npz:"), 'No data set is called "npz:"'),
        (("--metrics", "clean,pgd2"), 'Did you mean "pgd20"?'),
        (("--protocol", "digits-linf-v9"), 'Did you mean "digits-linf-v3"?'),
        (("--protocol", "cifar10-linf-8_255-v1"), "is for cifar10, not for digits."),
        (("--protocol", "missing.yaml"), "Cannot read missing.yaml: No such file or directory."),
        (("--config", "missing.yaml"), "Cannot read missing.yaml: No such file or directory."),
        (("--set", "train.epoch=5"), 'Unknown key "train.epoch". Did you mean "epochs"?'),
        (("--set", "trian.epochs=5"), 'Unknown key "trian". Did you mean "train"?'),
        (("--set", "data.augment.flp=true"), 'Unknown key "data.augment.flp". Did you mean "flip"?'),
        (("--set", "backbone.width=2"), 'Unknown key "backbone.width".'),
        (("--set", "options.beta=2"), 'Unknown key "options.beta".'),
        (("--set", "method=tradse"), 'There is no method "tradse". Did you mean "trades"?'),
        (("--set", "seed=5"), '"seed" is no setting; give it with --seeds.'),
        (("--set", "train.epochs"), '--set takes key.sub=value, not "train.epochs".'),
        (("--set", "train.lr=[1"), "is not a YAML value"),
        (("--set", "train.lr=[1\n"), "is not a YAML value"),
        (("--set", "train.epochs=abc"), "\"train.epochs\" is 'abc': Input should be a valid integer"),
        (("--set", "train.epochs=0"), "train.epochs must be at least 1, not 0."),
        (("--set", "train.lr=[1]"), '"train.lr" is [1]: Input should be a valid number'),
        (("--set", "train.lr=2026-01-01"), "which is no plain value."),
        (("--set", "train.lr=.nan"), "train.lr must be finite"),
        (("--set", "train=5"), '"train" must be a mapping of settings, not 5.'),
        (("--set", "data=null"), '"data" must be a mapping of settings, not None.'),
        (("--set", "threat=Linf:8\\255"), '"8\\255" in "Linf:8\\255" is not an eps'),
        (("--set", "threat=8\\255"), '"8\\255" is not a threat model'),
        (("--set", "threat=Linf:-0.1"), "eps must not be negative, got -0.1."),
        (("--set", "threat=Linf:8"), "Did you mean 8/255?"),
        (("--set", "threat=5"), 'The key "threat" is missing or not a text.'),
        (("--set", "backbone.depth=11"), "depth"),
        (("--set", "backbone.architecture=wrm"), 'Did you mean "wrn"?'),
        (("--set", "data.validation=5000"), "data.validation for digits is between 0 and 1496 images, not 5000."),
        (("--set", "data.size=16"), "data.size is for imagefolder:PATH only"),
        (("--set", "train.batch_size=5000", "--set", "train.drop_last=true"), "1397 training images"),
        (("--seeds", "a"), '--seeds takes whole numbers from 0, such as 0,1,2, not "a".'),
        (("--seeds", "0,-1"), '--seeds takes whole numbers from 0, such as 0,1,2, not "0,-1".'),
        (("--seeds", "1.5"), "--seeds takes whole numbers from 0"),
        (("--limit", "0"), "The limit must be at least 1, not 0."),
        (("--limit", "many"), "Invalid value for '--limit'"),
        (("--batch-size", "-3"), "The batch size must be at least 1, not -3."),
        (("--workers", "0"), "--workers must be at least 1, not 0."),
        (("--workers", "1000"), "--workers must be at most 256, not 1000."),
        (("--engine", "rey"), 'There is no engine "rey". Did you mean "ray"? Choose from: local, ray.'),
        (("--address", "auto"), "--address goes with --engine ray."),
        (("--device", "gpu"), 'There is no device "gpu"; use auto, cpu, cuda or cuda:N.'),
        (("--device", "meta"), 'The device "meta" is not supported'),
        (("--which", "worst"), "'worst' is not one of 'best', 'last'"),
        (("--epochs", "5"), "No such option: --epochs"),
        (("more",), "Got unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_run_refuses(refused: Callable[..., str], arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in refused(*RUN, *arguments)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("train: {epoch: 5}", 'Unknown key "train.epoch". Did you mean "epochs"?'),
        ("trian: {epochs: 5}", 'Unknown key "trian". Did you mean "train"?'),
        ("5: 6", 'Unknown key "5".'),
        ("dataset: cifar10", '"dataset" is no setting; give it with --dataset.'),
        ("train: {lr: high}", "\"train.lr\" is 'high': Input should be a valid number"),
        ("train: {milestones: 0.5}", '"train.milestones" is 0.5'),
        ("options: [1]", '"options" must be a mapping of settings, not [1].'),
        ("- train", "mine.yaml must hold a mapping of settings, not list."),
        ("train: {epochs: [", "mine.yaml is not valid YAML"),
        ("threat: 'Linf:8\\255'", "is not an eps; write a fraction like 8/255 or a decimal like 0.5."),
    ],
)
def test_run_refuses_a_file(refused: Callable[..., str], tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    assert complaint in refused(*RUN, "--config", "mine.yaml")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("id: p\nthreat: Linf:0.1\nmetrics: {clan: {}}", 'Did you mean "clean"?'),
        ("id: p\nthreat: Linf:0.1\nmetrics: {pgd20: {step: 5}}", 'Did you mean "steps"?'),
        ("id: p\nthreat: Linf:0.1\nmetrics: {clean: {}}\nshards: 5", 'Did you mean "shard"?'),
        ("id: p\nthreat: Linf:8\\255\nmetrics: {clean: {}, pgd20: {}}", "is not an eps"),
        ("id: p\nthreat: Linf:0.1\nshard: 0\nmetrics: {clean: {}, pgd20: {}}", '"shard" is 0'),
        ("id: p\nthreat: Linf:0.1\nmetrics: {clean: {}}", 'The protocol "p" has no metric "pgd20"'),
    ],
)
def test_run_refuses_a_protocol(refused: Callable[..., str], tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    assert complaint in refused(*RUN, "--protocol", "./mine.yaml")


def test_fresh_process_says_its_one_sentence_and_nothing_else(tmp_path: Path) -> None:
    """What libraries say while they are imported is only seen in a process of its own."""
    command = [sys.executable, "-m", "benchmark", *RUN, "--set", "train.epochs=abc"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith("Error: \"train.epochs\" is 'abc': ")
    assert list(tmp_path.iterdir()) == []


def test_train_needs_methods_and_has_no_metrics(refused: Callable[..., str]) -> None:
    assert "--methods" in refused("train", "--dataset", "digits")
    assert "No such option: --metrics" in refused("train", "--methods", "standard", "--metrics", "clean")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [((), "Missing command."), (("rum",), "No such command 'rum'"), (("list", "method"), 'Did you mean "methods"?')],
)
def test_what_is_no_command_is_refused(refused: Callable[..., str], arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in refused(*arguments)


def test_list_of_ablations_needs_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "benchmark", "list", "ablations"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert {"inner_objective", "weights"} <= set(finished.stdout.split())
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in finished.stderr.splitlines() if "|" in line}
    assert "benchmark" in imported
    assert not {"torch", "pandas", "matplotlib"} & imported


def test_later_recipe_is_checked_before_the_first_is_trained(refused: Callable[..., str]) -> None:
    settings = ("--set", "options.beta=-1")
    assert "options" in refused("run", "--methods", "trades,standard", *TINY, *FEW, *settings)


def test_absent_cuda_is_refused(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    complaint = "was asked for, but this machine offers no such CUDA device."
    checkpoint = write_checkpoint(tmp_path / "a.safetensors")
    for device in ("cuda", "cuda:7"):
        assert complaint in refused(*RUN, "--device", device)
        assert complaint in refused("evaluate", "--checkpoint", checkpoint, *FEW, "--device", device)


ONE = np.ones(60, dtype=np.int64)
FLOATS = np.full((60, 1, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("replaced", "complaint"),
    [
        ({"x_train": None}, 'has no array "x_train"'),
        ({"y_test": None}, 'has no array "y_test"'),
        (
            {"x_train": np.zeros((60, 64), np.uint8), "x_test": np.zeros((30, 64), np.uint8)},
            "must be [N,C,H,W] or [N,H,W,C]",
        ),
        ({"x_train": np.zeros((60, 1, 9, 9), np.uint8)}, "need one type and one image shape"),
        ({"y_train": np.arange(59) % 3}, "differ in length: 60 images and 59 labels."),
        ({"y_train": np.ones((60, 1), np.int64)}, "must be integers [N]"),
        ({"y_train": ONE}, "lacks 0"),
        ({"x_train": FLOATS * 3, "x_test": FLOATS[:30]}, "x_train in"),
        ({"x_train": FLOATS - 1, "x_test": FLOATS[:30]}, "has floats outside [0,1]"),
        ({"x_train": FLOATS * np.nan, "x_test": FLOATS[:30]}, "has floats outside [0,1]"),
    ],
    ids=["no-x", "no-y", "flat", "sizes", "lengths", "labels", "gap", "above", "below", "nan"],
)
def test_arrays_are_refused(
    refused: Callable[..., str], tmp_path: Path, replaced: dict[str, np.ndarray | None], complaint: str
) -> None:
    assert complaint in refused(*RUN, "--dataset", write_arrays(tmp_path / "mine.npz", **replaced))


def test_truncated_and_foreign_arrays_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.npz", tmp_path / "mine.npz"
    write_arrays(whole)
    path.write_bytes(whole.read_bytes()[:2000])
    assert refused(*RUN, "--dataset", f"npz:{path}") == f"{path} is not a readable .npz file."
    path.write_text("not an archive")
    assert refused(*RUN, "--dataset", f"npz:{path}") == f"{path} is not a readable .npz file."
    path.unlink()
    assert refused(*RUN, "--dataset", f"npz:{path}") == f"There is no file {path}."


def test_threat_of_arrays_must_be_one(refused: Callable[..., str], tmp_path: Path) -> None:
    """Here the protocol leaves the threat model open and takes the setting's."""
    arguments = (*RUN, "--dataset", write_arrays(tmp_path / "mine.npz"), "--set")
    assert "is not an eps" in refused(*arguments, "threat=Linf:8\\255")
    assert "eps must not be negative" in refused(*arguments, "threat=Linf:-1/255")
    assert '"5" is not a threat model' in refused(*arguments, "threat=5")


def test_set_too_small_for_the_density_batch_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    dataset = write_arrays(tmp_path / "mine.npz")
    small = (
        "--set",
        "data.validation=6",
        "--set",
        "backbone.depth=10",
        "--set",
        "options.host_options.negatives.buffer_size=300",
        "--dataset",
        dataset,
    )
    assert "54 training images" in refused("run", "--methods", "ebjdat", *TINY, *FEW, *small)


def test_empty_image_folder_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    arguments = (*RUN, "--dataset", f"imagefolder:{folder}")
    assert f"there is no {folder / 'train'}." in refused(*arguments)
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    assert refused(*arguments) == f"{folder / 'train'} needs a folder for each of at least two classes."
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir()
    assert refused(*arguments) == f"{folder / 'train' / 'cat'} holds no images."


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Give one of --checkpoint PATH, --model FILE:FACTORY and --robustbench MODEL_ID."),
        (
            ("--checkpoint", "a", "--model", "b.py:c"),
            "Give one of --checkpoint PATH, --model FILE:FACTORY and --robustbench MODEL_ID.",
        ),
        (("--checkpoint", "digits", "--weights", "b.pt"), "--weights goes with --model FILE:FACTORY."),
        (
            ("--robustbench", "a", "--model", "b.py:c"),
            "Give one of --checkpoint PATH, --model FILE:FACTORY and --robustbench MODEL_ID.",
        ),
        (("--robustbench", "a", "--weights", "b.pt"), "--weights goes with --model FILE:FACTORY."),
        (("--model", "b.py:c", "--model-dir", "zoo"), "--model-dir goes with --robustbench MODEL_ID."),
        (("--checkpoint", "missing"), "There is no checkpoint at missing."),
        (("--checkpoint", "."), "There is no checkpoint at best.safetensors."),
        (("--model", "model.py:good"), "Name the data set with --dataset NAME"),
    ],
)
def test_evaluate_needs_one_subject(refused: Callable[..., str], arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in refused("evaluate", *FEW, "--json", "out.json", *arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--threat", "Linf:8\\255"), '"8\\255" in "Linf:8\\255" is not an eps'),
        (("--threat", "8/255"), '"8/255" is not a threat model; write "Linf:8/255" or "L2:0.5".'),
        (("--threat", "Linf:-0.1"), "eps must not be negative, got -0.1."),
        (("--threat", "L1:0.1"), '"L1:0.1" is not a threat model'),
        (("--dataset", "digit"), 'Did you mean "digits"?'),
        (("--metrics", "pgd2"), 'Did you mean "pgd20"?'),
        (("--protocol", "digits-linf"), 'Did you mean "digits-linf-v3"?'),
        (("--protocol", "cifar10-linf-8_255-v1"), "is for cifar10, not for digits."),
        (("--limit", "0"), "The limit must be at least 1, not 0."),
        (("--batch-size", "0"), "The batch size must be at least 1, not 0."),
        (("--set", "data.size=abc"), "\"data.size\" is 'abc'"),
        (("--set", "data=5"), '"data" must be a mapping of settings, not 5.'),
        (("--set", "train.epochs=5"), 'evaluate takes --set data.size=N and no other setting, not "train.epochs".'),
        (("--set", "threat=8\\255"), 'evaluate takes --set data.size=N and no other setting, not "threat".'),
    ],
)
def test_evaluate_refuses(
    refused: Callable[..., str], tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "a.safetensors")
    assert complaint in refused("evaluate", "--checkpoint", checkpoint, *FEW, "--json", "out.json", *arguments)


def test_damaged_and_foreign_checkpoints_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arguments = ("evaluate", "--checkpoint", path, *FEW, "--json", "out.json")
    whole = write_checkpoint(path).read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"{path} is truncated or no safetensors file" in refused(*arguments)
    torch.save({"weight": torch.zeros(3)}, path)
    assert f"{path} is truncated or no safetensors file" in refused(*arguments)
    save_file({"weight": torch.zeros(3)}, path)
    assert f"{path} was not written by this project" in refused(*arguments)
    write_checkpoint(path, backbone={"depth": 16, "widen": 1})
    assert f"The weights in {path} do not fit the backbone the file describes" in refused(*arguments)
    write_checkpoint(path, backbone=None)
    assert f"The weights in {path} do not fit the backbone the file describes" in refused(*arguments)
    write_checkpoint(path, dataset=None)
    assert "Name the data set with --dataset NAME" in refused(*arguments)


def test_checkpoint_for_other_images_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    seven = write_checkpoint(tmp_path / "seven.safetensors", 7)
    assert refused("evaluate", "--checkpoint", seven, *FEW) == (
        "trades takes images [1, 8, 8] of 7 classes, but digits has images [1, 8, 8] of 10."
    )
    ten = write_checkpoint(tmp_path / "ten.safetensors")
    dataset = write_arrays(tmp_path / "mine.npz")
    complaint = refused("evaluate", "--checkpoint", ten, "--dataset", dataset, *FEW)
    assert "of 10 classes, but" in complaint
    assert "of 3." in complaint


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("model.py", 'A model is named "FILE.py:FACTORY", "package.module:FACTORY" or "timm:NAME", not "model.py".'),
        ("missing.py:good", "There is no file missing.py."),
        ("no_such_package:good", 'The module "no_such_package" does not import'),
        ("model.py:god", 'model.py has no "god". Did you mean "good"?'),
        ("model.py:number", "is no function that makes a model"),
        ("model.py:broken", "model.py:broken failed to make a model: OSError: no such luck."),
        ("model.py:nothing", "model.py:nothing returned no torch.nn.Module"),
        ("model.py:seven", "The model's outputs are [16, 7]; digits wants logits [16, 10]."),
        ("model.py:other_pixels", "The model does not classify images [16, 1, 8, 8]"),
        ("syntax.py:good", "syntax.py does not load: SyntaxError"),
    ],
)
def test_broken_own_model_is_refused(refused: Callable[..., str], tmp_path: Path, spec: str, complaint: str) -> None:
    (tmp_path / "model.py").write_text(GOOD)
    (tmp_path / "syntax.py").write_text("def good(:")
    assert complaint in refused("evaluate", "--model", spec, "--dataset", "digits", *FEW, "--json", "out.json")


def test_broken_own_weights_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(GOOD)
    path = tmp_path / "weights.pt"
    arguments = ("evaluate", "--model", "model.py:good", "--weights", path, "--dataset", "digits", *FEW)
    assert refused(*arguments) == f"There is no weights file {path}."
    torch.save({"linear.weight": torch.zeros(10, 64)}, path)
    assert 'lack "linear.bias" (1 such keys).' in refused(*arguments)
    torch.save({"linear.weight": torch.zeros(7, 64), "linear.bias": torch.zeros(7)}, path)
    assert "do not fit the model" in refused(*arguments)
    path.write_bytes(path.read_bytes()[:300])
    assert "truncated" in refused(*arguments) or "no weights file" in refused(*arguments)


@pytest.mark.parametrize(
    ("factory", "flags"),
    [
        ("good", []),
        ("training", ["the model was in training mode"]),
        ("probabilities", ["outputs look like probabilities, not logits"]),
        ("noisy", ["two forward passes on the same images differ"]),
    ],
)
def test_odd_model_is_measured_and_flagged(command: Any, tmp_path: Path, factory: str, flags: list[str]) -> None:
    (tmp_path / "model.py").write_text(GOOD)
    subject = ("--model", f"model.py:{factory}", "--dataset", "digits", "--device", "cpu")
    finished = command("evaluate", *subject, *FEW, "--json", "out.json")
    assert finished.status == 0, finished.err
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["subject_flags"]) == len(flags)
    for found, flag in zip(result["subject_flags"], flags, strict=True):
        assert found.startswith(flag)
        assert flag.split()[0] in finished.out
    assert {"clean", "pgd20"} == set(result["metrics"])
    assert result["kind"] == "external"


def crash(*_: object) -> None:
    # Square brackets are markup to the library that prints the tables.
    raise RuntimeError("[/odd] it\nbroke")


def test_crash_of_a_metric_keeps_the_others(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.metrics.pgd.measure", crash)
    finished = command(*RUN)
    assert finished.status == 1
    assert "failed: standard seed 0, pgd20: RuntimeError: [/odd] it broke" in finished.err.splitlines()
    (path,) = tmp_path.glob("leaderboards/digits/linf-0.15/entries/*.json")
    measurements = read_entry(path).measurements
    assert (measurements["pgd20"].status, measurements["pgd20"].error) == ("failed", "RuntimeError: [/odd] it broke")
    assert measurements["clean"].status == "done"
    assert measurements["clean"].values["accuracy"] is not None
    header, row = (path.parents[1] / "leaderboard.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=False))
    assert cells["pgd20"] == "failed"
    assert float(cells["clean"]) == pytest.approx(measurements["clean"].values["accuracy"], abs=0.01)
    assert "failed" in finished.out

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(*RUN).status == 0
    assert {found.status for found in read_entry(path).measurements.values()} == {"done"}


def test_crash_of_a_metric_is_in_the_result(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.metrics.pgd.measure", crash)
    checkpoint = write_checkpoint(tmp_path / "a.safetensors")
    finished = command("evaluate", "--checkpoint", checkpoint, *FEW, "--device", "cpu", "--json", "out.json")
    assert finished.status == 1
    assert "[/odd] it broke" in finished.out
    metrics = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert (metrics["pgd20"]["status"], metrics["pgd20"]["error"]) == ("failed", "RuntimeError: [/odd] it broke")
    assert (metrics["clean"]["status"], metrics["clean"]["n"]) == ("done", 20)


class FullDisk:
    """Stands for os.fsync: lets ``allowed`` files through, then the disk is full."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def __call__(self, handle: int) -> None:
        self.allowed -= 1
        if self.allowed < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_stops_the_run_and_the_same_command_continues(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at: set[str] = set()
    # Each attempt gets a little further: into the training, the measurements, the entry and the tables.
    for allowed in (0, 1, 3, 2, 3, 3, 1, 0, 1):
        monkeypatch.setattr("methods.files.os.fsync", FullDisk(allowed))
        finished = command(*RUN)
        if finished.status == 0:
            break
        assert finished.status == 2
        complaints = [line for line in finished.err.splitlines() if line.startswith("Error: ")]
        assert finished.err.splitlines()[-1:] == complaints
        assert complaints[0].startswith("Error: Cannot write ")
        assert complaints[0].endswith("No space left on device.")
        assert list(tmp_path.rglob("*.tmp")) == []
        stopped_at.add(Path(complaints[0].split(": ")[1].removeprefix("Cannot write ")).suffix)
    assert {".yaml", ".npz", ".json"} <= stopped_at
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(*RUN).status == 0
    (path,) = tmp_path.glob("leaderboards/digits/linf-0.15/entries/*.json")
    assert {found.status for found in read_entry(path).measurements.values()} == {"done"}


def test_result_that_cannot_be_written_is_one_sentence(command: Any, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "a.safetensors")
    (tmp_path / "file").write_text("")
    finished = command("evaluate", "--checkpoint", checkpoint, *FEW, "--device", "cpu", "--json", "file/out.json")
    assert finished.status == 2
    assert finished.err.splitlines()[-1].startswith("Error: Cannot write file/out.json: ")
    assert (tmp_path / "file").read_text() == ""


def test_a_file_in_the_place_of_the_runs_folder_is_one_sentence(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finished = command("train", "--methods", "standard", "--runs", "file/runs", "--device", "cpu")
    assert finished.status == 2
    assert finished.err.splitlines()[-1].startswith("Error: Cannot write file/runs/standard/digits/")
