"""A recipe with a mistake in it is refused in one sentence; one without is one experiment with one digest."""

import datetime
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import yaml

from benchmark.specs import recipes
from methods.data import NAMES, Dataset, ImageSet
from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.training.config import Experiment, experiment
from methods.training.guard import Guard
from methods.training.setup import check

DIGESTS = {"train": "a", "validation": "b", "test": "c"}
LEADERBOARDS = recipes.CONFIGS.parent / "leaderboards"
SHAPES = {
    "digits": (1, 8, 8, 10),
    "cifar10": (3, 32, 32, 10),
    "cifar100": (3, 32, 32, 100),
    "cifar10-jpeg": (3, 32, 32, 10),
    "imagefolder:pets": (3, 48, 64, 37),
    "npz:scans.npz": (1, 28, 28, 2),
}
"""Channels, height, width and classes of one data set of each kind."""


def mapping(method: str = "trades", **settings: Any) -> dict[str, Any]:
    return {"recipe": "r", "method": method, "dataset": "digits", "threat": "Linf:8/255"} | settings


def refused(settings: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        experiment(settings)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.rstrip().endswith((".", "?"))
    return sentence


def test_defaults() -> None:
    found = experiment(mapping())
    assert found.seed == 0
    assert found.options.attack == PGD(steps=10, step_size=7 / 31, start="normal")
    assert found.threat_model.radius == 8 / 255


@pytest.mark.parametrize(
    ("settings", "key", "meant"),
    [
        ({"trian": {}}, "trian", "train"),
        ({"train": {"epoch": 3}}, "train.epoch", "epochs"),
        ({"options": {"betta": 3}}, "options.betta", "beta"),
        ({"options": {"attack": {"step": 3}}}, "options.attack.step", "steps"),
        ({"data": {"augment": {"flipp": True}}}, "data.augment.flipp", "flip"),
        ({"backbone": {"widn": 2}}, "backbone.widn", "widen"),
        ({"guard": {"energygap": 3}}, "guard.energygap", "energy_gap"),
        ({"train": {"xyzzy": 3}}, "train.xyzzy", None),
        ({7: 3}, "7", None),
        ({"train": {7: 3}}, "train.7", None),
    ],
)
def test_unknown_keys(settings: dict[str, Any], key: str, meant: str | None) -> None:
    sentence = refused(mapping() | settings)
    assert f'Unknown key "{key}".' in sentence
    if meant is None:
        assert "Did you mean" not in sentence
    else:
        assert sentence.endswith(f'Did you mean "{meant}"?')


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"train": {"epochs": 3.5}}, "train.epochs"),
        ({"train": {"epochs": "many"}}, "train.epochs"),
        ({"train": {"epochs": "7/31"}}, "train.epochs"),
        ({"train": {"epochs": True}}, "train.epochs"),
        ({"train": {"epochs": None}}, "train.epochs"),
        ({"train": {"lr": "fast"}}, "train.lr"),
        ({"train": {"lr": "1/0"}}, "train.lr"),
        ({"train": {"lr": "1e400"}}, "train.lr"),
        ({"train": {"lr": "8\\255"}}, "train.lr"),
        ({"train": {"lr": [0.1]}}, "train.lr"),
        ({"train": {"nesterov": 1}}, "train.nesterov"),
        ({"train": {"nesterov": "yes"}}, "train.nesterov"),
        ({"train": {"optimizer": "SGD"}}, "train.optimizer"),
        ({"train": {"milestones": 0.5}}, "train.milestones"),
        ({"train": {"milestones": ["half"]}}, "train.milestones"),
        ({"train": {"lr": datetime.date(2020, 1, 1)}}, "train.lr"),
        ({"train": 3}, "train"),
        ({"train": None}, "train"),
        ({"options": []}, "options"),
        ({"options": {"attack": 3}}, "options.attack"),
        ({"data": {"augment": {"padding": 1.5}}}, "data.augment.padding"),
        ({"backbone": {"architecture": 3}}, "backbone.architecture"),
        ({"seed": "zero"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"budget": 3}, "budget"),
        ({"guard": "rollback"}, "guard"),
        ({"guard": {"action": "restart"}}, "guard.action"),
        ({"guard": {"patience": 1.5}}, "guard.patience"),
        ({"method": None}, "method"),
        ({"threat": 8}, "threat"),
        ({"dataset": ["digits"]}, "dataset"),
    ],
)
def test_wrong_types(settings: dict[str, Any], key: str) -> None:
    assert f'"{key}"' in refused(mapping() | settings)


