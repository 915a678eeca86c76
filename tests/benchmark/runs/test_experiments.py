"""From recipes to tables, end to end on the digits: tiny networks, one epoch, twenty test images."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmark.cli import main
from benchmark.leaderboard.tables import COLUMNS
from benchmark.models.subject import from_checkpoint
from benchmark.results.entry import Entry, read_entry
from benchmark.specs import recipes
from methods.training.optim import learning_rate

pytestmark = pytest.mark.xdist_group("experiments")
"""What the tests share is made in one worker."""

OVERRIDES = ("backbone.widen=1", "train.batch_size=128", "train.epochs=2", "train.warmup_steps=0")
SETTINGS = tuple(part for override in OVERRIDES for part in ("--set", override))
FEW = ("--device", "cpu", "--limit", "20", "--metrics", "clean,pgd20")


def run(root: Path, *arguments: str) -> int:
    """Run the main job below ``root``, and return its exit status."""
    places = ("--runs", str(root / "runs"), "--leaderboards", str(root / "leaderboards"))
    with pytest.raises(SystemExit) as stop:
        main(["run", "--methods", "standard,trades", *SETTINGS, *FEW, *places, *arguments])
    return int(stop.value.code or 0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries(root: Path) -> dict[str, Entry]:
    """Return the entries below ``root`` by recipe and seed."""
    found = [read_entry(path) for path in root.glob("leaderboards/digits/linf-0.15/entries/*.json")]
    return {f"{entry.recipe}-{entry.seed}": entry for entry in found}


def rows(root: Path) -> dict[str, dict[str, str]]:
    """Return the rows of the table below ``root`` by method."""
    with open(root / "leaderboards" / "digits" / "linf-0.15" / "leaderboard.csv", newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def accuracy(entry: Entry, metric: str) -> float:
    value = entry.measurements[metric].values["accuracy"]
    assert isinstance(value, float)
    return value


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both recipes ran with seed 0; read only."""
    root = tmp_path_factory.mktemp("finished")
    assert run(root) == 0
    return root


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to go on with."""
    shutil.copytree(finished, tmp_path / "copied")
    return tmp_path / "copied"


TRAINING = "methods.training.trainer._Training"
MEASURING = ("benchmark.metrics.clean.measure", "benchmark.metrics.pgd.measure")


def test_run_writes_an_entry_for_each_recipe(finished: Path) -> None:
    found = entries(finished)
    assert set(found) == {"standard-0", "trades-0"}
    for entry in found.values():
        assert (entry.dataset, entry.threat, entry.seed) == ("digits", "Linf:0.15", 0)
        assert (entry.data.n, entry.partial, entry.subject.which) == (20, True, "best")
        assert entry.data.of == 300
        assert set(entry.data.digests) == {"train", "validation", "test"}
        assert (entry.protocol.id, entry.protocol.role) == ("digits-linf-v3", "standard")
        assert set(entry.measurements) == {"clean", "pgd20"}
        assert 0 <= accuracy(entry, "pgd20") <= accuracy(entry, "clean") <= 100
        assert entry.overrides == list(OVERRIDES)
        assert entry.training["epochs"] == 2
        assert entry.training["settings"]["train"]["batch_size"] == 128
        assert entry.provenance["device"] == "cpu"
    assert found["standard-0"].subject.architecture == "wrn-10-1"


def test_run_writes_the_tables(finished: Path) -> None:
    folder = finished / "leaderboards" / "digits" / "linf-0.15"
    assert tuple((folder / "leaderboard.csv").read_text().splitlines()[0].split(",")) == COLUMNS
    assert COLUMNS[:8] == ("rank", "method", "dataset", "threat", "seeds", "clean", "pgd20", "autoattack")
    for name, entry in entries(finished).items():
        row = rows(finished)[name.removesuffix("-0")]
        assert row["partial"] == f"20 of {entry.data.of}"
        assert (row["seeds"], row["autoattack"], row["energy_gap_mean"]) == ("1", "-", "-")
        assert float(row["clean"]) == pytest.approx(accuracy(entry, "clean"), abs=0.005)
        assert float(row["pgd20"]) == pytest.approx(accuracy(entry, "pgd20"), abs=0.005)
    assert {row["rank"] for row in rows(finished).values()} == {"1", "2"}
    document = (folder / "leaderboard.md").read_text()
    assert "trades" in document
    assert "backbone.widen=1" in document


def test_run_keeps_its_training(finished: Path) -> None:
    for recipe in ("standard", "trades"):
        (folder,) = (finished / "runs" / recipe / "digits").iterdir()
        kept = {path.name for path in folder.iterdir()}
        assert kept == {"config.yaml", "log.jsonl", "weights.safetensors", "best.safetensors", "manifest.json"}
        digest = entries(finished)[f"{recipe}-0"].config_digest
        assert digest is not None
        assert folder.name == f"{digest[:8]}-s0"


def test_finished_run_is_not_repeated(copied: Path, poisoned: Callable[..., None]) -> None:
    before = files(copied)
    poisoned(TRAINING, *MEASURING)
    assert run(copied) == 0
    assert files(copied) == before


def test_lost_table_is_rebuilt_from_the_entries(copied: Path, poisoned: Callable[..., None], command: Any) -> None:
    before = files(copied)
    for path in copied.glob("leaderboards/digits/linf-0.15/leaderboard.*"):
        path.unlink()
    poisoned(TRAINING, *MEASURING)
    assert command("leaderboard", "--leaderboards", copied / "leaderboards").status == 0
    assert files(copied) == before


def test_more_metrics_cost_no_training(copied: Path, poisoned: Callable[..., None]) -> None:
    before = entries(copied)
    poisoned(TRAINING, *MEASURING)
    assert run(copied, "--methods", "trades", "--metrics", "clean,pgd20,energy") == 0
    after = entries(copied)["trades-0"]
    assert set(after.measurements) == {"clean", "pgd20", "energy"}
    assert {name: after.measurements[name] for name in ("clean", "pgd20")} == before["trades-0"].measurements
    assert entries(copied)["standard-0"] == before["standard-0"]


def test_seeds_share_a_row(copied: Path) -> None:
    assert run(copied, "--methods", "standard", "--seeds", "0,1") == 0
    found = entries(copied)
    assert found["standard-0"].config_digest == found["standard-1"].config_digest
    assert found["standard-0"].subject.weights_digest != found["standard-1"].subject.weights_digest
    row = rows(copied)["standard"]
    clean = [accuracy(found[f"standard-{seed}"], "clean") for seed in (0, 1)]
    assert row["seeds"] == "2"
    assert row["clean"] == f"{statistics.fmean(clean):.2f} ± {statistics.stdev(clean):.2f}"
    assert rows(copied)["trades"]["seeds"] == "1"


def test_last_checkpoint_is_an_entry_of_its_own(copied: Path, poisoned: Callable[..., None]) -> None:
    poisoned(TRAINING)
    assert run(copied, "--methods", "trades", "--which", "last") == 0
    paths = list(copied.glob("leaderboards/digits/linf-0.15/entries/trades-*.json"))
    found = {entry.subject.which: entry for entry in map(read_entry, paths)}
    assert set(found) == {"best", "last"}
    (folder,) = (copied / "runs" / "trades" / "digits").iterdir()
    for which in ("best", "last"):
        assert found[which].subject.weights_digest == from_checkpoint(folder, torch.device("cpu"), which).digest


def test_checkpoint_evaluates_to_the_numbers_of_its_run(finished: Path, command: Any, tmp_path: Path) -> None:
    (folder,) = (finished / "runs" / "trades" / "digits").iterdir()
    entry = entries(finished)["trades-0"]
    for number, checkpoint in enumerate((folder, folder / "best.safetensors")):
        ended = command("evaluate", "--checkpoint", checkpoint, *FEW, "--runs", f"r{number}", "--json", "out.json")
        assert ended.status == 0, ended.err
        result = json.loads((tmp_path / "out.json").read_text())
        for metric in ("clean", "pgd20"):
            measured = entry.measurements[metric]
            assert {name: result["metrics"][metric][name] for name in measured.values} == measured.values
        assert result["weights_digest"] == entry.subject.weights_digest
        assert result["protocol_hash"] == entry.protocol.hash
        assert f"partial: the first 20 of {entry.data.of} test images" in ended.out


def test_json_of_an_evaluation(finished: Path, command: Any, tmp_path: Path) -> None:
    (folder,) = (finished / "runs" / "standard" / "digits").iterdir()
    arguments = ("--device", "cpu", "--limit", "10", "--metrics", "autoattack,clean,pgd20", "--json", "out/a.json")
    assert command("evaluate", "--checkpoint", folder, *arguments).status == 0
    result = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (result["subject"], result["dataset"], result["threat"]) == ("standard", "digits", "Linf:0.15")
    assert (result["protocol"], result["n"], result["partial"]) == ("digits-linf-v3", 10, True)
    assert list(result["metrics"]) == ["autoattack", "clean", "pgd20"]
    for measured in result["metrics"].values():
        assert (measured["status"], measured["n"], measured["error"]) == ("done", 10, None)
        assert 0 <= measured["accuracy"] <= 100
        assert (tmp_path / "runs" / "measurements" / measured["samples"]).is_file()
    assert result["metrics"]["autoattack"]["accuracy"] <= result["metrics"]["pgd20"]["accuracy"]


def test_another_threat_takes_the_general_protocol(finished: Path, command: Any, tmp_path: Path) -> None:
    (folder,) = (finished / "runs" / "standard" / "digits").iterdir()
    results = []
    for threat in ("Linf:0.15", "linf:0.3", "L2:0"):
        arguments = ("--threat", threat, *FEW, "--json", "out.json")
        assert command("evaluate", "--checkpoint", folder, *arguments).status == 0
        results.append(json.loads((tmp_path / "out.json").read_text()))
    assert [result["protocol"] for result in results] == ["digits-linf-v3", "standard-v3", "standard-v3"]
    assert [result["threat"] for result in results] == ["Linf:0.15", "Linf:0.3", "L2:0"]
    robust = [result["metrics"]["pgd20"]["accuracy"] for result in results]
    assert robust[1] <= robust[0]
    assert robust[2] == results[2]["metrics"]["clean"]["accuracy"]


def test_failed_training_keeps_the_other_recipe(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: Callable[..., None]
) -> None:
    shutil.copytree(recipes.CONFIGS, tmp_path / "configs")
    path = tmp_path / "configs" / "datasets" / "digits.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["methods"]["trades"] = {"train": {"lr": 1e12, "warmup_steps": 0}}
    path.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path / "configs")
    arguments = ("run", "--methods", "trades,standard", *SETTINGS, *FEW)
    finished = command(*arguments)
    assert finished.status == 1
    (complaint,) = [line for line in finished.err.splitlines() if line.startswith("failed: ")]
    assert "of trades became non-finite at step " in complaint
    assert set(entries(tmp_path)) == {"standard-0"}
    assert set(rows(tmp_path)) == {"standard"}
    (folder,) = (tmp_path / "runs" / "trades" / "digits").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "failed"

    poisoned(TRAINING, *MEASURING)
    finished = command(*arguments)
    assert finished.status == 1
    assert f"Delete {folder.relative_to(tmp_path)} to train it again." in finished.err


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every training explode in its second epoch of eleven steps."""

    def rate(step: int, *arguments: Any) -> float:
        return learning_rate(step, *arguments) if step < 15 else 1e12

    monkeypatch.setattr("methods.training.optim.learning_rate", rate)


