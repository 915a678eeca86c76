"""The result files, written down as types: one measurement per metric, one entry per evaluated checkpoint."""

import base64
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from benchmark.specs.schema import Strict, checked
from methods.errors import InputError

Value = float | int | str | None


class Check(Strict):
    """One check of a measurement: two numbers that should stand in a certain relation."""

    name: str
    measured: float | None
    bound: float | None
    """The number that ``measured`` is held against."""
    passed: bool | None
    """None: the check does not apply here, and ``meaning`` says why."""
    meaning: str
    """One sentence: what should hold, and what it means where it does not."""


class Measurement(Strict):
    """Findings of one metric on one subject."""

    metric: str
    version: int
    """Version of the metric's definition; raised whenever any number that it gives changes."""
    status: Literal["done", "failed"]
    error: str | None = None
    """One line, where the metric failed."""
    n: int
    """Number of images measured: the first ``n`` of the test split, in order."""
    values: dict[str, Value] = Field(default_factory=dict)
    """The numbers; percentages where the name says accuracy."""
    flags: list[str] = Field(default_factory=list)
    """Reasons to doubt the numbers, verbatim where another library gave them."""
    checks: list[Check] = Field(default_factory=list)
    series: dict[str, list[float | None]] = Field(default_factory=dict)
    """Curves and histograms, for figures."""
    verdicts: dict[str, str] = Field(default_factory=dict)
    """Name of an accuracy among ``values`` -> its outcome per image, packed (:func:`unpack`)."""
    seconds: float
    """Seconds of computation, summed over all processes that took part."""
    samples: str | None = None
    """Outcomes per image: an npz file, relative to the store's root."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The metric's settings, defaults included."""
    key: str
    """SHA-256 of everything that can change the numbers."""


class SubjectInfo(Strict):
    """The model that was evaluated."""

    kind: Literal["checkpoint", "external"]
    weights_digest: str
    """SHA-256 of the weights."""
    which: str | None = None
    """Checkpoint of the run: "best" on validation or "last"; None for a model from elsewhere."""
    architecture: str
    parameters: int
    flags: list[str] = Field(default_factory=list)
    """Reasons to doubt what is measured on it."""


class DataInfo(Strict):
    """The images on which it was evaluated."""

    digests: dict[str, str]
    """SHA-256 of each split."""
    n: int
    """Number of images measured: the first ones of the test split."""
    of: int
    """Number of images in the test split."""


class ProtocolInfo(Strict):
    """The protocol under which it was evaluated."""

    id: str
    hash: str
    role: Literal["standard", "authors", "custom"]


class Cell(Strict):
    """The row of an ablation that a checkpoint belongs to."""

    name: str
    """Name of the ablation: its file in configs/ablations/."""
    row: str


class Entry(Strict):
    """One evaluated checkpoint: a file of leaderboards/<dataset>/<threat>/entries/.

    Those of an ablation lie in leaderboards/<dataset>/<threat>/ablations/<name>/entries/.
    """

    schema_version: Literal[1] = 1
    recipe: str
    """Row label of the tables: the recipe's name, or an external model's."""
    method: str | None = None
    dataset: str
    threat: str
    seed: int | None = None
    """Seed of the training; None for a model from elsewhere."""
    config_digest: str | None = None
    """SHA-256 of the training's settings without its seed: equal digests are seeds of one experiment."""
    ablation: Cell | None = None
    subject: SubjectInfo
    data: DataInfo
    partial: bool
    protocol: ProtocolInfo
    measurements: dict[str, Measurement]
    training: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    overrides: list[str] = Field(default_factory=list)
    """Settings changed from the recipe, such as ``train.epochs=5``."""
    evidence: str | None = None
    """SHA-256 of the bundle with which `verify` checks the entry."""

    def text(self) -> str:
        """Return the content of the entry's file: each list of numbers on one line, not a line for each."""
        numbers = r'\[\n\s+([^\[\]{}"]+?)\n\s+\]'
        return re.sub(numbers, lambda found: f"[{' '.join(found[1].split())}]", self.model_dump_json(indent=2)) + "\n"


def pack(correct: np.ndarray) -> str:
    """Return booleans [N] as text: eight to a byte, the first one highest, in base64."""
    return base64.b64encode(np.packbits(correct.astype(bool)).tobytes()).decode("ascii")


def unpack(text: str, n: int) -> np.ndarray:
    """Return the ``n`` booleans of :func:`pack`.

    Raises:
        InputError: the text is no base64, or holds another number of bytes.
    """
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except ValueError as error:
        raise InputError(f"The verdicts are no base64: {error}.") from error
    if len(packed) != -(-n // 8):
        raise InputError(f"The verdicts hold {len(packed)} bytes, which are not those of {n} images.")
    return np.unpackbits(packed, count=n).astype(bool)


def read_entry(path: Path) -> Entry:
    """Read an entry.

    Raises:
        InputError: the file is missing, no JSON, or not an entry; the sentence names it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The entry {path} cannot be read: {error}.") from error
    return checked(Entry, data, f"The entry {path}")
