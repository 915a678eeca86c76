"""RobustBench from outside: each of its breakages by name, its loader, its generators, and wrong input."""

from __future__ import annotations

import argparse
import importlib.util
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.models import zoo
from benchmark.models.spec import DataSpec, ModelSpec
from benchmark.models.zoo import (
    BRIDGES,
    clean_accuracy,
    consume,
    imported,
    load,
    load_exported,
    model_ids,
    registered,
)
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
LINF = ThreatModel.parse("Linf:8/255")
SMALLEST = "Ding2020MMA"
"""The zoo's smallest network: WRN-28-4, 5.8 million parameters."""
RECORD = {
    **{"link": "https://example.org/paper", "name": "A <Title>", "authors": "A. One, B. Two", "additional_data": False},
    **{"number_forward_passes": 1, "dataset": "cifar10", "venue": "NeurIPS 2026", "architecture": "WideResNet-28-10"},
    **{"eps": "8/255", "clean_acc": "84.92", "reported": "56.61", "autoattack_acc": "53.08", "unreliable": False},
}
IMPORTS = """
import importlib.util, json, sys, warnings
from importlib.abc import MetaPathFinder

warnings.simplefilter("ignore")


def attempt(action):
    try:
        return action()
    except Exception as error:
        return str(error)


class Block(MetaPathFinder):
    name = ""

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def forget(name):
    for module in list(sys.modules):
        if module.split(".")[0] == "robustbench" or (module + ".").startswith(name + "."):
            del sys.modules[module]


def import_it():
    with zoo.imported() as robustbench:
        return callable(robustbench.benchmark) and callable(robustbench.load_model)


def raw():
    import robustbench


from benchmark.models import zoo

before = {name: importlib.util.find_spec(name) is not None for name in ("autoattack", "tests")}
loaded = {name.split(".")[0] for name in sys.modules}
with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = {"quietly": attempt(import_it)}
found["new"] = sorted({name.split(".")[0] for name in sys.modules} - loaded)
found["visible"] = {name: importlib.util.find_spec(name) is not None for name in before} == before
forget("autoattack")
found["raw"] = attempt(raw)
block = Block()
sys.meta_path.insert(0, block)
for name, bridge in list(zoo.BRIDGES.items()):
    block.name = name
    forget(name)
    del zoo.BRIDGES[name]
    without = attempt(import_it)
    forget(name)
    zoo.BRIDGES[name] = bridge
    found[name] = without, attempt(import_it), name in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imports() -> dict[str, Any]:
    """What happened in a process of its own that imported RobustBench, each module blocked in turn."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(importlib.util.find_spec("autoattack") is not None, reason="autoattack is installed here")
def test_the_release_does_not_import_by_itself(imports: dict[str, Any]) -> None:
    first = "autoattack" if importlib.util.find_spec("pkg_resources") else "pkg_resources"
    assert imports["raw"] == f"No module named '{first}'"


def test_the_release_is_imported_without_a_warning(imports: dict[str, Any]) -> None:
    assert imports["quietly"] is True


@pytest.mark.parametrize("name", BRIDGES)
def test_missing_module_is_bridged(imports: dict[str, Any], name: str) -> None:
    without, bridged, left_behind = imports[name]
    assert without.startswith("robustbench ")
    assert without.endswith(f"does not import: ModuleNotFoundError: No module named '{name}'.")
    assert bridged is True
    assert not left_behind


def test_importing_leaves_no_foreign_autoattack_or_tests_visible(imports: dict[str, Any]) -> None:
    assert imports["visible"]
    assert "robustbench" in imports["new"]
    assert not {"autoattack", "tests"} & set(imports["new"])


def test_pkg_resources_stand_in_finds_files_of_the_release() -> None:
    find = zoo.pkg_resources()["pkg_resources"].resource_filename
    with imported():
        assert Path(find("robustbench.loaders", "helper_files/imagenet_test_image_ids.txt")).is_file()


def test_nothing_is_downloaded_by_gdown() -> None:
    with imported() as robustbench, pytest.raises(InputError, match="not downloaded here"):
        robustbench.utils.download_gdrive_new("id", "file.pt")
    with pytest.raises(InputError, match="not downloaded here"):
        zoo.gdown()["gdown"].download(id="id", output="file.pt")