@pytest.mark.usefixtures("collapsing")
def test_collapsed_training_is_evaluated_on_its_weights_from_before(
    command: Any, tmp_path: Path, poisoned: Callable[..., None]
) -> None:
    arguments = ("run", "--methods", "standard", *SETTINGS, *FEW)
    finished = command(*arguments)
    assert finished.status == 1
    (complaint,) = [line for line in finished.err.splitlines() if line.startswith("failed: ")]
    assert "of standard became non-finite at step " in complaint
    found = entries(tmp_path)["standard-0"]
    assert (found.training["restarts"], found.training["interventions"]) == (0, [])
    assert found.training["collapse"]["cause"] == "nonfinite"
    assert 1.3 < found.training["collapse"]["epoch"] <= 2
    assert found.training["best"]["epoch"] == 1
    assert found.subject.which == "best"
    (flag,) = found.subject.flags
    assert flag.startswith("the training collapsed (nonfinite) and was stopped in epoch 1.")
    row = rows(tmp_path)["standard"]
    assert (row["restarts"], row["collapsed_at"]) == ("0", f"s0: {found.training['collapse']['epoch']:.1f}")
    assert float(row["clean"]) == pytest.approx(accuracy(found, "clean"), abs=0.005)

    poisoned(TRAINING, *MEASURING)
    assert command(*arguments).status == 1
    assert entries(tmp_path) == {"standard-0": found}


