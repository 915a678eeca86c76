"""The log: what a line holds, and a file that is short or cannot be written."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.data import Dataset
from methods.errors import InputError
from methods.training import trainer
from methods.training.config import Experiment
from methods.training.guard import Guard, read_log
from methods.training.method import Losses
from methods.training.run_folder import no_log, open_log, run_folder, step_record
from methods.training.trainer import train

Make = Callable[..., Experiment]
Crash = Callable[[int], AbstractContextManager[None]]

CPU = torch.device("cpu")


def test_training_learns_and_logs(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    folder = train(make_experiment("trades", log_every=2), data, tmp_path, CPU)
    steps = [line for line in read_log(folder / "log.jsonl") if "lr" in line]
    # Every second step, and the last one of each epoch of three.
    assert [line["step"] for line in steps[:4]] == [2, 3, 4, 6]
    assert {"loss", "clean", "robust", "epoch", "delta_max", "gradient_norm", "nonfinite"} < set(steps[0])
    assert steps[-1]["clean"] < steps[0]["clean"] - 0.1


def test_flight_record_of_an_energy_based_method(make_experiment: Make, data: Dataset, tmp_path: Path) -> None:
    folder = train(make_experiment("ebjdat", epochs=1), data, tmp_path, CPU)
    steps = [line for line in read_log(folder / "log.jsonl") if "lr" in line]
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


def test_log_shorter_than_at_the_checkpoint_is_refused(
    make_experiment: Make, data: Dataset, tmp_path: Path, crash_before: Crash
) -> None:
    experiment = make_experiment("standard", checkpoint_seconds=0.0)
    with crash_before(5):
        train(experiment, data, tmp_path, CPU)
    log = run_folder(tmp_path, experiment, data) / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(
        InputError, match=r"log\.jsonl is shorter than at the last checkpoint; delete .* to train again"
    ):
        train(experiment, data, tmp_path, CPU)


def test_full_disk_while_logging(
    make_experiment: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer._Training, "_loop", full)
    with pytest.raises(InputError, match=r"Cannot write .*log\.jsonl: .*No space left on device"):
        train(make_experiment("standard"), data, tmp_path, CPU)


def test_what_json_lacks_is_null_in_the_log_and_an_alarm_to_the_guard(tmp_path: Path) -> None:
    losses = Losses(torch.tensor(torch.inf), {"clean": torch.tensor(1.5), "inner_nonfinite": torch.tensor(3.0)})
    record = step_record(losses, torch.tensor(torch.nan), 0.1)
    assert record["nonfinite"] == 5
    with open_log(tmp_path, 0, Guard()) as log:
        alarm = log.observe({"step": 1, "epoch": 1 / 3, "attempt": 0} | record)
        length = log.flush()
    assert alarm is not None
    assert (alarm.cause, alarm.found) == ("nonfinite", "loss, gradient_norm and inner problem")
    (line,) = read_log(tmp_path / "log.jsonl")
    assert (line["loss"], line["clean"], line["gradient_norm"]) == (None, 1.5, None)
    assert length == (tmp_path / "log.jsonl").stat().st_size


def test_resumed_log_is_cut_and_its_lines_are_watched(tmp_path: Path) -> None:
    """With a patience of two, one broken step before an interruption and one behind it raise the alarm."""
    guard = Guard(buffer_std=0.1, patience=2)
    broken = {"step": 1, "epoch": 1.0, "loss": 1.0, "buffer_std": 0.01, "nonfinite": 0}
    with open_log(tmp_path, 0, guard) as log:
        assert log.observe(broken) is None
        length = log.flush()
        log.observe(broken | {"step": 99})
    with open_log(tmp_path, length, guard) as log:
        assert not log.quiet
        alarm = log.observe(broken | {"step": 2})
    assert alarm is not None
    assert (alarm.cause, alarm.step) == ("buffer_std", 2)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_log_of_a_rank_that_does_not_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with no_log(Guard()) as log:
        assert log.observe({"step": 1, "epoch": 1.0, "loss": 1.0, "nonfinite": 0}) is None
    assert not list(tmp_path.iterdir())
