"""What an entry keeps of its training: means over epochs, replayed as the training went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.results.training_record import training_record
from methods.errors import InputError


def line(step: int, **terms: float | None) -> dict[str, Any]:
    """Return a step's line of a training with two steps an epoch."""
    return {"step": step, "epoch": step / 2, "loss": 1.0, "nonfinite": 0} | terms


def recorded(folder: Path, *lines: dict[str, Any], **manifest: Any) -> dict[str, Any]:
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return training_record(folder, manifest)


def test_terms_are_averaged_over_the_first_and_the_last_epoch(tmp_path: Path) -> None:
    record = recorded(
        tmp_path,
        line(1, energy_adv=-1.0, energy_clean=-3.0, clean=2.0),
        line(2, energy_adv=-2.0, energy_clean=-5.0, clean=4.0),
        {"step": 2, "epoch": 1, "nonfinite": 0, "validation": {"clean": 50.0}},
        line(3, clean=9.0),
        line(4, clean=9.0),
        line(5, energy_adv=-4.0, energy_clean=-4.5, clean=1.0),
        line(6, energy_adv=-4.0, energy_clean=-4.0, clean=0.0),
        {"step": 6, "epoch": 3, "progress": 1.0, "nonfinite": 0, "validation": {"clean": 60.0}},
    )
    assert record["first_epoch"]["clean"] == 3.0
    assert record["first_epoch"]["energy_gap_logged"] == 2.5
    assert record["last_epoch"]["energy_adv"] == -4.0
    assert record["last_epoch"]["energy_gap_logged"] == 0.25
    assert set(record["last_epoch"]) == {
        *{"loss", "nonfinite", "energy_adv", "energy_clean", "energy_gap_logged", "clean"}
    }


def test_missing_values_are_left_out_of_the_mean(tmp_path: Path) -> None:
    record = recorded(tmp_path, line(1, clean=2.0, energy_adv=1.0, energy_clean=None), line(2, clean=float("nan")))
    assert record["last_epoch"]["clean"] == 2.0
    assert record["last_epoch"]["energy_adv"] == 1.0
    assert not {"energy_clean", "energy_gap_logged"} & set(record["last_epoch"])


def test_what_a_rollback_undid_does_not_count(tmp_path: Path) -> None:
    abandoned = [line(step, clean=100.0) for step in (3, 4, 5, 6)]
    rollback = {"event": "rollback", "step": 6, "epoch": 3.0, "to": 2, "cause": "buffer_std"}
    kept = line(1, clean=1.0), line(2, clean=2.0)
    record = recorded(tmp_path, *kept, *abandoned, rollback, line(3, clean=3.0), line(4, clean=4.0))
    assert (record["first_epoch"]["clean"], record["last_epoch"]["clean"]) == (1.5, 3.5)
    record = recorded(tmp_path, *kept, *abandoned, rollback)
    assert record["last_epoch"]["clean"] == 1.5


def test_last_epoch_of_a_stopped_training_is_the_one_it_stopped_in(tmp_path: Path) -> None:
    stop = {"event": "stop", "step": 3, "epoch": 1.5, "cause": "nonfinite", "found": "loss"}
    record = recorded(tmp_path, line(1, clean=1.0), line(2, clean=2.0), line(3, clean=7.0), stop)
    assert record["last_epoch"]["clean"] == 7.0


def test_interventions_are_kept_and_nothing_else_of_the_manifest(tmp_path: Path) -> None:
    interventions = [{"step": 7, "epoch": 3.5, "cause": "saturated", "to": 2}]
    collapse = {"step": 9, "epoch": 4.5, "cause": "nonfinite"}
    record = recorded(tmp_path, interventions=interventions, restarts=1, collapse=collapse, status="failed", seed=0)
    assert record == {"interventions": interventions, "restarts": 1, "collapse": collapse}


def test_damaged_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1')
    with pytest.raises(InputError, match=r"log\.jsonl"):
        training_record(tmp_path, {})


def test_curves_are_means_over_equal_spans_of_steps(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    for step in range(1, 201):
        lines.append(line(step, energy_adv=float(step), energy_clean=0.5, lr=1 / 3, buffer_std=0.1))
        if step % 40 == 0:
            lines.append({"step": step, "epoch": step // 2, "nonfinite": 0, "validation": {"clean": step, "robust": 1}})
    curves = recorded(tmp_path, *lines)["curves"]
    assert list(curves) == [
        *("epoch", "loss", "energy_clean", "energy_adv", "energy_gap_logged", "lr"),
        *("validation_clean", "validation_robust"),
    ]
    assert curves["energy_adv"] == [5 * point + 3 for point in range(40)]
    assert curves["energy_gap_logged"] == [5 * point + 2.5 for point in range(40)]
    assert curves["epoch"][0] == pytest.approx(1.5)
    assert set(curves["lr"]) == {0.33333}
    assert {place: value for place, value in enumerate(curves["validation_clean"]) if value is not None} == {
        7: 40,
        15: 80,
        23: 120,
        31: 160,
        39: 200,
    }


def test_curves_of_a_short_or_sparse_log_have_a_point_a_line(tmp_path: Path) -> None:
    curves = recorded(tmp_path, *(line(step, clean=1.0) for step in (10, 20, 30)))["curves"]
    assert curves == {"epoch": [5, 10, 15], "loss": [1, 1, 1]}


def test_curves_have_no_number_where_none_is_finite(tmp_path: Path) -> None:
    curves = recorded(tmp_path, line(1, energy_adv=1.0, energy_clean=2.0), line(2, loss=None, energy_adv=float("nan")))[
        "curves"
    ]
    assert curves["loss"] == [1.0, None]
    assert curves["energy_adv"] == [1.0, None]
    assert curves["energy_gap_logged"] == [-1.0, None]
    assert "NaN" not in json.dumps(curves)


def test_curves_leave_out_what_a_rollback_undid_and_keep_the_validation_it_went_back_to(tmp_path: Path) -> None:
    def validation(step: int, clean: float) -> dict[str, Any]:
        return {"step": step, "epoch": step // 2, "nonfinite": 0, "validation": {"clean": clean}}

    rollback = {"event": "rollback", "step": 4, "epoch": 2.0, "to": 2, "cause": "accuracy_drop"}
    curves = recorded(
        tmp_path,
        *(line(1), line(2), validation(2, 50.0)),
        *(line(3, loss=100.0), line(4, loss=100.0), validation(4, 10.0)),
        rollback,
        *(line(3), line(4), validation(4, 60.0)),
    )["curves"]
    assert curves["loss"] == [1, 1, 1, 1]
    assert curves["validation_clean"] == [None, 50, None, 60]


def test_record_of_a_long_training_stays_small(tmp_path: Path) -> None:
    terms = ("accuracy_clean", "accuracy_adv", "energy_clean", "energy_adv", "energy_data", "energy_samples")
    values = dict.fromkeys((*terms, "gradient_norm", "lr"), -1.23456789)
    record = recorded(tmp_path, *(line(step, **values) for step in range(1, 3001)))
    assert len(json.dumps(record["curves"], indent=2)) < 10_000
