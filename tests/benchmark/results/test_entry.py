"""Result files: what is written reads back equal, and what is malformed is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from benchmark.results.entry import Entry, Measurement, pack, read_entry, unpack
from benchmark.results.layout import write_entry
from methods.errors import InputError

MEASUREMENT = {"metric": "clean", "version": 1, "status": "done", "n": 3, "seconds": 0.5, "key": "0"}


def test_entry_survives_the_file(entry: Callable[..., Entry], tmp_path: Path) -> None:
    written = entry(training={"epochs": 5}, overrides=["train.epochs=5"])
    path = write_entry(tmp_path, written)
    assert read_entry(path) == written


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"recipe": None}, '"recipe"'),
        ({"colour": "blue"}, 'unknown key "colour"'),
        ({"schema_version": 2}, '"schema_version"'),
        ({"seed": "0"}, '"seed"'),
        ({"measurements": {"clean": {}}}, '"measurements.clean.metric" is missing'),
    ],
)
def test_malformed_entry_is_refused_by_name(
    entry: Callable[..., Entry], tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(json.loads(entry().model_dump_json()) | change))
    with pytest.raises(InputError) as caught:
        read_entry(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_file_that_is_no_entry_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.json"):
        read_entry(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_measurement_holds_what_json_cannot(value: float) -> None:
    with pytest.raises(ValidationError):
        Measurement.model_validate(MEASUREMENT | {"values": {"accuracy": value}})


def test_whole_numbers_stay_whole_and_none_stays_none() -> None:
    measurement = Measurement.model_validate(MEASUREMENT | {"values": {"steps": 20, "accuracy": 5.0, "std": None}})
    text = measurement.model_dump_json()
    assert '"steps":20,"accuracy":5.0,"std":null' in text
    assert Measurement.model_validate_json(text) == measurement


def test_verdicts_survive_packing() -> None:
    for n in (1, 7, 8, 9, 300):
        correct = np.random.default_rng(n).random(n) < 0.5
        assert (unpack(pack(correct), n) == correct).all()


@pytest.mark.parametrize(("text", "n"), [("####", 8), ("AA==", 9), ("AAA=", 8)])
def test_foreign_verdicts_are_refused(text: str, n: int) -> None:
    with pytest.raises(InputError, match="The verdicts"):
        unpack(text, n)


def test_lists_of_numbers_take_a_line_and_stay_what_they_are(entry: Callable[..., Entry], tmp_path: Path) -> None:
    made = entry()
    clean = made.measurements["clean"].model_copy(
        update={"series": {"eps": [0.0, 0.15, None]}, "flags": ["a shape [ 3, 8 ] and\n[\n  1\n]"]}
    )
    made = made.model_copy(update={"measurements": {"clean": clean}})
    path = write_entry(tmp_path, made)
    assert '"eps": [0.0, 0.15, null]' in path.read_text()
    assert read_entry(path) == made
