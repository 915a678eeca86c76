"""Evidence bundles: the outcomes behind an entry's accuracies, with which :mod:`benchmark.evaluation.verify` checks it.

A bundle is one npz file beside the entries. It holds the outcome per image of the clean metric and of every attack
that keeps evidence (:mod:`benchmark.evaluation.evidence`), the images that the attack broke, and a header that says
which weights, images and numbers it belongs to. The weights lie beside it where they are small.
"""

import hashlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from benchmark.evaluation import evidence
from benchmark.models.subject import state_digest
from benchmark.results.entry import Entry
from benchmark.results.layout import bundle_path, entry_path, weights_path
from benchmark.results.store import Arrays, Store
from benchmark.specs.schema import Strict, checked
from methods.errors import InputError
from methods.files import write as write_file
from methods.training.checkpoint import FILES

FORMAT = 1
MAX_WEIGHTS = 1_000_000
"""Bytes. Larger weights are too much for a repository that keeps every entry's; they stay with their run."""
_NO_IDENTITY = ("measurements", "training", "provenance", "overrides", "evidence")
"""Records of an entry that say nothing about what was measured, and may be completed later."""


class Header(Strict):
    """What a bundle says of itself."""

    format: list[int]
    """:data:`FORMAT` and :data:`evidence.FORMAT`."""
    weights: str
    """SHA-256 of the weights."""
    weights_file: str
    """SHA-256 of the file of the weights, which also says what function they are the weights of."""
    identity: dict[str, Any]
    """What the entry says of subject, data, threat model and protocol."""
    measurements: dict[str, str]
    """Metric -> SHA-256 of its measurement in the entry."""


def weights_file(entry_file: Path, entry: Entry, checkpoint: Path | None) -> Path:
    """Return the file of an entry's weights: the copy beside the entries, or a checkpoint's, which may be a run folder.

    Raises:
        InputError: there is none.
    """
    file = checkpoint or weights_path(entry_file.parents[1], entry)
    if file.is_dir():
        file = file / FILES["last" if entry.subject.which == "last" else "best"]
    if not file.is_file():
        hint = "" if checkpoint else "; name the file or run folder with --checkpoint"
        raise InputError(f"The weights of {entry_file} are not at {file}{hint}.")
    return file


def write(leaderboards: Path, entry: Entry, store: Store, checkpoint: Path) -> str | None:
    """Write the bundle of an entry, and a copy of its weights where they take at most :data:`MAX_WEIGHTS`.

    The same outcomes give the same bytes.

    Args:
        leaderboards: where entries are kept.
        entry: as it is to be written; its ``evidence`` does not matter.
        store: holds the outcomes per image of its measurements.
        checkpoint: the weights file that was measured.

    Returns:
        The bundle's SHA-256, for the entry's ``evidence``; None, and nothing is written, for an entry of an ablation
        and for one without outcomes.

    Raises:
        InputError: a file cannot be read or written.
    """
    outcomes = {} if entry.ablation else {name: store.samples(found) for name, found in entry.measurements.items()}
    arrays = {
        f"{metric}.{name}": array
        for metric, samples in sorted(outcomes.items())
        if samples is not None and (metric == "clean" or "encoding" in samples)
        for name, array in _compact(samples).items()
    }
    if not arrays:
        return None
    place = leaderboards / entry_path(Path(), entry)
    kept = weights_path(place.parents[1], entry)
    if _holds(kept, entry):
        # Another recipe may have made the same weights, and its file is what its own entry names.
        checkpoint = kept
    # As a reader of the entry will see it: JSON knows no tuples, and a validated record no integers among floats.
    header = _header(Entry.model_validate_json(entry.model_dump_json()), file_digest(checkpoint))
    content = io.BytesIO()
    text = np.frombuffer(header.model_dump_json().encode(), np.uint8)
    np.savez_compressed(content, allow_pickle=False, header=text, **arrays)
    write_file(bundle_path(place), lambda temporary: temporary.write_bytes(content.getvalue()))
    if checkpoint != kept and checkpoint.stat().st_size <= MAX_WEIGHTS:
        write_file(kept, lambda temporary: shutil.copyfile(checkpoint, temporary))
    return hashlib.sha256(content.getvalue()).hexdigest()


def _holds(file: Path, entry: Entry) -> bool:
    """Tell whether a file holds the weights of an entry."""
    if not file.is_file():
        return False
    try:
        return state_digest(load_file(file)) == entry.subject.weights_digest
    except (OSError, SafetensorError):
        return False


def _compact(samples: Arrays) -> Arrays:
    """Return the outcomes that are verdicts or classes, and the evidence of the broken images alone."""
    kept = {
        name: array if array.dtype == bool else array.astype(np.int16)
        for name, array in samples.items()
        if array.dtype.kind in "bi" and name not in ("index", "encoding", "delta")
    }
    for name, encoding in (("delta", evidence.BYTES), ("exact", evidence.EXACT)) if "encoding" in samples else ():
        index = np.flatnonzero(samples["encoding"] == encoding).astype(np.int32)
        kept |= {f"{name}_index": index, name: samples[name][index]}
    return kept


def _header(entry: Entry, weights_file: str) -> Header:
    # Without defaults, so that a field added to the schema changes nothing.
    content = entry.model_dump(mode="json", exclude_defaults=True)
    digests = {
        name: hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        for name, found in content["measurements"].items()
    }
    identity = {name: value for name, value in content.items() if name not in _NO_IDENTITY}
    return Header(
        format=[FORMAT, evidence.FORMAT],
        weights=entry.subject.weights_digest,
        weights_file=weights_file,
        identity=identity,
        measurements=digests,
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


@dataclass(frozen=True)
class Bundle:
    """A bundle as it was read."""

    path: Path
    header: Header
    outcomes: dict[str, Arrays]
    """Metric -> its arrays."""


def parse(path: Path, content: bytes) -> Bundle:
    """Return the bundle in a file's bytes.

    Raises:
        InputError: they are truncated, damaged, or of another format.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes())
    except Exception as error:  # whatever zipfile, zlib and numpy raise on bytes that nobody wrote
        raise InputError(f"The bundle {path} is truncated or damaged: {type(error).__name__}: {error}.") from error
    header = checked(Header, header, f"The bundle {path}")
    if header.format != (known := [FORMAT, evidence.FORMAT]):
        raise InputError(f"The bundle {path} has the format {header.format}, and this version reads {known}.")
    outcomes: dict[str, Arrays] = {}
    for name, array in arrays.items():
        metric, _, outcome = name.partition(".")
        outcomes.setdefault(metric, {})[outcome] = array
    return Bundle(path, header, outcomes)


def differences(header: Header, entry: Entry) -> list[str]:
    """Return the fields, and the metrics, in which an entry is not the one that the bundle was written for."""
    expected = _header(entry, header.weights_file)
    pairs = [(header.identity, expected.identity), (header.measurements, expected.measurements)]
    return [name for here, there in pairs for name in sorted(here | there) if here.get(name) != there.get(name)]