@pytest.mark.parametrize("key", ["recipe", "method", "dataset", "threat"])
def test_missing_keys(key: str) -> None:
    settings = mapping()
    del settings[key]
    assert refused(settings) == f'The key "{key}" is missing or not a text.'


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"train": {"batch_size": -1}}, "train.batch_size"),
        ({"train": {"log_every": 0}}, "train.log_every"),
        ({"train": {"lr": -0.1}}, "train.lr"),
        ({"train": {"lr": math.nan}}, "train.lr"),
        ({"train": {"lr": math.inf}}, "train.lr"),
        ({"train": {"weight_decay": -1}}, "train.weight_decay"),
        ({"train": {"momentum": 1.0}}, "train.momentum"),
        ({"train": {"momentum": -0.5}}, "train.momentum"),
        ({"train": {"momentum": 0, "nesterov": True}}, "train.nesterov"),
        ({"train": {"gradient_clip": 0}}, "train.gradient_clip"),
        ({"train": {"ema": 1}}, "train.ema"),
        ({"train": {"ema": -0.1}}, "train.ema"),
        ({"train": {"warmup_steps": -1}}, "train.warmup_steps"),
        ({"train": {"milestones": [0.5, 1]}}, "train.milestones"),
        ({"train": {"milestones": [100]}}, "train.milestones"),
        ({"train": {"schedule": "step"}}, "train.milestones"),
        ({"train": {"checkpoint_seconds": -1}}, "train.checkpoint_seconds"),
        ({"options": {"beta": -1}}, "options.beta"),
        ({"options": {"attack": {"steps": 0}}}, "at least one step"),
        ({"backbone": {"depth": 11}}, "backbone.depth"),
        ({"backbone": {"architecture": "wnr"}}, 'Did you mean "wrn"?'),
        ({"data": {"augment": {"padding": -1}}}, "padding"),
        ({"seed": -1}, "seed"),
        ({"guard": {"lr_factor": 2}}, "guard.lr_factor"),
        ({"threat": "Linf:8\\255"}, "eps"),
        ({"threat": "Linf:-1"}, "eps"),
        ({"threat": "Linf:8"}, "8/255"),
        ({"method": "trade"}, 'Did you mean "trades"?'),
        ({"method": "standard", "options": {"label_smoothing": 2}}, "options.label_smoothing"),
    ],
)
def test_values_out_of_range(settings: dict[str, Any], fragment: str) -> None:
    assert fragment in refused(mapping() | settings)


def test_fractions_and_exponents_are_numbers() -> None:
    found = experiment(
        mapping(
            options={"attack": {"step_size": "7/31"}, "beta": 6},
            train={"lr": "1/8", "weight_decay": "5e-4", "milestones": ["40/150", 0.5], "schedule": "step"},
            seed=3,
        )
    )
    assert found.options.attack.step_size == 7 / 31
    assert isinstance(found.options.beta, float | int)
    assert (found.train.lr, found.train.weight_decay) == (0.125, 5e-4)
    assert found.train.milestones == (40 / 150, 0.5)


def test_settings_are_laid_over_the_methods_own() -> None:
    found = experiment(mapping(options={"attack": {"steps": 3}}))
    assert found.options.attack == PGD(steps=3, step_size=7 / 31, start="normal")
    assert found.options.beta == 6


def test_shapes_are_of_every_kind_of_data_set() -> None:
    kinds = {name.partition(":")[0] for name in SHAPES}
    assert kinds == {name.partition(":")[0] for name in NAMES}
    assert kinds >= {path.stem for path in (recipes.CONFIGS / "datasets").glob("*.yaml")}


