"""Commands are timed in processes of their own, and one that fails is no measurement."""

from collections.abc import Sequence

import pytest
import torch

from benchmark.cli import main
from benchmarks import startup
from benchmarks.timing import Settings
from methods.errors import InputError


def test_quick_measures_help_against_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(startup, "_python", lambda arguments, status=0: asked.append(tuple(arguments)))
    rows = list(startup.run(Settings(torch.device("cpu"), quick=True, repeats=1)))
    assert rows[0].case == "python -m benchmark --help"
    assert rows[0].target == startup.HELP_TARGET
    assert not any("--leaderboards" in arguments for arguments in asked)


def test_the_whole_measures_make_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(startup, "_python", lambda arguments, status=0: asked.append(tuple(arguments)))
    rows = list(startup.run(Settings(torch.device("cpu"), repeats=2)))
    assert rows[-1].target == startup.RUN_TARGET
    assert sum("--leaderboards" in arguments for arguments in asked) == 1
    assert {"--methods", "ebjdat,trades", "--workers", "--runs", "--leaderboards"} <= set(asked[-1])


def test_commands_end_with_the_status_that_is_expected_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where all they need is imported already."""
    asked: list[tuple[Sequence[str], int]] = []
    monkeypatch.setattr(startup, "_python", lambda arguments, status=0: asked.append((arguments, status)))
    list(startup.run(Settings(torch.device("cpu"), quick=True, repeats=1)))
    found = dict.fromkeys(asked)
    assert {status for _, status in found} == {0, 2}
    for arguments, status in found:
        what, *rest = arguments
        if what == "-c":
            exec(rest[0], {})
            continue
        assert (what, rest[0]) == ("-m", "benchmark")
        with pytest.raises(SystemExit) as stop:
            main(rest[1:])
        assert int(stop.value.code or 0) == status


def test_a_process_may_end_with_the_status_that_is_expected_of_it() -> None:
    startup._python(("-c", "raise SystemExit(2)"), 2)


@pytest.mark.slow
def test_a_misspelt_recipe_is_refused_as_expected() -> None:
    startup._python(("-m", "benchmark", "run", "--methods", "tradse"), 2)


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(InputError, match=r"ended with status 1: ValueError: no"):
        startup._python(("-c", "raise ValueError('no')"))