def test_autoattack_s_arguments_are_accepted_so_that_benchmark_runs_to_its_end(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`benchmark()` on a linear model: the accuracies in closed form, its log, and the file it writes."""
    import pyautoattack

    monkeypatch.chdir(tmp_path)
    linear = toy(images=4, classes=10, wrong=1)
    x, y = linear.dataset.test.unit(), linear.dataset.test.labels
    margins = linear.margins(0.0)
    eps = float(margins.sort().values[-2:].mean())
    arguments: dict[str, Any] = {"dataset": "cifar10", "threat_model": "Linf", "eps": eps, "n_examples": 4}
    arguments |= {"to_disk": True, "model_name": "One2026Toy", "log_path": "log.txt"}
    with imported() as robustbench, patch.object(robustbench.eval, "load_clean_dataset", lambda *_: (x, y)):
        with (
            patch.object(robustbench.eval, "AutoAttack", pyautoattack.AutoAttack),
            pytest.raises(TypeError, match="log_path"),
        ):
            robustbench.benchmark(linear.model(), **arguments)
        found = robustbench.benchmark(linear.model(), **arguments)
    assert found == (0.75, 0.25)
    log = Path("log.txt").read_text()
    assert "robust accuracy: 25.00%" in log
    assert log in capsys.readouterr().out
    written = json.loads(Path("model_info/cifar10/Linf/One2026Toy.json").read_text())
    assert (written["clean_acc"], written["autoattack_acc"]) == ("75.0", "25.0")


def test_autoattack_s_device_must_be_named_because_the_packages_defaults_differ(toy: Any) -> None:
    made = zoo.autoattack()["autoattack"].AutoAttack
    with pytest.raises(TypeError, match="device"):
        made(toy().model(), norm="Linf", eps=0.1)
    assert made(toy().model(), norm="Linf", eps=0.1, device="cpu").device == CPU


def test_autoattack_s_warnings_and_labels_are_handed_on(toy: Any) -> None:
    linear = toy(images=4, classes=10)
    x, y = linear.dataset.test.unit(), linear.dataset.test.labels
    softmax = nn.Sequential(linear.model(), nn.Softmax(1)).eval()
    attack = zoo.autoattack()["autoattack"].AutoAttack
    attacker = attack(softmax, eps=0.5, attacks_to_run=["apgd-ce"], version="custom", verbose=False, device=CPU, seed=0)
    with pytest.warns(UserWarning, match="probability distribution"):
        x_adv, y_adv = attacker.run_standard_evaluation(x, y, bs=4, return_labels=True)
    assert torch.equal(softmax(x_adv).argmax(1), y_adv)


@pytest.fixture
def model_info(tmp_path: Path) -> Callable[..., Path]:
    """Write model_info files of one data set and norm, model id to what its record changes; None takes a key out."""

    def write(**records: dict[str, Any]) -> Path:
        folder = tmp_path / "info" / "cifar10" / "Linf"
        folder.mkdir(parents=True, exist_ok=True)
        for model_id, changes in records.items():
            (folder / f"{model_id}.json").write_text(json.dumps({**RECORD, **changes}))
        return tmp_path / "info"

    return write


def test_missing_template_and_model_info_are_bridged_for_the_generators(
    model_info: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two models that the zoo does not know, the weaker one with a better number from elsewhere."""
    monkeypatch.chdir(tmp_path)
    folder = model_info(One2026Title_R18={}, Three2026Other={"autoattack_acc": "50.00", "external": "54.00"})
    made = consume(folder, "cifar10", LINF)
    assert list(made) == ["list_available_models", "bibtex", "latex", "leaderboard"]
    for text, (first, second) in {
        made["list_available_models"]: ("Three2026Other", "One2026Title_R18"),
        made["bibtex"]: ("@article{One2026Title", "@article{Three2026Other"),
        made["latex"]: ("Three2026Other", "One2026Title"),
        made["leaderboard"]: ("54.00%", "53.08%"),
    }.items():
        assert 0 <= text.index(first) < text.rindex(second)
    for field in ("A <Title>", "https://example.org/paper", "84.92%", "50.00%", "WideResNet-28-10", "NeurIPS 2026"):
        assert field in made["leaderboard"]
    assert Path.cwd() == tmp_path
    assert not {"One2026Title_R18", "Three2026Other"} & set(model_ids("cifar10", LINF))


def test_the_release_lacks_template_and_model_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with imported() as robustbench:
        release = Path(str(robustbench.__file__)).parent
        if list(release.glob("leaderboard/*.j2")):
            pytest.skip("this release has its template")
        (tmp_path / "model_info" / "cifar10" / "Linf").mkdir(parents=True)
        with pytest.raises(LookupError, match=r"leaderboard\.html\.j2"):
            robustbench.leaderboard.template.generate_leaderboard("cifar10", "Linf")
        assert not (release / "model_info").exists()


@pytest.mark.parametrize(
    ("changes", "consumer"),
    [
        ({"external": None}, "list_available_models"),
        ({"authors": None}, "bibtex"),
        ({"venue": None}, "bibtex"),
        ({"architecture": None}, "latex"),
    ],
)
def test_generator_that_fails_is_named(
    model_info: Callable[..., Path], changes: dict[str, Any], consumer: str, tmp_path: Path
) -> None:
    before = Path.cwd()
    with pytest.raises(InputError, match=f"RobustBench's {consumer} fails on {tmp_path / 'info'}"):
        consume(model_info(One2026Title=changes), "cifar10", LINF)
    assert Path.cwd() == before


def test_folder_without_model_info_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model_info file in"):
        consume(tmp_path, "cifar10", LINF)


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
    """What a stranger's pickle may hold."""

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
        again = pickle.loads(pickle.dumps(spec)).load(DataSpec(subject[3]).load(), CPU)
        assert command("doctor", *subject, "--model-dir", "models").out.startswith("One2026Title on npz:")
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["subject"], result["kind"], result["n"]) == ("One2026Title", "external", 12)
    assert set(result["metrics"]) == {"clean", "pgd20"}
    assert again.digest == result["weights_digest"]
    assert again.flags == result["subject_flags"]
    assert again.metadata == {"robustbench": zoo.release(), "model": "cifar10/Linf/One2026Title"}


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