def offenders(datasets: Iterable[str], proof: Callable[[str, str], None]) -> list[str]:
    """Return every recipe and data set for which a proof fails, with the first line of its error."""
    found: list[str] = []
    parsed = cache(yaml.safe_load)
    with pytest.MonkeyPatch.context() as patch:
        # Some fifty files are read for three hundred pairs.
        patch.setattr(yaml, "safe_load", lambda text: deepcopy(parsed(text)))
        for dataset, recipe in itertools.product(datasets, sorted(recipes.recipes())):
            try:
                proof(recipe, dataset)
            except Exception as error:
                found.append(f"{recipe} on {dataset}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return found


def test_every_recipe_resolves_on_every_data_set() -> None:
    def proof(recipe: str, dataset: str) -> None:
        found = experiment(recipes.settings(recipe, dataset, seed=5, changes={}))
        assert (found.recipe, found.dataset, found.seed) == (recipe, dataset, 5)
        assert experiment(mapping() | found.resolved()) == found
        assert json.loads(json.dumps(found.resolved())) == found.resolved()

    assert offenders(SHAPES, proof) == []


def test_every_recipe_can_be_trained_on_every_data_set() -> None:
    """Its backbone takes the images, its method takes that backbone, and its buffer holds a batch."""
    blanks = {dataset: blank(dataset) for dataset in ("digits", "cifar100", "cifar10-jpeg")}

    def proof(recipe: str, dataset: str) -> None:
        check(experiment(recipes.settings(recipe, dataset, seed=0, changes={})), blanks[dataset])

    def same(recipe: str, dataset: str) -> None:
        """CIFAR-10 has the images of CIFAR-100: its recipes need no check of their own if they are the same."""
        found, proven = (recipes.settings(recipe, name, seed=0, changes={}) for name in (dataset, "cifar100"))
        assert experiment(found) == replace(experiment(proven), dataset=dataset)

    assert offenders(blanks, proof) + offenders(["cifar10"], same) == []


def test_offenders_are_listed_together() -> None:
    def proof(recipe: str, dataset: str) -> None:
        assert recipe != "trades"
        if (recipe, dataset) == ("jem", "digits"):
            raise InputError("No.\nNever.")

    found = offenders(["digits", "cifar10"], proof)
    assert [text.split(":")[0] for text in found] == ["jem on digits", "trades on digits", "trades on cifar10"]
    assert found[0] == "jem on digits: InputError: No."


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("mjem", {"backbone": {"energy_head": False}}, "set backbone.energy_head to true"),
        ("mebm", {"options": {"negatives": {"buffer_size": 31}}}, "buffer_size is 31, fewer than the 32 chains"),
        ("ebjdat", {"options": {"host_options": {"negatives": {"buffer_size": 63}}}}, "is 63, fewer than the 64"),
        (
            "ebjdat_sadajem",
            {
                "options": {"host_options": {"negatives": {"sampler": {"inner_steps": 5, "step_size": 0.05}}}},
                "backbone": {"architecture": "timm:resnet10t"},
            },
            "Only wide residual networks",
        ),
    ],
)
def test_what_a_method_cannot_work_with_is_refused_before_the_training(
    recipe: str, changes: dict[str, Any], said: str
) -> None:
    changed = experiment(recipes.settings(recipe, "cifar10-jpeg", seed=0, changes=changes))
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        check(changed, blank("cifar10-jpeg"))
    assert "\n" not in str(caught.value)


def blank(dataset: str) -> Dataset:
    """Return black images in the shape of a data set's."""
    *shape, classes = SHAPES[dataset]
    images = ImageSet(torch.zeros(128, *shape, dtype=torch.uint8), torch.arange(128) % classes)
    statistics = (0.5,) * shape[0], (0.25,) * shape[0]
    return Dataset(dataset, tuple(map(str, range(classes))), images, images, images, *statistics)


