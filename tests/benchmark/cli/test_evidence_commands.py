"""verify, compare, doctor, masking-power, report and shared evaluations, as typed: one run, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.cli import main
from benchmark.results.entry import read_entry

pytestmark = pytest.mark.xdist_group("evidence commands")
"""What the tests share is made in one worker."""

PROTOCOL = """
id: commands-v1
dataset: digits
threat: Linf:0.15
metrics:
  clean: {}
  pgd20: {steps: 3}
"""
TINY = ("--device", "cpu", "--set", "backbone.widen=1", "--set", "train.epochs=1", "--set", "train.batch_size=256")
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)
    def forward(self, x):
        return self.linear(x.flatten(1))

def good(num_classes=10):
    torch.manual_seed(0)
    return Net(num_classes).eval()

def nan(num_classes=10):
    model = good(num_classes)
    model.linear.bias.data[0] = torch.nan
    return model
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the entries of two recipes, with evidence; read only."""
    root = tmp_path_factory.mktemp("finished")
    (root / "protocol.yaml").write_text(PROTOCOL)
    places = ["--runs", str(root / "runs"), "--leaderboards", str(root / "leaderboards")]
    chosen = ["--methods", "standard,pgd_at", "--protocol", str(root / "protocol.yaml"), "--limit", "30"]
    with pytest.raises(SystemExit) as stop:
        main(["run", *chosen, *TINY, *places])
    assert not stop.value.code
    return root


@pytest.fixture
def place(finished: Path, tmp_path: Path, command: Any) -> Path:
    """The same as the current folder, to be spoilt."""
    shutil.copytree(finished / "leaderboards", tmp_path / "leaderboards")
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


@pytest.fixture
def refused(command: Any) -> Callable[..., str]:
    """Run a command that is to be refused, and return its one sentence."""

    def call(*arguments: str | Path) -> str:
        found = command(*arguments)
        assert found.status == 2, found
        (line,) = found.err.splitlines()
        return line.removeprefix("Error: ")

    return call


def entry_of(place: Path, recipe: str) -> Path:
    (path,) = (place / "leaderboards").glob(f"digits/*/entries/{recipe}-*.json")
    return path


def test_entries_of_a_run_are_verified_compared_and_shown(place: Path, command: Any) -> None:
    verified = command("verify", "leaderboards")
    assert verified.status == 0, verified
    assert "2 of 2 entries verified." in verified.out

    compared = command("compare", entry_of(place, "standard"), entry_of(place, "pgd_at"))
    assert compared.status == 0, compared
    assert "pgd20" in compared.out

    shown = command("report", "--output", "page.html")
    assert (shown.status, shown.out) == (0, "page.html\n")
    assert "<html" in (place / "page.html").read_text()[:300]


