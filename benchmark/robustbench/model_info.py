"""RobustBench's record of one model, `model_info/<dataset>/<threat>/<ModelID>.json`, for the norms Linf and L2.

The format is that of the files in RobustBench/robustbench at 78fcc9e: numbers are text, and unknown values are left
out. RobustBench does not validate them, and on a value of another form its generators crash, or show "None%" or the
wrong sign. So everything is checked here.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from benchmark.specs.schema import Strict, checked
from methods.errors import InputError
from methods.files import write_text

LEADERBOARDS: dict[tuple[str, str], str] = {
    ("cifar10", "Linf"): "8/255",
    ("cifar10", "L2"): "0.5",
    ("cifar100", "Linf"): "8/255",
    ("imagenet", "Linf"): "4/255",
}
"""Data set and norm of each leaderboard -> its eps, as RobustBench writes it."""

_ID = re.compile(r"[A-Z][A-Za-z-]*(19|20)\d\d[A-Z][A-Za-z0-9-]*(_[A-Za-z0-9-]+)*")


def _form(pattern: str, wanted: str) -> AfterValidator:
    """Make a validator of text that matches a pattern as a whole; ``wanted`` tells what it should be."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"it should {wanted}")
        return text

    return AfterValidator(check)


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("no generator of RobustBench's knows a null: leave the key out")
    return value


def _line(text: str) -> str:
    if not text or text != " ".join(text.split()):
        raise ValueError("it should be one line of words with single spaces")
    if "<" in text or ">" in text:
        raise ValueError("the leaderboard prints it unescaped: write no < and no >")
    return text


Line = Annotated[str, AfterValidator(_line)]
_PERCENT = r"\d\.\d\d|[1-9]\d\.\d\d|100\.00"
_TWO_DECIMALS = 'be a percentage with two decimals, such as "87.50"'
Percent = Annotated[str, _form(_PERCENT, _TWO_DECIMALS)]
Absent = BeforeValidator(_given)
"""Validator of a key that may be left out, but may not be null."""


class Rehearsal(Strict):
    """Record of a model of any data set at any eps, for trying RobustBench's code on it."""

    link: Annotated[str, _form(r"https?://\S+", "be an address that begins with http:// or https://")]
    name: Line
    """Title of the paper."""
    authors: Line
    """Names, separated by ", "."""
    additional_data: bool
    """Whether it was trained on more *real* images; synthetic ones belong in the footnote."""
    number_forward_passes: Annotated[int, Field(ge=1)]
    """Number of forward passes for a prediction: more than 1 for ensembles."""
    dataset: str
    venue: Annotated[
        Line,
        _form(
            r"N/A|\S.* (19|20)\d\d",
            'end in a space and the year, such as "ICML 2024" or "arXiv, Jun 2024", or be "N/A"',
        ),
    ]
    """Venue and year; the first word and the year go into the bibliography, which skips "N/A"."""
    architecture: Line
    eps: Annotated[
        str,
        _form(r"[1-9]\d*/255|\d+\.\d*[1-9]|[1-9]\d*", 'be a fraction of 255 or a decimal, such as "8/255" or "0.5"'),
    ]
    clean_acc: Percent
    reported: Annotated[str, _form(f"({_PERCENT})?", _TWO_DECIMALS)]
    """Robust accuracy that the paper reports; empty where it reports none."""
    autoattack_acc: Percent
    external: Annotated[Percent | None, Absent] = None
    """Best known robust accuracy by any attack; left out where that is AutoAttack's."""
    footnote: Annotated[Line | None, Absent] = None
    """Footnote in HTML, because the leaderboard prints it as it is."""
    unreliable: Annotated[bool | None, Absent] = None
    """Whether AutoAttack's number is in doubt; left out where that is unknown, since a null would be shown as "no"."""


class ModelInfo(Rehearsal):
    """Record of a model of one of RobustBench's data sets."""

    dataset: Literal["cifar10", "cifar100", "imagenet"]


def percent(value: float) -> str:
    """Return a percentage as RobustBench writes it: 87.5 -> "87.50"."""
    return f"{value:.2f}"


def check_id(model_id: str) -> str:
    """Return a model's ID unchanged, or raise InputError where it has not RobustBench's form."""
    if not _ID.fullmatch(model_id):
        raise InputError(
            f'"{model_id}" is no RobustBench model ID: write the first author, the year and the first word of the '
            "title, such as Wang2023Better, and an architecture or a variant behind it where there are several models, "
            "such as Wang2023Better_WRN-28-10."
        )
    return model_id


def write(path: Path, record: Rehearsal) -> None:
    """Write a record in the layout of RobustBench's files: keys in this order, indented by two, without a null."""
    content = record.model_dump(exclude_none=True)
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read(path: Path) -> ModelInfo:
    """Read a file of `model_info/<dataset>/<threat>/`, and check all that RobustBench relies on.

    Raises:
        InputError: the file is no JSON, has a key twice, one too many or too few, or a value of another form; or its
            name or folder is not that of such a model.
    """
    where = f"The model info {path}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read: {error}.") from error
    info = checked(ModelInfo, data, where)
    check_id(path.stem)
    dataset, threat = path.resolve().parts[-3:-1]
    if dataset != info.dataset:
        raise InputError(f"{where} is of {info.dataset}, and does not belong in {dataset}/{threat}.")
    if (eps := LEADERBOARDS.get((dataset, threat))) is None:
        known = ", ".join("/".join(place) for place in LEADERBOARDS)
        raise InputError(f"{where} lies in {dataset}/{threat}, and RobustBench's Lp leaderboards are {known}.")
    if info.eps != eps:
        raise InputError(f"{where} has the eps {info.eps}, and the leaderboard {dataset}/{threat} is for {eps}.")
    return info


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict, which would keep the last of several values of a key."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise InputError(f'the key "{key}" is there twice.')
        content[key] = value
    return content
