"""Recipes and data-set overlays as files: finding them, and laying them over each other.

A run's settings come in this order, later ones winning: the recipe (configs/<recipe>.yaml), the preset of a recipe
<recipe>_<preset> (configs/presets/<preset>.yaml: its general part, then its part for that recipe), the data set's
overlay (configs/datasets/<name>.yaml: its general part, then its parts for the method, for the recipe, and for the
recipe under that preset), ``--config`` and ``--set``.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from methods.errors import InputError, nearest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader in C where PyYAML has it, which reads recipes several times as fast."""
OPTIONS = {"recipe": "--methods", "dataset": "--dataset", "seed": "--seeds"}
"""Keys of an experiment that options of their own set."""


def recipes() -> dict[str, Path]:
    """Return the files that recipes come from by name; <recipe>_<preset> comes from the preset's."""
    own = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    made = {f"{recipe}_{preset}": path for preset, path in presets().items() for recipe in _listed(path)}
    return dict(sorted((own | made).items()))


def presets() -> dict[str, Path]:
    """Return the preset files by name: settings that several recipes are compared under."""
    return {path.stem: path for path in sorted((CONFIGS / "presets").glob("*.yaml"))}


def under(recipe: str, preset: str | None) -> str:
    """Return the name of a recipe under a preset; its own where there is no preset, or this recipe is not in it."""
    name = f"{recipe}_{preset}"
    return name if preset is not None and name in recipes() else recipe


def plain(recipe: str) -> str:
    """Return a recipe's name without the preset that it is under."""
    path = recipes().get(recipe)
    return recipe if path is None or path.parent == CONFIGS else recipe.removesuffix(f"_{path.stem}")


@cache
def _listed(path: Path) -> tuple[str, ...]:
    """Return the recipes that a preset is for."""
    return tuple(read_yaml(path).get("recipes", {}))


def find_recipe(name: str) -> str:
    """Return the recipe meant by a forgivingly spelt name: JEM++, PGD-AT, eb-jdat.

    Raises:
        InputError: no such recipe; the sentence offers the nearest one.
    """
    known = recipes()
    by_folded = {_fold(recipe): recipe for recipe in known}
    if _fold(name) not in by_folded:
        raise InputError(f'There is no recipe "{name}".{nearest(name, known)}')
    return by_folded[_fold(name)]


def _fold(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: the file is missing, is not YAML, or holds something else.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML: {reason}.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a mapping of settings, not {type(value).__name__}.")
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another, key by key where both hold mappings."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def canonical(dataset: str) -> str:
    """Return the name under which a data set is recorded: Digits is digits, NPZ:A.npz is npz:A.npz."""
    kind, colon, location = dataset.partition(":")
    return kind.lower() + colon + location


def overlay(dataset: str) -> dict[str, Any]:
    """Return the overlay of a data set (of its kind, for npz:FILE and imagefolder:PATH); an empty one where none is."""
    known = {path.stem: path for path in (CONFIGS / "datasets").glob("*.yaml")}
    kind = canonical(dataset).partition(":")[0]
    return read_yaml(known[kind]) if kind in known else {}


def changes(config: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what a ``--config`` file and ``--set`` texts (``key.sub=value``) change, the texts winning.

    Raises:
        InputError: the file or a text is malformed, or sets what an option of its own sets.
    """
    changed = {} if config is None else read_yaml(config)
    for override in overrides:
        changed = merge(changed, _override(override))
    for key, option in OPTIONS.items():
        if key in changed:
            raise InputError(f'"{key}" is no setting; give it with {option}.')
    return changed


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a mapping as texts ``key.sub=value``, sorted."""
    texts: list[str] = []
    for key, value in sorted(mapping.items()):
        if isinstance(value, Mapping):
            texts += flat(value, f"{prefix}{key}.")
        else:
            texts.append(f"{prefix}{key}={value}")
    return texts


def settings(
    recipe: str, dataset: str, *, seed: int, changes: Mapping[str, Any], threat: str | None = None
) -> dict[str, Any]:
    """Return the merged settings of one run, for :func:`methods.training.config.experiment`.

    Args:
        recipe: a recipe's exact name.
        dataset: name of the data set, as ``--dataset`` takes it.
        seed: seed of the run.
        changes: laid over recipe and overlay (see :func:`changes`).
        threat: the protocol's threat model, for recipes and data sets that name none.

    Raises:
        InputError: a file is malformed.
    """
    own, known = plain(recipe), recipes()
    if own not in known:
        raise InputError(f'{known[recipe]} lists "{own}", which is no recipe.{nearest(own, known)}')
    merged = _recipe(own)
    if own != recipe:
        shared = read_yaml(known[recipe])
        by_recipe = shared.pop("recipes")
        merged = merge(merge(merged, shared), by_recipe[own] or {})
    over = overlay(dataset)
    by_method, by_recipe = over.pop("methods", {}), over.pop("recipes", {})
    merged = merge(merge(merged, over), by_method.get(merged["method"], {}))
    for name in dict.fromkeys((own, recipe)):
        merged = merge(merged, by_recipe.get(name, {}))
    if _base(changes) not in (None, _base(merged)):
        # What the recipe sets for the method inside is not for another one.
        merged["options"].pop("base_options", None)
    merged = merge(merged, changes)
    if threat is not None:
        merged.setdefault("threat", threat)
    return merged | {"recipe": recipe, "dataset": canonical(dataset), "seed": seed}


def _base(settings: Mapping[str, Any]) -> str | None:
    """Return the method that a method goes around, where there is one."""
    options = settings.get("options")
    return options.get("base") if isinstance(options, Mapping) else None


def _recipe(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = recipes()[name]
    own = read_yaml(path)
    parent = own.pop("extends", None)
    if parent is not None:
        if str(parent) not in recipes() or parent in (*seen, name):
            raise InputError(f'{path} extends "{parent}", which is no other recipe.{nearest(str(parent), recipes())}')
        own = merge(_recipe(parent, (*seen, name)), own)
    if not isinstance(own.get("method"), str):
        raise InputError(f'{path} names no "method".')
    return own


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(part for part in key.split(".")):
        raise InputError(f'--set takes key.sub=value, not "{text}".')
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f'--set {key}: "{value}" is not a YAML value.') from error
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def protocols() -> dict[str, Path]:
    """Return the protocol files by id."""
    return {path.stem: path for path in sorted((CONFIGS / "protocols").glob("*.yaml"))}


def ablations() -> dict[str, Path]:
    """Return the ablation files by name."""
    return {path.stem: path for path in sorted((CONFIGS / "ablations").glob("*.yaml"))}


def papers() -> dict[str, Path]:
    """Return the files of a paper's tables and figures by name."""
    return {path.stem: path for path in sorted((CONFIGS / "paper").glob("*.yaml"))}


def scales() -> dict[str, Path]:
    """Return the files of the scales of reproduction by name."""
    return {path.stem: path for path in sorted((CONFIGS / "scales").glob("*.yaml"))}
