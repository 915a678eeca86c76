"""Numbers from the literature, quoted beside what is reproduced: configs/reported.csv, a row each.

The first row of a recipe, data set and metric is the one that tables print; the others are further sources of the
same number, and variants. Two numbers are the same measurement only where nothing sets them apart, so whoever prints
a difference prints the flags of :func:`differences` with it.
"""

from __future__ import annotations

import csv
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from benchmark.specs import recipes
from benchmark.specs.schema import Strict, checked
from methods.errors import InputError, nearest
from methods.primitives.norm_ball import NormBall

if TYPE_CHECKING:
    from benchmark.results.entry import Entry

FLAGS = {
    "data": "measured on another data set",
    "architecture": "another network than the publication's, or one that it does not name",
    "budget": "trained on a smaller budget than the publication's",
    "settings": "trained with settings other than the recipe's, or elsewhere",
    "variant": "the publication's number is of a variant that its row names",
    "part": "measured on a part of the test images",
    "eps": "another radius of the perturbations in pixels, or one that is not known",
    "attack": "another attack, or another setting of it",
    "noise": "one of the two evaluators adds noise to test images",
    "generation": "images sampled, chosen or compared otherwise",
    "evaluator": "one of the two evaluators is custom, its authors' own and not re-created here, or not known",
    "inferred": "the same evaluator, but that the publication used it is inferred",
}
"""Flag -> reason why a reproduced number is not the same measurement as a reported one."""

_STANDARD = "standard"
_KINDS = {_STANDARD: _STANDARD, "ebjdat-release-v1": "release", "ebjdat-release-sadajem-v1": "release"}
"""Protocols of which all is known -> those with the same attacks."""
_NOISY = ("ebjdat-release-v1",)
"""Protocols among these that add noise to test images."""
_IMAGES = ("fid", "inception_score", "kid")
"""Metrics of generated images."""
_UNATTACKED = ("clean", "collapsed_at", *_IMAGES)
_BESIDE = {"cifar10-jpeg": "cifar10"}
"""Data sets that no publication has -> the one whose numbers stand beside theirs."""


def _threat(text: str) -> str:
    try:
        return text and str(NormBall.parse(text))
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from error


Text = Annotated[str, Field(min_length=1)]


class Number(Strict):
    """One row of configs/reported.csv."""

    source: Text
    table: str
    """Table in the source; empty where it names none."""
    row: str
    """Variant, epoch or setting that sets it apart from other rows of the same method in that table."""
    recipe: Text
    """The project's name of the method; a recipe need not exist."""
    dataset: Text
    architecture: str
    """Network as published; empty where it is not named."""
    metric: Text
    """The project's name of the column; accuracies in percent."""
    value: float
    threat: Annotated[str, AfterValidator(_threat)]
    """Threat model of the attack, in [0, 1] pixel units; empty where it is not known, or where nothing is attacked."""
    protocol: Literal["standard", "ebjdat-release-v1", "ebjdat-release-sadajem-v1", "authors", "unknown"]
    """Protocol of the measurement.

    standard: clean images, standard AutoAttack, or PGD-20 as the standard protocols have it; ebjdat-release-*: the
    released evaluator of EB-JDAT, which is inferred; authors: the own evaluator of the source, which is not re-created
    here; unknown: the source does not say.
    """
    caveat: str
    """Sentence on what to know about the number; empty where there is nothing to add."""

    @property
    def origin(self) -> str:
        """The source, and the table in it."""
        return f"{self.source}, {self.table}" if self.table else self.source

    @property
    def terms(self) -> str:
        """Variant, data, network, threat model and protocol of the number, in words."""
        words = [self.row, self.dataset, self.architecture or "network not named", self.threat]
        return "; ".join([*(word for word in words if word), f"protocol {self.protocol}"])


def numbers() -> tuple[Number, ...]:
    """Return every quoted number, in the order of the file.

    Raises:
        InputError: the file is missing or malformed; the sentence names the line.
    """
    return _read(recipes.CONFIGS / "reported.csv")


def beside(recipe: str, dataset: str) -> dict[str, list[Number]]:
    """Return what is quoted of a recipe beside a data set, by metric: the number that tables print, then further ones.

    Beside the JPEG edition of CIFAR-10 stand the numbers of CIFAR-10, and beside a recipe under a preset those of the
    recipe.
    """
    found: dict[str, list[Number]] = {}
    place = recipes.plain(recipe), _BESIDE.get(dataset, dataset)
    for number in numbers():
        if (number.recipe, number.dataset) == place:
            found.setdefault(number.metric, []).append(number)
    return found


def quoted(recipe: str, dataset: str, metric: str) -> Number | None:
    """Return the number that tables print beside a recipe on a data set; None where nothing is quoted."""
    return next(iter(beside(recipe, dataset).get(metric, [])), None)


def differences(number: Number, entry: Entry) -> tuple[str, ...]:
    """Return why an entry's number is not the same measurement as a quoted one, in the order of :data:`FLAGS`.

    Nothing is returned only where data, network, budget, settings and evaluation are the same as far as both records
    go. What a metric does not depend on sets nothing apart: no eps for clean images.
    """
    own = _STANDARD if entry.protocol.role == "standard" else entry.protocol.id
    kinds = _KINDS.get(number.protocol), _KINDS.get(own)
    known, same = None not in kinds, kinds[0] == kinds[1]
    attacked, images = number.metric not in _UNATTACKED, number.metric in _IMAGES
    found = {
        "data": number.dataset != entry.dataset,
        "architecture": number.architecture.lower() != re.sub("^(jem|swish)-", "", entry.subject.architecture),
        "budget": bool(entry.training.get("budget")),
        "settings": bool(entry.overrides)
        or entry.subject.kind == "external"
        or recipes.plain(entry.recipe) != entry.recipe,
        "variant": bool(number.row) and (entry.ablation is None or entry.ablation.row != number.row),
        "part": entry.partial,
        "eps": attacked and (not number.threat or NormBall.parse(number.threat) != NormBall.parse(entry.threat)),
        "attack": attacked and known and not same,
        "noise": not images and known and (number.protocol in _NOISY) != (own in _NOISY),
        "generation": images and not (known and same),
        "evaluator": not known,
        "inferred": known and same and own != _STANDARD,
    }
    return tuple(flag for flag in FLAGS if found[flag])


@cache
def _read(path: Path) -> tuple[Number, ...]:
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            lines = [(reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The quoted numbers {path} cannot be read: {error}.") from error
    head = lines[0][1] if lines else []
    known = list(Number.model_fields)
    for name in head:
        if name not in known:
            raise InputError(f'{path}, line 1: unknown column "{name}".{nearest(name, known)}')
    if sorted(head) != sorted(known):
        raise InputError(f"{path}, line 1: the columns must be {', '.join(known)}, each once.")
    found: dict[tuple[str, ...], Number] = {}
    for line, cells in lines[1:]:
        if len(cells) != len(head):
            raise InputError(f"{path}, line {line}: {len(cells)} cells under {len(head)} columns.")
        row: dict[str, Any] = dict(zip(head, cells, strict=True))
        with suppress(ValueError):  # the check below says what is wrong
            row["value"] = float(row["value"])
        number = checked(Number, row, f"{path}, line {line}")
        key = (number.origin, number.row, number.recipe, number.dataset, number.metric)
        if key in found:
            raise InputError(
                f"{path}, line {line}: {number.metric} of {number.recipe} a second time ({number.origin})."
            )
        found[key] = number
    return tuple(found.values())