def test_recipes_differ() -> None:
    named: dict[str, list[str]] = {}
    for name in recipes.recipes():
        named.setdefault(resolved(name).digest(DIGESTS), []).append(name)
    assert [names for names in named.values() if len(names) > 1] == []


def resolved(recipe: str) -> Experiment:
    return experiment(recipes.settings(recipe, "cifar10", seed=0, changes={}))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"train": {"checkpoint_seconds": 0}},
        {"train": {"log_every": 10}},
        {"guard": {}},
        {"guard": {"action": "stop", "energy_gap": None}},
        {"train": {"decay_norm": True, "momentum_cycle": None, "select_attack": {"steps": 10}}},
        {"data": {"generated": {"share": 0.5}, "augment": {"cutout": 0}}},
        # The same value in other words.
        {"threat": "linf:8/255"},
        {"options": {"beta": 6.0, "attack": {"step_size": "7/31"}}},
    ],
)
def test_digest_ignores_what_does_not_decide_the_weights(change: dict[str, Any]) -> None:
    assert experiment(mapping() | change).digest(DIGESTS) == experiment(mapping()).digest(DIGESTS)


@pytest.mark.parametrize(
    "change",
    [
        {"threat": "Linf:0.031"},
        {"dataset": "cifar10"},
        {"method": "pgd_at"},
        {"train": {"epochs": 99}},
        {"train": {"ema": 0.9}},
        {"train": {"precision": "bf16"}},
        {"options": {"attack": {"steps": 9}}},
        {"backbone": {"widen": 2}},
        {"data": {"augment": {"flip": True}}},
        {"data": {"validation": 100}},
        {"guard": {"action": "rollback"}},
        {"guard": {"energy_gap": 100}},
        {"train": {"decay_norm": False}},
        {"train": {"select_attack": {"steps": 20}}},
        {"train": {"first_statistics": True}},
        {"data": {"augment": {"cutout": 2}}},
        {"data": {"generated": {"file": "a.npz"}}},
    ],
)
def test_digest_changes_with_every_setting(change: dict[str, Any]) -> None:
    assert experiment(mapping() | change).digest(DIGESTS) != experiment(mapping()).digest(DIGESTS)


@pytest.mark.parametrize(
    ("recipe", "dataset", "digest"),
    [
        ("standard", "digits", "3029aa64"),
        ("pgd_at", "digits", "10a54536"),
        ("trades", "digits", "a52141d1"),
        ("standard", "cifar10-jpeg", "42a88ae1"),
        ("pgd_at", "cifar10-jpeg", "5f8134de"),
        ("trades", "cifar10-jpeg", "00eb3636"),
    ],
)
def test_digest_of_a_published_entry_is_for_ever(recipe: str, dataset: str, digest: str) -> None:
    (path, *_) = (LEADERBOARDS / dataset).glob(f"*/entries/{recipe}-{digest}-s0-*.json")
    entry = json.loads(path.read_text())
    found = experiment(recipes.settings(recipe, dataset, seed=0, changes={}))
    assert found.digest(entry["data"]["digests"]) == entry["config_digest"]


def test_digest_knows_the_share_of_generated_images_and_not_where_they_lie() -> None:
    def digest(**settings: Any) -> str:
        return experiment(mapping(data={"generated": settings})).digest(DIGESTS | {"generated": "c"})

    assert digest(file="a.npz") == digest(file="b.npz") != digest(file="a.npz", share=0.5)


def test_guard_is_laid_over_its_defaults() -> None:
    found = experiment(mapping(guard={"action": "rollback", "energy_gap": 100, "saturated": "9/10"}))
    assert found.guard == Guard(action="rollback", energy_gap=100, saturated=0.9)
    assert experiment(mapping()).guard == Guard()
    assert found.resolved()["guard"]["max_restarts"] == 3


@pytest.mark.parametrize("split", list(DIGESTS))
def test_digest_changes_with_the_data(split: str) -> None:
    found = experiment(mapping())
    assert found.digest(DIGESTS | {split: "other"}) != found.digest(DIGESTS)
    assert found.digest(dict(reversed(DIGESTS.items()))) == found.digest(DIGESTS)
