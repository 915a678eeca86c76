"""The files of the results: a round trip, one benchmark's rows replaced, the table and the picture."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import results
from benchmarks.timing import Row, Settings
from methods.errors import InputError

MACHINE = {"cpu": "Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", "cores": 2, "memory_gib": 24, "gpu": None}


def measured(*rows: Row, quick: bool = False) -> results.Measured:
    return results.Measured(rows, results.circumstances(Settings(torch.device("cpu"), quick), 12.34))


ROWS = (
    Row.of("training", "TRADES | bf16", "speed-up", [3.1, 2.8, 2.9], 3, ours_seconds=0.5, largest_difference=1.2e-6),
    Row.of("training", "JEM++", "speed-up", [1.8], 1.7),
)
MEMORY = (Row.of("memory", "trades", "MiB", [412.0]), Row.of("start-up", "--help", "seconds", [0.2], 0.3))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    wanted = {"training": measured(*ROWS), "memory": measured(MEMORY[0])}
    results.write(tmp_path, MACHINE, wanted)
    assert results.read(tmp_path) == wanted
    assert json.loads((tmp_path / "results.json").read_text())["hardware"] == MACHINE


def test_a_folder_without_results_holds_none(tmp_path: Path) -> None:
    assert results.read(tmp_path) == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"benchmarks": {"memory": {"rows": [{"speed": 1}]}}}'])
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match="truncated or foreign"):
        results.read(tmp_path)


def test_the_table_says_what_was_missed_and_under_what_it_was_measured(tmp_path: Path) -> None:
    text = results.table(MACHINE, {"training": measured(*ROWS), "memory": measured(MEMORY[0])})
    assert "Xeon(R) Gold 6330 CPU @ 2.00GHz, 2 cores, 24 GiB" in text
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert (
        "2.90 [2.80, 3.10] | ≥ 3 | **no** | largest difference 1.2e-06, ours seconds 0.500"
        in lines["| TRADES \\| bf16"]
    )
    assert "| ≥ 1.70 | yes |" in lines["| JEM++"]
    assert "412 [412, 412] |  |  |" in lines["| trades"]
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "quick" not in text


def test_quick_numbers_are_labelled() -> None:
    assert "**quick: shows that it runs, measures nothing**" in results.table(MACHINE, {"memory": measured(quick=True)})


@pytest.mark.parametrize("rows", [ROWS, MEMORY, ROWS + MEMORY, MEMORY[:1]])
def test_the_picture_is_drawn_of_any_kind_of_row(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    results.write(tmp_path, MACHINE, {"all": measured(*rows)})
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("machine", "folder"),
    [
        (MACHINE, "intel-xeon-gold-6330-2-cores"),
        (MACHINE | {"gpu": "NVIDIA H200"}, "nvidia-h200"),
        (MACHINE | {"cpu": "AMD EPYC 7R32 48-Core Processor", "cores": 8}, "amd-epyc-7r32-48-core-8-cores"),
    ],
)
def test_a_folder_is_named_by_the_hardware(machine: dict[str, object], folder: str) -> None:
    assert results.slug(machine) == folder


def test_this_machine_has_a_name() -> None:
    found = results.hardware(torch.device("cpu"))
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["gpu"] is None
