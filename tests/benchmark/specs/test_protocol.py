"""Protocols: those that come with the project, their hash, and wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.metrics import clean, pgd
from benchmark.specs.protocol import Protocol, default, load, threat_of
from benchmark.specs.recipes import protocols
from benchmark.specs.registry import DEFAULT
from methods.errors import InputError

NO_STANDARD = re.compile("attacks|apgd|release|fast")


@pytest.mark.parametrize("name", sorted(name for name in protocols() if not NO_STANDARD.search(name)))
def test_protocols_of_the_project_are_standard_and_complete(name: str) -> None:
    protocol = load(name, "L2:0.5" if name.startswith("standard-") else None)
    assert protocol.id == name
    assert protocol.role == "standard"
    order = [metric for metric in DEFAULT if metric in protocol.metrics]
    assert list(protocol.metrics) == order
    expected = {"v1": DEFAULT[:4], "v2": DEFAULT[:5], "v3": (*DEFAULT[:6], "sweep", "masking")}[name.rpartition("-")[2]]
    assert set(order) - {"fid", "fid_ref"} == set(expected)
    attack = protocol.config("pgd20")
    assert (attack.steps, attack.step_size, attack.start, attack.restarts, attack.keep) == (
        *(20, 0.25, "uniform", 1),
        "last",
    )
    assert protocol.shard == 100


@pytest.mark.parametrize("name", sorted(name for name in protocols() if name.endswith("-v2")))
def test_second_versions_add_generation_and_change_nothing_else(name: str) -> None:
    threat = "L2:0.5" if name.startswith("standard-") else None
    first, second = load(name.replace("-v2", "-v1"), threat).resolved, load(name, threat).resolved
    assert second["metrics"].pop("generation")["config"]["starts"] == ["class_gaussian", "uniform", "pca"]
    assert first | {"id": name} == second


@pytest.mark.parametrize("name", sorted(name for name in protocols() if name.endswith("-v3")))
def test_third_versions_add_metrics_and_change_none(name: str) -> None:
    threat = "L2:0.5" if name.startswith("standard-") else None
    second, third = load(name.replace("-v3", "-v2"), threat).resolved, load(name, threat).resolved
    added = {"landscape", "fid", "fid_ref", "sweep", "masking"}
    for metric in added & set(third["metrics"]):
        del third["metrics"][metric]
    assert second | {"id": name} == third


def test_released_evaluator_of_ebjdat_is_half_the_eps_with_other_attacks() -> None:
    noisy, plain = load("ebjdat-release-v1"), load("ebjdat-release-sadajem-v1")
    assert (noisy.role, noisy.threat, noisy.noise) == ("authors", "Linf:4/255", 0.03 / 2)
    assert noisy.resolved | {"id": plain.id} == plain.resolved | {"noise": 0.03 / 2}
    attack = noisy.config("pgd20")
    assert (attack.steps, attack.step_size * 4 / 255, attack.start) == (20, 0.5 / 255, "uniform")
    custom = noisy.config("autoattack_custom")
    assert (custom.attacks, custom.iterations) == (["apgd_ce", "apgd_dlr", "fab_t_wrong_box", "square"], 20)
    assert custom.queries == 5000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10-jpeg-linf-8_255-v1", "0e94bfffdc92"),
        ("digits-linf-v1", "7bc8197713b2"),
        ("digits-linf-v2", "1407f47d72de"),
        ("digits-linf-v3", "ce596443b0ca"),
        ("cifar10-jpeg-linf-8_255-v3", "38f0ee5e9e74"),
    ],
)
def test_published_protocols_keep_their_hash(name: str, expected: str) -> None:
    assert load(name).hash == expected


def test_threats_of_the_project_are_those_of_the_names() -> None:
    assert load("digits-linf-v1").threat == "Linf:0.15"
    assert {load(f"{name}-linf-8_255-v1").threat for name in ("cifar10", "cifar100", "cifar10-jpeg")} == {"Linf:8/255"}


def test_general_protocol_wants_a_threat_and_stays_standard() -> None:
    with pytest.raises(InputError, match="--threat"):
        load("standard-v1")
    assert load("standard-v1", "linf:8/255").threat == "Linf:8/255"
    assert load("standard-v1", "L2:0.5").role == "standard"


def test_another_threat_makes_a_protocol_custom() -> None:
    assert load("digits-linf-v1", "Linf:0.15").hash == load("digits-linf-v1").hash
    changed = load("digits-linf-v1", "Linf:0.1")
    assert changed.role == "custom"
    assert changed.hash != load("digits-linf-v1").hash


@pytest.mark.parametrize(
    ("dataset", "threat", "name"),
    [
        ("digits", None, "digits-linf-v3"),
        ("digits", "linf:0.15", "digits-linf-v3"),
        ("digits", "Linf:0.1", "standard-v3"),
        ("cifar10", "Linf:8/255", "cifar10-linf-8_255-v3"),
        ("cifar10-jpeg", None, "cifar10-jpeg-linf-8_255-v3"),
        ("npz:mine.npz", "L2:0.5", "standard-v3"),
    ],
)
def test_data_sets_have_protocols_of_their_own(dataset: str, threat: str | None, name: str) -> None:
    assert default(dataset, threat) == name


def test_threat_of_a_protocol_is_told_without_loading_it() -> None:
    assert threat_of("digits-linf-v1") == "Linf:0.15"
    assert threat_of("standard-v1") is None


def test_hash_is_over_content_and_not_over_words(protocol: Callable[..., Protocol]) -> None:
    reference = protocol().hash
    assert len(reference) == 12
    assert protocol(description="in other words").hash == reference
    assert protocol(metrics={"energy": {}, "pgd20": {"steps": 20}, "clean": {}}).hash == reference


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"shard": 11},
        {"threat": "Linf:0.03"},
        {"noise": 0.01},
        {"dataset": "digits"},
        {"metrics": {"clean": {}}},
        {"metrics": {"clean": {}, "pgd20": {"steps": 21}, "energy": {}}},
    ],
)
def test_hash_changes_with_what_decides_a_number(protocol: Callable[..., Protocol], change: dict[str, object]) -> None:
    assert protocol(**change).hash != protocol().hash


def test_hash_changes_with_a_version_and_with_a_default_of_the_code(
    protocol: Callable[..., Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config(pgd.Config):
        steps: int = 21

    hashes = {protocol().hash}
    monkeypatch.setattr(clean, "VERSION", clean.VERSION + 1)
    hashes.add(protocol().hash)
    monkeypatch.setattr(pgd, "Config", Config)
    hashes.add(protocol().hash)
    assert len(hashes) == 3


GOOD = "id: mine\nthreat: Linf:8/255\nmetrics:\n  clean:\n  pgd20: {steps: 5}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + "shards: 10\n", 'unknown key "shards". Did you mean "shard"'),
        (GOOD + "shard: many\n", "\"shard\" is 'many'"),
        (GOOD + "shard: 0\n", '"shard" is 0'),
        (GOOD + "seed: -1\n", '"seed" is -1'),
        (GOOD + "role: mine\n", "\"role\" is 'mine'"),
        (GOOD.replace("Linf:8/255", "Linf:8"), "8/255"),
        (GOOD.replace("steps", "step"), 'unknown key "step". Did you mean "steps"'),
        (GOOD.replace("steps: 5", "steps: 0"), '"steps" is 0'),
        (GOOD.replace("clean", "claen"), 'Did you mean "clean"'),
        (GOOD.replace("pgd20: {steps: 5}", "energy:"), 'needs "pgd20"'),
        (GOOD.replace("pgd20: {steps: 5}", "pgd20: 5"), "metrics.pgd20"),
        (GOOD.replace("id: mine", "id: my/protocol"), '"id"'),
        (GOOD.replace("id: mine\n", ""), 'key "id" is missing'),
        ("metrics: {clean: {}}\nid: mine\n", "--threat"),
        ("- a list\n", "mapping"),
        ("{", "YAML"),
    ],
)
def test_wrong_protocol_is_told_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_protocol_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    protocol = load(path)
    assert (protocol.role, protocol.dataset, protocol.config("pgd20").steps) == ("custom", None, 5)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("cifar10-linf-8-255-v1", "cifar10-linf-8_255-v1"), ("nowhere/mine.yaml", "nowhere/mine.yaml")],
)
def test_missing_protocol_is_named(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load(name)


def test_metric_that_a_protocol_lacks_is_named(protocol: Callable[..., Protocol]) -> None:
    with pytest.raises(InputError, match='no metric "autoattack"'):
        protocol().config("autoattack")


def test_attacks_one_by_one_are_no_headline_protocol() -> None:
    protocol = load("attacks-v1", "Linf:8/255")
    assert protocol.role == "custom"
    assert {"marginal", "eot_pgd", "transfer"} < set(protocol.metrics)
