"""RobustBench imported from outside: each of its breakages by name, and what stands in for what it lacks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from benchmark.models import robustbench_import
from benchmark.models.robustbench_import import BRIDGES, imported
from methods.errors import InputError

# Importing RobustBench takes seconds: one worker does it.
pytestmark = pytest.mark.xdist_group("robustbench")

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
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
    with robustbench_import.imported() as robustbench:
        return callable(robustbench.benchmark) and callable(robustbench.load_model)


def raw():
    import robustbench


from benchmark.models import robustbench_import

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
for name, bridge in list(robustbench_import.BRIDGES.items()):
    block.name = name
    forget(name)
    del robustbench_import.BRIDGES[name]
    without = attempt(import_it)
    forget(name)
    robustbench_import.BRIDGES[name] = bridge
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
    find = robustbench_import.pkg_resources()["pkg_resources"].resource_filename
    with imported():
        assert Path(find("robustbench.loaders", "helper_files/imagenet_test_image_ids.txt")).is_file()


def test_nothing_is_downloaded_by_gdown() -> None:
    with imported() as robustbench, pytest.raises(InputError, match="not downloaded here"):
        robustbench.utils.download_gdrive_new("id", "file.pt")
    with pytest.raises(InputError, match="not downloaded here"):
        robustbench_import.gdown()["gdown"].download(id="id", output="file.pt")


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
    made = robustbench_import.autoattack()["autoattack"].AutoAttack
    with pytest.raises(TypeError, match="device"):
        made(toy().model(), norm="Linf", eps=0.1)
    assert made(toy().model(), norm="Linf", eps=0.1, device="cpu").device == CPU


def test_autoattack_s_warnings_and_labels_are_handed_on(toy: Any) -> None:
    linear = toy(images=4, classes=10)
    x, y = linear.dataset.test.unit(), linear.dataset.test.labels
    softmax = nn.Sequential(linear.model(), nn.Softmax(1)).eval()
    attack = robustbench_import.autoattack()["autoattack"].AutoAttack
    attacker = attack(softmax, eps=0.5, attacks_to_run=["apgd-ce"], version="custom", verbose=False, device=CPU, seed=0)
    with pytest.warns(UserWarning, match="probability distribution"):
        x_adv, y_adv = attacker.run_standard_evaluation(x, y, bs=4, return_labels=True)
    assert torch.equal(softmax(x_adv).argmax(1), y_adv)
