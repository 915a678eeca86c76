"""Commands are timed in processes of their own, and one that fails is no measurement."""

import pytest
import torch

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


def test_the_first_step_is_one_step() -> None:
    startup.first_step()


def test_a_misspelt_recipe_is_refused_as_expected() -> None:
    startup._python(("-m", "benchmark", "run", "--methods", "tradse"), 2)


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(InputError, match=r"ended with status 1: ValueError: no"):
        startup._python(("-c", "raise ValueError('no')"))
