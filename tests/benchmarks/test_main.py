"""The command: which benchmarks run, what is kept, and how mistakes are told."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import __main__ as command
from benchmarks import results
from benchmarks.timing import Row, Settings


def fake(name: str, value: float = 1.0, error: Exception | None = None) -> ModuleType:
    module = ModuleType(f"benchmarks.{name.replace('-', '')}")

    def run(settings: Settings) -> Iterator[Row]:
        yield Row.of(name, "quick" if settings.quick else "full", "seconds", [value] * settings.repeats)
        if error is not None:
            raise error

    module.__dict__.update(NAME=name, run=run)
    return module


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    known = {name: fake(name) for name in ("training", "start-up")}
    monkeypatch.setattr(command, "discovered", lambda: known)
    return known


def values(folder: Path) -> dict[str, list[float]]:
    return {name: [row.value for row in item.rows] for name, item in results.read(folder).items()}


def test_every_benchmark_of_the_package_is_found() -> None:
    assert {"timing", "results", "picture"} & command.discovered().keys() == set()
    for name, module in command.discovered().items():
        assert name == module.NAME


def test_all_run_by_default_and_one_replaces_its_own_rows(tmp_path: Path, benchmarks: dict[str, ModuleType]) -> None:
    assert command.main(["--output", str(tmp_path)]) == 0
    assert values(tmp_path) == {"training": [1.0], "start-up": [1.0]}
    benchmarks["start-up"] = fake("start-up", 2.0)
    benchmarks["training"] = fake("training", 3.0)
    assert command.main(["startup", "--quick", "--output", str(tmp_path)]) == 0
    assert values(tmp_path) == {"training": [1.0], "start-up": [2.0]}
    found = results.read(tmp_path)
    assert (found["training"].circumstances["quick"], found["start-up"].circumstances["quick"]) == (False, True)
    assert found["start-up"].rows[0].case == "quick"


def test_one_that_crashes_keeps_its_old_rows_and_stops_no_other(
    tmp_path: Path, benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--output", str(tmp_path)]) == 0
    benchmarks["training"] = fake("training", 5.0, RuntimeError("out of luck"))
    benchmarks["start-up"] = fake("start-up", 2.0)
    assert command.main(["--output", str(tmp_path)]) == 1
    assert "failed: training: out of luck" in capsys.readouterr().err
    assert values(tmp_path) == {"training": [1.0], "start-up": [2.0]}


def test_an_interruption_says_what_continues(
    tmp_path: Path, benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(settings: Settings) -> Iterator[Row]:
        raise KeyboardInterrupt
        yield

    benchmarks["start-up"].__dict__["run"] = interrupted
    assert command.main(["--output", str(tmp_path)]) == 130
    assert "python -m benchmarks start-up" in capsys.readouterr().err
    assert values(tmp_path) == {"training": [1.0]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trainin"], 'There is no benchmark "trainin" (known: training, start-up). Did you mean "training"?'),
        (["--repeats", "0"], "--repeats is at least 1, not 0."),
        (["--device", "tpu"], 'There is no device "tpu"; use auto, cpu, cuda or cuda:N.'),
        (["--output", "FILE/results"], "Cannot write FILE/results/results.json"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path,
    benchmarks: dict[str, ModuleType],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    (tmp_path / "file").write_text("no folder")
    place = str(tmp_path / "file")
    assert command.main([argument.replace("FILE", place) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: " + sentence.replace("FILE", place))
    assert error.count("\n") == 1
