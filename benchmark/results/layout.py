"""Where results lie below leaderboards/: every path, what is read and written there, and what is cleared away.

<data set>/<threat>/                      the folder of a table
    entries/<stem>.json                   what was measured, a file a checkpoint
    samples/<stem>.png                    what the checkpoint generates
    evidence/<stem>.npz                   the outcomes behind its accuracies, which ``verify`` checks
    masking-power/                        how often the masking checks detect planted failures
    ablations/<name>/                     the folder of an ablation's table, with entries and samples of its own
<data set>/weights/<digest>.safetensors   weights that are small enough to lie beside their entries
reproduction/<scale>/                     the tables and figures of a paper
    attacks/<data set>/<threat>/          entries of them that no leaderboard is about
reproduction/gap/                         walks from the evaluator of a paper's authors to the standard protocol
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmark.results.entry import Entry, read_entry
from methods.data.catalogue import slug
from methods.errors import InputError
from methods.files import write_text
from methods.primitives.norm_ball import NormBall

ENTRIES, PICTURES, BUNDLES, MASKING_POWER, ABLATIONS = "entries", "samples", "evidence", "masking-power", "ablations"
"""Names of the folders in that of a table."""
WEIGHTS = "weights"
"""Name of the folder beside the tables of a data set."""
STORE = "measurements"
"""Name of the folder of the store, in that of the runs."""
REPRODUCTION, ATTACKS, GAP = "reproduction", "attacks", "gap"
"""Names of the folders of a paper's tables, of their entries that no leaderboard is about, and of the gap."""


def folder_name(name: str) -> str:
    """Return a name as one part of a path: ``imagefolder:/data/a`` -> ``imagefolder-data-a``."""
    return re.sub(r"[^A-Za-z0-9._@+-]+", "-", name).strip("-.") or "unnamed"


def table_folder(leaderboards: Path, dataset: str, threat: str, ablation: str | None = None) -> Path:
    """Return the folder of the table of a data set and threat model, or of an ablation there.

    Raises:
        InputError: the text is no threat model.
    """
    folder = leaderboards / slug(dataset) / NormBall.parse(threat).slug
    return folder if ablation is None else folder / ABLATIONS / ablation


def table_folders(leaderboards: Path) -> list[Path]:
    """Return the folders of all tables that have entries, without those of ablations, sorted."""
    return sorted(path.parent for path in leaderboards.glob(f"*/*/{ENTRIES}") if path.is_dir())


def ablation_folders(leaderboards: Path) -> list[Path]:
    """Return the folders of all ablations that have entries, sorted."""
    return sorted(path.parent for path in leaderboards.glob(f"*/*/{ABLATIONS}/*/{ENTRIES}") if path.is_dir())


def entry_path(leaderboards: Path, entry: Entry) -> Path:
    """Return where an entry belongs: evaluating a checkpoint again overwrites its own file and no other."""
    identity = entry.config_digest if entry.subject.kind == "checkpoint" else None
    label = entry.recipe if entry.ablation is None else entry.ablation.row
    parts = [folder_name(label), (identity or entry.subject.weights_digest)[:8]]
    if entry.seed is not None:
        parts.append(f"s{entry.seed}")
    if entry.subject.which is not None:
        parts.append(folder_name(entry.subject.which))
    parts.append(entry.protocol.hash[:8])
    if entry.partial:
        parts.append(f"n{entry.data.n}")
    ablation = None if entry.ablation is None else entry.ablation.name
    return table_folder(leaderboards, entry.dataset, entry.threat, ablation) / ENTRIES / f"{'-'.join(parts)}.json"


def picture_path(entry_file: Path) -> Path:
    """Return where the generated images of the entry in this file are shown."""
    return entry_file.parents[1] / PICTURES / f"{entry_file.stem}.png"


def bundle_path(entry_file: Path) -> Path:
    """Return where the evidence bundle of the entry in this file lies."""
    return entry_file.parents[1] / BUNDLES / f"{entry_file.stem}.npz"


def weights_path(folder: Path, entry: Entry) -> Path:
    """Return where the weights of an entry lie, where they are small; ``folder`` is the one of its table."""
    return folder.parent / WEIGHTS / f"{entry.subject.weights_digest[:16]}.safetensors"


def write_entry(leaderboards: Path, entry: Entry) -> Path:
    """Write an entry to its place, atomically, and return the path.

    Raises:
        InputError: the file cannot be written.
    """
    path = entry_path(leaderboards, entry)
    write_text(path, entry.text())
    return path


def read_entries(folder: Path) -> dict[Path, Entry]:
    """Read every entry of a table's folder, by its file.

    Raises:
        InputError: an entry is malformed or lies in the wrong folder; the sentence names it.
    """
    entries: dict[Path, Entry] = {}
    for path in sorted((folder / ENTRIES).glob("*.json")):
        entry = read_entry(path)
        try:
            place = entry_path(Path(), entry).parent.parts
        except InputError as error:
            raise InputError(f"The entry {path} has no threat model: {error}") from error
        if place != path.parent.parts[-len(place) :]:
            belongs = "/".join(place[:-1])
            raise InputError(f"The entry {path} is of {entry.dataset} at {entry.threat}: it belongs in {belongs}.")
        entries[path] = entry
    return entries


def drop_pictures(folder: Path, entries: Mapping[Path, Entry]) -> None:
    """Delete the pictures in a table's folder whose entry is gone, or has measured no generated images."""
    found = {path: entry.measurements.get("generation") for path, entry in entries.items()}
    generated = [path for path, measurement in found.items() if measurement and measurement.status == "done"]
    _keep(map(picture_path, generated), (folder / PICTURES).glob("*.png"))


def drop_bundles(folder: Path, entries: Mapping[Path, Entry]) -> None:
    """Delete the evidence bundles in a table's folder that no entry there names."""
    named = [path for path, entry in entries.items() if entry.evidence is not None]
    _keep(map(bundle_path, named), (folder / BUNDLES).glob("*.npz"))


def drop_weights(leaderboards: Path, entries: Iterable[Entry]) -> None:
    """Delete the copies of weights that none of the entries refers to; they are those of all tables."""
    used = (weights_path(table_folder(leaderboards, entry.dataset, entry.threat), entry) for entry in entries)
    _keep(used, leaderboards.glob(f"*/{WEIGHTS}/*.safetensors"))


def _keep(used: Iterable[Path], there: Iterable[Path]) -> None:
    """Delete the files that are there and not used."""
    for stale in set(there) - set(used):
        stale.unlink()