@pytest.mark.usefixtures("collapsing")
def test_collapsed_training_has_no_last_checkpoint(command: Any, tmp_path: Path) -> None:
    finished = command("run", "--methods", "standard", *SETTINGS, *FEW, "--which", "last")
    assert finished.status == 1
    assert entries(tmp_path) == {}


def test_log_s_first_and_last_epoch_are_in_the_entry(finished: Path) -> None:
    record = entries(finished)["trades-0"].training
    assert record["last_epoch"]["loss"] < record["first_epoch"]["loss"]
    lines = [json.loads(text) for text in (run_folder(finished) / "log.jsonl").read_text().splitlines()]
    second = [line["loss"] for line in lines if "loss" in line and line["epoch"] > 1]
    assert record["last_epoch"]["loss"] == pytest.approx(statistics.fmean(second))


def run_folder(root: Path) -> Path:
    (folder,) = (root / "runs" / "trades" / "digits").iterdir()
    return folder


def test_generated_images_are_shown(copied: Path, tmp_path: Path, poisoned: Callable[..., None]) -> None:
    protocol = tmp_path / "pictures.yaml"
    settings = {"clean": {}, "generation": {"starts": ["class_gaussian"], "steps": 2}}
    content = {"id": "pictures", "dataset": "digits", "threat": "Linf:0.15", "metrics": settings}
    protocol.write_text(yaml.safe_dump(content))
    poisoned(TRAINING)
    arguments = ("--methods", "trades", "--protocol", str(protocol), "--metrics", "clean,generation")
    assert run(copied, *arguments) == 0
    (picture,) = copied.glob("leaderboards/digits/linf-0.15/samples/*.png")
    assert picture.stem in {path.stem for path in copied.glob("leaderboards/digits/linf-0.15/entries/*.json")}
    before = picture.read_bytes()
    assert before.startswith(b"\x89PNG")
    picture.unlink()
    assert run(copied, *arguments) == 0
    assert picture.read_bytes() == before
    assert run(copied, *arguments, "--metrics", "clean") == 0
    assert not picture.exists()


def test_train_trains_and_measures_nothing(command: Any, tmp_path: Path, poisoned: Callable[..., None]) -> None:
    poisoned(*MEASURING)
    finished = command("train", "--methods", "Standard", "--dataset", "DIGITS", "--device", "cpu", *SETTINGS)
    assert finished.status == 0, finished.err
    (folder,) = (tmp_path / "runs" / "standard" / "digits").iterdir()
    assert load_file(folder / "weights.safetensors")
    assert yaml.safe_load((folder / "config.yaml").read_text())["dataset"] == "digits"
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