def test_changed_entry_and_flipped_byte_are_a_result_and_no_bad_input(place: Path, command: Any) -> None:
    path = entry_of(place, "standard")
    content = json.loads(path.read_text())
    content["measurements"]["pgd20"]["values"]["accuracy"] += 1
    path.write_text(json.dumps(content))
    other = entry_of(place, "pgd_at")
    bundle = other.parents[1] / "evidence" / f"{other.stem}.npz"
    spoilt = bytearray(bundle.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    bundle.write_bytes(spoilt)
    found = command("verify", "leaderboards")
    assert found.status == 1
    assert found.out.count("FAILED: leaderboards") == 2
    assert "0 of 2 entries verified." in found.out


def test_verify_refuses(place: Path, refused: Callable[..., str]) -> None:
    path = entry_of(place, "standard")
    assert "no entry with an evidence bundle at nowhere" in refused("verify", "nowhere")
    Path("foreign.json").write_text('{"loss": 0.5}')
    assert "The entry foreign.json: unknown key" in refused("verify", "foreign.json")
    Path("broken.json").write_text(path.read_text()[:500])
    assert "The entry broken.json cannot be read" in refused("verify", "broken.json")
    bundle = path.parents[1] / "evidence" / f"{path.stem}.npz"
    other = entry_of(place, "pgd_at")
    shutil.copy(other.parents[1] / "evidence" / f"{other.stem}.npz", bundle)
    assert "another model" in refused("verify", path)
    bundle.unlink()
    assert "bundle" in refused("verify", path)


def test_compare_refuses(place: Path, refused: Callable[..., str]) -> None:
    path = entry_of(place, "standard")
    Path("foreign.json").write_text('{"loss": 0.5}')
    assert "The entry foreign.json: unknown key" in refused("compare", path, "foreign.json")
    assert "trades" in refused("compare", "standard", "trades")
    content = json.loads(path.read_text())
    Path("other.json").write_text(json.dumps(content | {"threat": "Linf:0.1"}))
    assert "Linf:0.1" in refused("compare", path, "other.json")


def test_report_refuses(place: Path, refused: Callable[..., str]) -> None:
    assert "nowhere" in refused("report", "--leaderboards", "nowhere")
    entry_of(place, "standard").write_text("{")
    assert "cannot be read" in refused("report", "--output", "page.html")
    assert not Path("page.html").exists()


def test_masking_power_needs_checkpoints(place: Path, refused: Callable[..., str]) -> None:
    assert "weights beside it" in refused("masking-power", "--leaderboards", "nowhere")
    assert refused("court", "--workers", "2") == 'The command "court" is called "masking-power" now.'


def arrays(path: Path, classes: int, images: int) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    y = np.arange(60) % classes
    np.savez(path, x_train=x, y_train=y, x_test=x[:images], y_test=y[:images])
    return path


FEW = ("--threat", "Linf:0.1", "--device", "cpu", "--json", "out.json")


@pytest.mark.parametrize(
    ("factory", "classes", "images", "more", "complaint"),
    [
        ("good", 3, 20, (), "AutoAttack"),
        ("good", 3, 20, ("--metrics", "clean,autoattack"), "there are 3 classes"),
        ("good", 1, 20, (), "class"),
        ("good", 10, 0, ("--metrics", "clean"), "test"),
        ("nan", 10, 20, ("--metrics", "clean"), "not finite"),
        ("good", 10, 20, ("--workers", "0"), "--workers must be at least 1, not 0."),
        ("good", 10, 20, ("--workers", "1000"), "--workers must be at most 256, not 1000."),
        ("good", 10, 20, ("--shard", "3/2"), '--shard takes i/n with i from 1 to n, such as 2/3, not "3/2".'),
        ("good", 10, 20, ("--surrogate", "nowhere"), "There is no checkpoint at nowhere"),
    ],
)
def test_evaluate_refuses(
    place: Path, refused: Callable[..., str], factory: str, classes: int, images: int, more: Any, complaint: str
) -> None:
    data = arrays(place / "data.npz", classes, images)
    assert complaint in refused("evaluate", "--model", f"model.py:{factory}", "--dataset", f"npz:{data}", *FEW, *more)
    assert not Path("out.json").exists()


def test_doctor_s_status_says_if_something_is_wrong(place: Path, command: Any, refused: Callable[..., str]) -> None:
    data = ("--dataset", "digits", "--device", "cpu")
    sick = command("doctor", "--model", "model.py:nan", *data, "--eps", "8/255")
    assert (sick.status, "finite" in sick.out) == (1, True)
    weights = next((place / "leaderboards").glob("digits/weights/*.safetensors"))
    healthy = command("doctor", "--checkpoint", weights, "--device", "cpu", "--eps", "8/255")
    assert "8/255 in [-1,1] is 4/255 in pixels" in healthy.out
    assert "eps" in refused("doctor", "--model", "model.py:good", *data, "--eps", "8/0")
    assert "Give one of --checkpoint PATH, --model FILE:FACTORY" in refused("doctor", *data)


def test_shards_of_parts_are_assembled(place: Path, command: Any, finished: Path) -> None:
    weights = next((place / "leaderboards").glob("digits/weights/*.safetensors"))
    chosen = ("--checkpoint", weights, "--protocol", finished / "protocol.yaml", "--limit", "150", "--device", "cpu")
    for part in ("2/2", "1/2"):
        done = command("evaluate", *chosen, "--shard", part)
        assert done.status == 0, done
    assert len(list(place.glob("runs/measurements/*/shard-*.npz"))) == 4
    assert command("evaluate", *chosen, "--json", "parts.json").status == 0
    assert command("evaluate", *chosen, "--runs", "fresh", "--json", "whole.json").status == 0
    parts, whole = (json.loads(Path(name).read_text())["metrics"]["pgd20"] for name in ("parts.json", "whole.json"))
    for key in ("accuracy", "accuracy_low", "accuracy_high", "max_perturbation"):
        assert parts[key] == whole[key]


def test_entry_keeps_verdicts_intervals_and_curves(finished: Path) -> None:
    entry = read_entry(entry_of(finished, "standard"))
    pgd = entry.measurements["pgd20"]
    low, accuracy, high = (pgd.values[name] for name in ("accuracy_low", "accuracy", "accuracy_high"))
    assert isinstance(low, float) and isinstance(accuracy, float) and isinstance(high, float)
    assert low <= accuracy <= high
    assert set(pgd.verdicts) == {"accuracy"}
    assert entry.training["curves"]
