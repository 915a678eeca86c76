"""RobustBench's zoo: models by its own loader from weights that are there, and wrong input."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.models.robustbench_import import imported, release
from benchmark.models.spec import DataSpec, ModelSpec
from benchmark.models.zoo import (
    clean_accuracy,
    load,
    load_exported,
    model_ids,
    registered,
)
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

# Importing RobustBench takes seconds: one worker does it.
pytestmark = pytest.mark.xdist_group("robustbench")

LINF = ThreatModel.parse("Linf:8/255")
SMALLEST = "Ding2020MMA"
"""The zoo's smallest network: WRN-28-4, 5.8 million parameters."""


class Net(nn.Module):
    """A small classifier of 32 x 32 pixels, its own normalisation in a buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1,), 0.5))
        self.conv = nn.Conv2d(3, 4, 3, 8)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(x - self.mean)).flatten(1))


class Wrapped(nn.Module):
    """A network that is an attribute called model, as RobustBench's loader cannot have it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"model": Net()})

    def forward(self, x: Tensor) -> Tensor:
        return self.net["model"](x)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_exported_model_is_loaded_by_the_release_s_own_loader(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path / "weights.pt"
    torch.save({f"{prefix}{name}": value for name, value in net.state_dict().items()}, path)
    loaded = load_exported("One2026Title", Net, path, "cifar10", LINF)
    x = torch.rand(4, 3, 32, 32)
    assert not loaded.training
    assert torch.equal(loaded(x), net(x))
    assert clean_accuracy(loaded, x, net(x).argmax(1)) == 1
    assert clean_accuracy(loaded, x, (net(x).argmax(1) + torch.tensor([0, 1, 2, 3])) % 10) == 0.25
    assert "One2026Title" not in model_ids("cifar10", LINF)


def test_exported_model_of_a_norm_that_the_zoo_has_none_of_is_loaded(tmp_path: Path) -> None:
    norm = ThreatModel.parse("L2:0.5")
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    assert model_ids("cifar100", norm) == []
    assert isinstance(load_exported("One2026Title", Net, tmp_path / "weights.pt", "cifar100", norm), Net)


def test_names_that_the_loader_garbles_are_told(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(Wrapped().state_dict(), path)
    with pytest.raises(InputError) as caught:
        load_exported("One2026Title", Wrapped, path, "cifar10", LINF)
    sentence = 'RobustBench does not load One2026Title: its weights lack "net.model.mean" (5 such keys)'
    assert str(caught.value).startswith(f'{sentence} and have the unexpected "del.mean" (5 such keys); {path} holds')


def test_weights_only_lets_a_training_s_arguments_through(tmp_path: Path) -> None:
    """Since torch 2.6, `torch.load` as RobustBench calls it refuses them."""
    path = tmp_path / "weights.pt"
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(50.0), "loss": np.zeros(3, np.float32).mean()}
    torch.save({"state_dict": Net().state_dict(), "epoch": np.int64(3), **beside}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, map_location="cpu")
    assert isinstance(load_exported("One2026Title", Net, path, "cifar10", LINF), Net)


class Surprise:
    """What a pickle from elsewhere may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def _write(content: Any) -> Callable[[Path], Any]:
    if isinstance(content, bytes):
        return lambda path: path.write_bytes(content)
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\n<!DOCTYPE html><html><body>Virus scan warning", " is an HTML page and no weights file: the download"),
        (b"no weights", " holds more than tensors, or is no weights file, and is not unpickled."),
        (b"", " is truncated or no weights file: EOFError."),
        ({"state_dict": Surprise()}, " holds more than tensors (builtins.print), and is not unpickled."),
        (
            {"model_state_dict": Net().state_dict(), "replay_buffer": torch.zeros(2, 3, 32, 32)},
            ' holds "model_state_dict" (5 tensors) and "replay_buffer" (a tensor [2, 3, 32, 32]).',
        ),
        (
            Net().state_dict(),
            'its weights lack "conv1.weight" (130 such keys) and have the unexpected "mean" (5 such keys); ',
        ),
        ([1, 2], " holds an object of type list."),
    ],
    ids=["html", "text", "empty", "code", "jem", "keys", "list"],
)
def test_wrong_weights_of_a_zoo_model_are_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, sentence: str
) -> None:
    path = tmp_path / "cifar10" / "Linf" / f"{SMALLEST}.pt"
    path.parent.mkdir(parents=True)
    _write(content)(path)
    with pytest.raises(InputError) as caught:
        load(SMALLEST, "cifar10", LINF, tmp_path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model_id", "dataset", "sentence"),
    [
        ("Ding2020MM", "cifar10", 'no cifar10 model "Ding2020MM" for Linf. Did you mean "Ding2020MMA"?'),
        ("Augustin2020Adversarial", "cifar10", "It is one of cifar10 L2."),
        ("Ding2020MMA", "imagenet", 'The zoo is read for cifar10 and cifar100, not for "imagenet".'),
        ("Ding2020MMA", "cifar10", "/uc?id=19Q_rIIHXsYzxZ0WcZdqT-N2OD7MfgoZ0 at models/cifar10/Linf/Ding2020MMA.pt."),
        ("Chen2020Adversarial", "cifar10", " at models/cifar10/Linf/Chen2020Adversarial.pt_m2.pt."),
        ("Debenedetti2022Light_XCiT-S12", "cifar100", "checkpoints/debenedetti2022light-xcit-s-cifar100-linf.pth.tar."),
    ],
    ids=["unknown", "elsewhere", "data set", "weights", "ensemble", "timm"],
)
def test_model_that_cannot_be_had_is_told_in_one_sentence(
    model_id: str, dataset: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(InputError) as caught:
        load(model_id, dataset, LINF)
    assert str(caught.value).endswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_zoo_model_is_loaded_from_where_its_weights_were_placed(tmp_path: Path) -> None:
    path = tmp_path / "cifar10" / "Linf" / f"{SMALLEST}.pt"
    path.parent.mkdir(parents=True)
    with imported() as robustbench, torch.random.fork_rng():
        torch.manual_seed(0)
        enums = robustbench.model_zoo.enums
        entry = robustbench.model_zoo.model_dicts[enums.BenchmarkDataset.cifar_10][enums.ThreatModel.Linf][SMALLEST]
        network = entry["model"]().eval()
    torch.save({"state_dict": network.state_dict()}, path)
    before = torch.random.get_rng_state()
    loaded = load(SMALLEST, "cifar10", LINF, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    x = torch.rand(2, 3, 32, 32)
    assert not loaded.training
    assert torch.equal(loaded(x), network(x))


def test_zoo_model_is_evaluated_offline(command: Any, tmp_path: Path) -> None:
    """A small network stands in the zoo; the command, the loader, the probes and the data are those of any model."""
    place = tmp_path / "models" / "cifar10" / "Linf" / "One2026Title.pt"
    place.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(Net().state_dict(), place)
    x = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    y = np.arange(20) % 10
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])
    subject = ("--robustbench", "One2026Title", "--dataset", f"npz:{tmp_path / 'data.npz'}", "--threat", "Linf:8/255")
    with imported() as robustbench, registered(robustbench, {"One2026Title": Net}, "cifar10", LINF):
        done = command("evaluate", *subject, "--metrics", "clean,pgd20", "--json", "out.json")
        assert done.status == 0, done.err
        # Workers get the source alone.
        spec = ModelSpec(robustbench="One2026Title")
        again = pickle.loads(pickle.dumps(spec)).load(DataSpec(subject[3]).load(), torch.device("cpu"))
        assert command("doctor", *subject, "--model-dir", "models").out.startswith("One2026Title on npz:")
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["subject"], result["kind"], result["n"]) == ("One2026Title", "external", 12)
    assert set(result["metrics"]) == {"clean", "pgd20"}
    assert again.digest == result["weights_digest"]
    assert again.flags == result["subject_flags"]
    assert again.metadata == {"robustbench": release(), "model": "cifar10/Linf/One2026Title"}


@pytest.mark.parametrize("name", ["evaluate", "doctor"])
def test_zoo_is_asked_before_the_data_are_loaded(command: Any, name: str) -> None:
    done = command(name, "--robustbench", "Ding2020MM", "--dataset", "cifar10-jpeg")
    assert (done.status, done.err) == (
        2,
        'Error: RobustBench\'s zoo has no cifar10 model "Ding2020MM" for Linf. Did you mean "Ding2020MMA"?\n',
    )


def test_data_of_another_kind_are_refused(command: Any) -> None:
    done = command("evaluate", "--robustbench", SMALLEST, "--dataset", "digits")
    assert done.status == 2
    assert done.err.startswith("Error: The zoo's models classify CIFAR-10 and CIFAR-100, images [3, 32, 32] in 10 or")
    assert done.err.endswith("digits has images [1, 8, 8] in 10.\n")
