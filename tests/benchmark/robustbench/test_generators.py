"""RobustBench's generators on model_info files: what they make, and which of them failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.models.robustbench_import import imported
from benchmark.models.zoo import model_ids
from benchmark.robustbench.generators import consume
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

# Importing RobustBench takes seconds: one worker does it.
pytestmark = pytest.mark.xdist_group("robustbench")

LINF = ThreatModel.parse("Linf:8/255")
RECORD = {
    **{"link": "https://example.org/paper", "name": "A <Title>", "authors": "A. One, B. Two", "additional_data": False},
    **{"number_forward_passes": 1, "dataset": "cifar10", "venue": "NeurIPS 2026", "architecture": "WideResNet-28-10"},
    **{"eps": "8/255", "clean_acc": "84.92", "reported": "56.61", "autoattack_acc": "53.08", "unreliable": False},
}


@pytest.fixture
def model_info(tmp_path: Path) -> Callable[..., Path]:
    """Write model_info files of one data set and norm, model id to what its record changes; None takes a key out."""

    def write(**records: dict[str, Any]) -> Path:
        folder = tmp_path / "info" / "cifar10" / "Linf"
        folder.mkdir(parents=True, exist_ok=True)
        for model_id, changes in records.items():
            (folder / f"{model_id}.json").write_text(json.dumps({**RECORD, **changes}))
        return tmp_path / "info"

    return write


def test_missing_template_and_model_info_are_bridged_for_the_generators(
    model_info: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two models that the zoo does not know, the weaker one with a better number from elsewhere."""
    monkeypatch.chdir(tmp_path)
    folder = model_info(One2026Title_R18={}, Three2026Other={"autoattack_acc": "50.00", "external": "54.00"})
    made = consume(folder, "cifar10", LINF)
    assert list(made) == ["list_available_models", "bibtex", "latex", "leaderboard"]
    for text, (first, second) in {
        made["list_available_models"]: ("Three2026Other", "One2026Title_R18"),
        made["bibtex"]: ("@article{One2026Title", "@article{Three2026Other"),
        made["latex"]: ("Three2026Other", "One2026Title"),
        made["leaderboard"]: ("54.00%", "53.08%"),
    }.items():
        assert 0 <= text.index(first) < text.rindex(second)
    for field in ("A <Title>", "https://example.org/paper", "84.92%", "50.00%", "WideResNet-28-10", "NeurIPS 2026"):
        assert field in made["leaderboard"]
    assert Path.cwd() == tmp_path
    assert not {"One2026Title_R18", "Three2026Other"} & set(model_ids("cifar10", LINF))


def test_the_release_lacks_template_and_model_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with imported() as robustbench:
        release = Path(str(robustbench.__file__)).parent
        if list(release.glob("leaderboard/*.j2")):
            pytest.skip("this release has its template")
        (tmp_path / "model_info" / "cifar10" / "Linf").mkdir(parents=True)
        with pytest.raises(LookupError, match=r"leaderboard\.html\.j2"):
            robustbench.leaderboard.template.generate_leaderboard("cifar10", "Linf")
        assert not (release / "model_info").exists()


@pytest.mark.parametrize(
    ("changes", "consumer"),
    [
        ({"external": None}, "list_available_models"),
        ({"authors": None}, "bibtex"),
        ({"venue": None}, "bibtex"),
        ({"architecture": None}, "latex"),
    ],
)
def test_generator_that_fails_is_named(
    model_info: Callable[..., Path], changes: dict[str, Any], consumer: str, tmp_path: Path
) -> None:
    before = Path.cwd()
    with pytest.raises(InputError, match=f"RobustBench's {consumer} fails on {tmp_path / 'info'}"):
        consume(model_info(One2026Title=changes), "cifar10", LINF)
    assert Path.cwd() == before


def test_folder_without_model_info_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model_info file in"):
        consume(tmp_path, "cifar10", LINF)
