"""Recipes, overlays and what the command line lays over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.specs import recipes
from methods.errors import InputError

Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Put files, name -> YAML, in the place of the project's configs/."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "configs" / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(recipes, "CONFIGS", tmp_path / "configs")
        return tmp_path / "configs"

    return write


def refusal(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    """Return the sentence with which a call refuses its arguments."""
    with pytest.raises(InputError) as refused:
        call(*arguments, **named)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def resolve(recipe: str = "own", changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return recipes.settings(recipe, "shapes", seed=3, changes=changes or {})


@pytest.mark.parametrize(
    ("spelt", "meant"),
    [
        ("jempp", "jempp"),
        ("JEM++", "jempp"),
        ("jem", "jem"),
        ("PGD-AT", "pgd_at"),
        ("pgd at", "pgd_at"),
        ("eb-jdat", "ebjdat"),
        ("EB_JDAT", "ebjdat"),
    ],
)
def test_recipe_is_found_however_it_is_spelt(configs: Write, spelt: str, meant: str) -> None:
    configs(dict.fromkeys(("jem", "jempp", "pgd_at", "ebjdat"), "method: standard"))
    assert recipes.find_recipe(spelt) == meant


def test_unknown_recipe_is_told_the_nearest_one() -> None:
    assert refusal(recipes.find_recipe, "tradse") == 'There is no recipe "tradse". Did you mean "trades"?'
    assert refusal(recipes.find_recipe, "qqqqqq") == 'There is no recipe "qqqqqq".'


def test_later_layers_win(configs: Write, tmp_path: Path) -> None:
    configs(
        {
            "own": "{method: mart, v: {a: recipe, b: recipe, c: recipe, d: recipe, e: recipe}}",
            "datasets/shapes": "{v: {b: general, c: general, d: general, e: general}, methods: "
            "{mart: {v: {c: method, d: method, e: method}}, other: {v: {a: wrong}}}}",
        }
    )
    file = tmp_path / "mine.yaml"
    file.write_text("v: {d: config, e: config}")
    assert resolve(changes=recipes.changes(file, ["v.e=set"])) == {
        "recipe": "own",
        "method": "mart",
        "dataset": "shapes",
        "seed": 3,
        "v": {"a": "recipe", "b": "general", "c": "method", "d": "config", "e": "set"},
    }


def test_later_set_wins_and_keeps_what_lies_beside_it() -> None:
    changed = recipes.changes(None, ["train.lr=1", "train.epochs=2", "train.lr=0.5", "data.augment.flip=true"])
    assert changed == {"train": {"lr": 0.5, "epochs": 2}, "data": {"augment": {"flip": True}}}


def test_merging_replaces_lists_and_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"x": [1, 2]}, "b": {"y": 1}}, {"a": {"x": [3]}, "b": 5}
    assert recipes.merge(base, over) == {"a": {"x": [3]}, "b": 5}
    assert (base, over) == ({"a": {"x": [1, 2]}, "b": {"y": 1}}, {"a": {"x": [3]}, "b": 5})


def test_threat_of_the_protocol_is_for_recipes_that_name_none(configs: Write) -> None:
    configs({"own": "{method: mart, threat: 'L2:0.5'}", "open": "method: mart"})
    threats = [
        recipes.settings(name, "shapes", seed=0, changes={}, threat="Linf:0.1")["threat"] for name in ("own", "open")
    ]
    assert threats == ["L2:0.5", "Linf:0.1"]


def test_recipe_extends_others(configs: Write) -> None:
    configs(
        {
            "own": "{extends: middle, v: {c: own}}",
            "middle": "{extends: root, v: {b: middle, c: middle}}",
            "root": "{method: mart, v: {a: root, b: root, c: root}}",
        }
    )
    resolved = resolve()
    assert resolved["v"] == {"a": "root", "b": "middle", "c": "own"}
    assert resolved["recipe"] == "own"
    assert "extends" not in resolved


def test_preset_lies_between_a_recipe_and_the_data_set(configs: Write) -> None:
    configs(
        {
            "own": "{method: mart, v: {a: recipe, b: recipe, c: recipe, d: recipe, e: recipe}}",
            "alone": "method: mart",
            "presets/fair": "{v: {b: preset, c: preset, d: preset, e: preset}, recipes: {own: {v: {c: own, d: own}}}}",
            "datasets/shapes": "{v: {d: general, e: general}, "
            "recipes: {own: {v: {e: mine}}, own_fair: {v: {f: fair}}}}",
        }
    )
    assert list(recipes.recipes()) == ["alone", "own", "own_fair"]
    assert [recipes.plain(name) for name in ("alone", "own_fair", "elsewhere")] == ["alone", "own", "elsewhere"]
    assert [recipes.under(name, "fair") for name in ("alone", "own")] == ["alone", "own_fair"]
    assert recipes.under("own", None) == "own"
    found = recipes.settings("own_fair", "shapes", seed=0, changes={})
    assert found["recipe"] == "own_fair"
    assert found["v"] == {"a": "recipe", "b": "preset", "c": "own", "d": "general", "e": "mine", "f": "fair"}
    assert recipes.settings("own", "shapes", seed=0, changes={})["v"]["b"] == "recipe"


def test_another_method_inside_does_not_get_the_options_of_the_first(configs: Write) -> None:
    configs({"own": "{method: awp, options: {base: pgd_at, gamma: 0.1, base_options: {attack_mode: train}}}"})
    same, other = (resolve(changes=recipes.changes(None, [f"options.base={base}"])) for base in ("pgd_at", "mart"))
    assert same["options"]["base_options"] == {"attack_mode": "train"}
    assert other["options"] == {"base": "mart", "gamma": 0.1}
    given = recipes.changes(None, ["options.base=mart", "options.base_options.beta=5"])
    assert resolve(changes=given)["options"]["base_options"] == {"beta": 5}


def test_preset_of_no_recipe_is_refused(configs: Write) -> None:
    folder = configs({"own": "method: mart", "presets/fair": "{v: {}, recipes: {owm: {}}}"})
    said = refusal(recipes.settings, "owm_fair", "shapes", seed=0, changes={})
    assert said == f'{folder / "presets" / "fair.yaml"} lists "owm", which is no recipe. Did you mean "own"?'


@pytest.mark.parametrize(
    ("files", "parent"),
    [
        ({"own": "extends: rot"}, "rot"),
        ({"own": "extends: own"}, "own"),
        ({"own": "extends: middle", "middle": "extends: own"}, "own"),
        ({"own": "extends: [root]"}, "['root']"),
    ],
    ids=["unknown", "itself", "cycle", "list"],
)
def test_recipe_extends_no_other_recipe(configs: Write, files: dict[str, str], parent: str) -> None:
    configs({"root": "method: mart"} | files)
    assert f'extends "{parent}", which is no other recipe.' in refusal(resolve)


def test_unknown_parent_is_told_the_nearest_recipe(configs: Write) -> None:
    configs({"root": "method: mart", "own": "extends: rot"})
    assert refusal(resolve).endswith('Did you mean "root"?')


def test_recipe_needs_a_method(configs: Write) -> None:
    folder = configs({"own": "train: {epochs: 5}"})
    assert refusal(resolve) == f'{folder / "own.yaml"} names no "method".'


@pytest.mark.parametrize("text", ["", "train.epochs", "=5", "a..b=1", ".a=1", "a.=1"])
def test_set_needs_a_key_and_a_value(text: str) -> None:
    assert refusal(recipes.changes, None, [text]) == f'--set takes key.sub=value, not "{text}".'


def test_set_needs_a_yaml_value() -> None:
    assert refusal(recipes.changes, None, ["train.lr=[1"]) == '--set train.lr: "[1" is not a YAML value.'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=5", 5),
        ("k=null", None),
        ("k=", None),
        ("k=1/3", "1/3"),
        ("k=a=b", "a=b"),
        ("k={a: 1}", {"a": 1}),
        ("k=[0.5, 0.75]", [0.5, 0.75]),
    ],
)
def test_set_reads_its_value_as_yaml(text: str, value: object) -> None:
    assert recipes.changes(None, [text]) == {"k": value}


@pytest.mark.parametrize(("key", "option"), [("recipe", "--methods"), ("dataset", "--dataset"), ("seed", "--seeds")])
def test_setting_never_contradicts_an_option(tmp_path: Path, key: str, option: str) -> None:
    sentence = f'"{key}" is no setting; give it with {option}.'
    assert refusal(recipes.changes, None, [f"{key}=1"]) == sentence
    (tmp_path / "mine.yaml").write_text(f"{key}: 1")
    assert refusal(recipes.changes, tmp_path / "mine.yaml", []) == sentence


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"- a\n- b\n", "must hold a mapping of settings, not list"),
        (b"text", "must hold a mapping of settings, not str"),
        (b"train: {epochs: 5\nlr: [", "is not valid YAML"),
        (b"a: !!python/object:os.system x", "is not valid YAML"),
        (b"a: \xff\xfe", "is not valid YAML"),
    ],
    ids=["list", "text", "broken", "object", "bytes"],
)
def test_file_must_be_a_yaml_mapping(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert refusal(recipes.read_yaml, path).startswith(f"{path} {complaint}")


def test_file_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert refusal(recipes.read_yaml, missing) == f"Cannot read {missing}: No such file or directory."
    assert refusal(recipes.read_yaml, tmp_path) == f"Cannot read {tmp_path}: Is a directory."


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# nothing\n")
    assert recipes.changes(tmp_path / "mine.yaml", []) == {}


def test_flat_writes_settings_as_they_are_set() -> None:
    assert recipes.flat({"train": {"lr": 0.5, "epochs": 2}, "budget": "small"}) == [
        "budget=small",
        "train.epochs=2",
        "train.lr=0.5",
    ]
    assert recipes.flat({}) == []


def test_name_of_a_data_set_does_not_depend_on_case(configs: Write) -> None:
    configs({"own": "method: mart", "datasets/shapes": "v: 1"})
    assert recipes.overlay("SHAPES") == {"v": 1}
    assert recipes.settings("own", "Shapes", seed=0, changes={})["dataset"] == "shapes"
    assert recipes.canonical("NPZ:Data.npz") == "npz:Data.npz"


@pytest.mark.parametrize("dataset", ["npz:a.npz", "../own", "shape"])
def test_other_data_sets_have_no_overlay(configs: Write, dataset: str) -> None:
    configs({"own": "method: mart", "datasets/shapes": "v: 1"})
    assert recipes.overlay(dataset) == {}
