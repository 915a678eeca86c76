"""RobustBench's record of a model: its form, field by field, and what RobustBench itself does with other forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from jinja2 import DictLoader

from benchmark.models.robustbench_import import imported
from benchmark.robustbench.generators import consume
from benchmark.robustbench.model_info import Rehearsal, check_id, percent, read, write
from benchmark.specs.schema import checked
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

# Importing RobustBench takes seconds: one worker does it.
pytestmark = pytest.mark.xdist_group("robustbench")

LINF = ThreatModel.parse("Linf:8/255")
RECORD: dict[str, Any] = {
    "link": "https://arxiv.org/abs/2406.05927",
    "name": "A Title: with $\\ell_p$ and R&D",
    "authors": "A. One, B. Two",
    "additional_data": False,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "NeurIPS 2026",
    "architecture": "WideResNet-28-10",
    "eps": "8/255",
    "clean_acc": "84.92",
    "reported": "56.61",
    "autoattack_acc": "53.08",
    "external": "52.90",
    "footnote": "Uses \\(\\ell_{\\infty} \\) and 1M synthetic images.",
    "unreliable": False,
}
OPTIONAL = ("external", "footnote", "unreliable")


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """Write a record, or any text, where RobustBench keeps records, and return the path."""

    def write_down(content: dict[str, Any] | str, folder: str = "cifar10/Linf", name: str = "One2026Title") -> Path:
        path = tmp_path / "model_info" / folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_down


def refusal(path: Path) -> str:
    """Return the one sentence with which a file is refused, without the path in front."""
    with pytest.raises(InputError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"The model info {path}")
    assert "\n" not in sentence
    return sentence.removeprefix(f"The model info {path}").removeprefix(": ")


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in RECORD.items() if key not in keys}


def consumed(path: Path) -> dict[str, str]:
    return consume(path.parents[2], "cifar10", LINF)


def test_written_record_is_read_again(place: Callable[..., Path]) -> None:
    path = place(RECORD)
    record = read(path)
    write(path, record)
    assert json.loads(path.read_text()) == RECORD
    assert list(json.loads(path.read_text())) == list(RECORD)
    assert path.read_text().startswith('{\n  "link": ')


def test_record_without_what_may_be_left_out_has_no_such_key(place: Callable[..., Path]) -> None:
    path = place(without(*OPTIONAL) | {"reported": ""})
    write(path, read(path))
    assert json.loads(path.read_text()) == without(*OPTIONAL) | {"reported": ""}


@pytest.mark.parametrize(
    ("dataset", "norm", "eps"),
    [
        ("cifar10", "Linf", "8/255"),
        ("cifar10", "L2", "0.5"),
        ("cifar100", "Linf", "8/255"),
        ("imagenet", "Linf", "4/255"),
    ],
)
def test_each_leaderboard_has_its_eps(place: Callable[..., Path], dataset: str, norm: str, eps: str) -> None:
    content = RECORD | {"dataset": dataset, "eps": eps}
    assert read(place(content, f"{dataset}/{norm}")).eps == eps
    wrong = refusal(place(content | {"eps": "0.031"}, f"{dataset}/{norm}"))
    assert wrong == f" has the eps 0.031, and the leaderboard {dataset}/{norm} is for {eps}."


@pytest.mark.parametrize("key", [key for key in RECORD if key not in OPTIONAL])
def test_missing_field(place: Callable[..., Path], key: str) -> None:
    assert refusal(place(without(key))) == f'the key "{key}" is missing.'


@pytest.mark.parametrize("key", RECORD)
def test_null_in_any_field(place: Callable[..., Path], key: str) -> None:
    assert refusal(place(RECORD | {key: None})).startswith(f'"{key}" is None, but')


@pytest.mark.parametrize("key", RECORD)
def test_value_of_another_type_in_any_field(place: Callable[..., Path], key: str) -> None:
    wrong = "1" if isinstance(RECORD[key], int) else 1
    assert refusal(place(RECORD | {key: wrong})).startswith(f'"{key}" is {wrong!r}, but input should be')


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"autoatack_acc": "1.00"}, 'unknown key "autoatack_acc". Did you mean "autoattack_acc"?'),
        ({"corruptions_acc": "1.00"}, 'unknown key "corruptions_acc".'),
        ({"link": "arxiv.org/abs/1"}, "\"link\" is 'arxiv.org/abs/1', but it should be an address that begins"),
        ({"name": ""}, "\"name\" is '', but it should be one line"),
        ({"name": "Title\n"}, "\"name\" is 'Title\\n', but it should be one line"),
        ({"authors": " A. One"}, "\"authors\" is ' A. One', but it should be one line"),
        ({"architecture": "<b>"}, "\"architecture\" is '<b>', but the leaderboard prints it unescaped"),
        ({"number_forward_passes": 0}, '"number_forward_passes" is 0, but'),
        ({"dataset": "digits"}, "\"dataset\" is 'digits', but input should be 'cifar10', 'cifar100' or 'imagenet'."),
        ({"venue": "NeurIPS"}, "\"venue\" is 'NeurIPS', but it should end in a space and the year"),
        ({"venue": ""}, "\"venue\" is '', but"),
        ({"eps": "8/256"}, "\"eps\" is '8/256', but it should be a fraction of 255"),
        ({"eps": "0.50"}, "\"eps\" is '0.50', but"),
        ({"clean_acc": "100.01"}, "\"clean_acc\" is '100.01', but it should be a percentage with two decimals"),
        ({"clean_acc": "08.00"}, "\"clean_acc\" is '08.00', but"),
        ({"reported": "null"}, "\"reported\" is 'null', but"),
        ({"external": "53"}, "\"external\" is '53', but"),
    ],
)
def test_wrong_value(place: Callable[..., Path], content: dict[str, Any], sentence: str) -> None:
    assert refusal(place(RECORD | content)).startswith(sentence)


def test_percentages_have_two_decimals(place: Callable[..., Path]) -> None:
    values = [0.0, 5.0, 87.5, 53.084, 100.0]
    assert [percent(value) for value in values] == ["0.00", "5.00", "87.50", "53.08", "100.00"]
    for value in values:
        assert read(place(RECORD | {"clean_acc": percent(value)})).clean_acc == percent(value)


def test_record_in_the_wrong_folder(place: Callable[..., Path]) -> None:
    assert refusal(place(RECORD, "cifar100/Linf")) == " is of cifar10, and does not belong in cifar100/Linf."
    nowhere = refusal(place(RECORD, "cifar10/corruptions"))
    assert nowhere.startswith(" lies in cifar10/corruptions, and RobustBench's Lp leaderboards are cifar10/Linf, ")


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"'])
def test_file_that_is_no_record(place: Callable[..., Path], text: str) -> None:
    assert refusal(place(text))


def test_missing_file(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "One2026Title.json")


@pytest.mark.parametrize(
    "name", ["Wang2023Better_WRN-28-10", "Moosavi-Dezfooli2019Robustness", "Jia2022LAS-AT_34_10", "One2026Title"]
)
def test_id_of_a_model(name: str) -> None:
    assert check_id(name) == name


@pytest.mark.parametrize("name", ["", "title", "One26Title", "One2026", "One2026title", "One2026Title_", "../One2026T"])
def test_id_of_no_model(place: Callable[..., Path], name: str) -> None:
    with pytest.raises(InputError, match="is no RobustBench model ID: write the first author, the year and"):
        check_id(name)


def test_rehearsal_may_be_of_any_data_set(place: Callable[..., Path]) -> None:
    content = RECORD | {"dataset": "digits", "eps": "0.15"}
    assert checked(Rehearsal, content, "It").eps == "0.15"
    assert refusal(place(content)).startswith("\"dataset\" is 'digits'")


# What goes wrong in RobustBench itself, and is refused here: a landmine each.


def test_whole_record_is_taken_by_every_generator(place: Callable[..., Path]) -> None:
    made = consumed(place(RECORD))
    assert set(made) == {"list_available_models", "bibtex", "latex", "leaderboard"}
    assert "<sub>84.92%</sub>" in made["list_available_models"]
    assert "\tauthor\t= {A. One and B. Two},\n\tjournal\t= {NeurIPS},\n\tyear\t= {2026}" in made["bibtex"]
    assert "\\citet{One2026Title} & 84.92 & 52.90 & N & WRN-28-10 & NeurIPS 2026" in made["latex"]
    assert "52.90%" in made["leaderboard"]


def test_landmine_external_null(place: Callable[..., Path]) -> None:
    path = place(RECORD | {"external": None})
    with pytest.raises(InputError, match="list_available_models fails"):
        consumed(path)
    assert refusal(path) == '"external" is None, but no generator of RobustBench\'s knows a null: leave the key out.'


def test_landmine_unreliable_null_is_shown_as_reliable(place: Callable[..., Path]) -> None:
    records = (without("unreliable"), RECORD | {"unreliable": None}, RECORD | {"unreliable": False})
    unknown, null, reliable = (consumed(place(record))["leaderboard"] for record in records)
    assert null == reliable != unknown
    assert refusal(place(records[1])).startswith('"unreliable" is None, but')


@pytest.mark.parametrize("key", ["clean_acc", "autoattack_acc", "external", "reported"])
def test_landmine_accuracy_as_float(place: Callable[..., Path], key: str) -> None:
    path = place(RECORD | {key: 87.5})
    assert consumed(path)
    assert refusal(path) == f'"{key}" is 87.5, but input should be a valid string.'


def test_landmine_one_decimal(place: Callable[..., Path]) -> None:
    path = place(RECORD | {"clean_acc": "87.5"})
    assert "87.5%" in consumed(path)["leaderboard"]
    sentence = '"clean_acc" is \'87.5\', but it should be a percentage with two decimals, such as "87.50".'
    assert refusal(path) == sentence


def test_landmine_eps_as_float(place: Callable[..., Path]) -> None:
    path = place(RECORD | {"eps": 8 / 255})
    assert consumed(path)
    assert refusal(path) == f'"eps" is {8 / 255!r}, but input should be a valid string.'


@pytest.mark.parametrize("key", ["name", "authors", "venue"])
def test_landmine_bibtex_needs_name_authors_and_venue(place: Callable[..., Path], key: str) -> None:
    path = place(without(key))
    with pytest.raises(InputError, match=r"(list_available_models|bibtex) fails"):
        consumed(path)
    assert refusal(path) == f'the key "{key}" is missing.'


def test_landmine_venue_without_a_year(place: Callable[..., Path]) -> None:
    path = place(RECORD | {"venue": "NeurIPS"})
    assert "year\t= {NeurIPS}" in consumed(path)["bibtex"]
    assert refusal(path).startswith("\"venue\" is 'NeurIPS', but it should end in a space and the year")


def test_landmine_duplicate_key(place: Callable[..., Path]) -> None:
    path = place(json.dumps(RECORD)[:-1] + ', "autoattack_acc": "99.99"}')
    assert "99.99%" in consumed(path)["leaderboard"]
    assert refusal(path) == 'the key "autoattack_acc" is there twice.'


def test_landmine_what_to_disk_writes_is_no_record(tmp_path: Path) -> None:
    with imported() as robustbench, chdir(tmp_path):
        enums = robustbench.model_zoo.enums
        dataset, threat = enums.BenchmarkDataset.cifar_10, enums.ThreatModel.Linf
        robustbench.utils.update_json(dataset, threat, "One2026Title", 0.875, 0.5308, 8 / 255)
    path = tmp_path / "model_info" / "cifar10" / "Linf" / "One2026Title.json"
    raw = json.loads(path.read_text())
    assert (raw["clean_acc"], raw["eps"], raw["venue"]) == ("87.5", 8 / 255, None)
    with pytest.raises(InputError, match="bibtex fails"):
        consumed(path)
    assert refusal(path).startswith('unknown key "corruptions_acc"')


def test_landmine_enum_in_the_id_of_the_table(place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(RECORD)
    assert '<table id="cifar10_leaderboard_Linf"' in consumed(path)["leaderboard"]
    with imported() as robustbench:
        template, enums = robustbench.leaderboard.template, robustbench.model_zoo.enums
        head = DictLoader({"leaderboard.html.j2": '<table id="{{ dataset }}_leaderboard_{{ threat_model }}">'})
        monkeypatch.setattr(template, "PackageLoader", lambda *_: head)
        leaked = template.generate_leaderboard("cifar10", enums.ThreatModel.Linf, str(path.parents[2]))
    assert leaked == '<table id="cifar10_leaderboard_ThreatModel.Linf">'


def test_landmine_footnote_is_printed_unescaped(place: Callable[..., Path]) -> None:
    path = place(RECORD | {"footnote": "for p<0.5 </td>"})
    assert "for p<0.5 </td>" in consumed(path)["leaderboard"]
    assert refusal(path).startswith("\"footnote\" is 'for p<0.5 </td>', but the leaderboard prints it unescaped")
