"""Where results lie: no two share a file, and what belongs to no entry is cleared away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.results.entry import Entry
from benchmark.results.layout import (
    ablation_folders,
    bundle_path,
    drop_bundles,
    drop_weights,
    entry_path,
    folder_name,
    picture_path,
    read_entries,
    table_folder,
    table_folders,
    weights_path,
    write_entry,
)
from methods.errors import InputError


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"config_digest": "f" * 64},
        {"which": "last"},
        {"n": 50},
        {"protocol": ("digits-linf-v1", "b" * 12, "standard")},
        {"recipe": "pgd_at"},
        {"dataset": "imagefolder:/data/cats"},
        {"threat": "Linf:0.1"},
        {"ablation": {"name": "weights", "row": "none"}},
    ],
)
def test_different_evaluations_have_different_files(entry: Callable[..., Entry], other: dict[str, Any]) -> None:
    root = Path("leaderboards")
    assert entry_path(root, entry(**other)) != entry_path(root, entry())
    assert entry_path(root, entry(values={"clean": 1.0})) == entry_path(root, entry())


def test_cells_of_an_ablation_lie_apart_and_are_named_by_their_row(entry: Callable[..., Entry]) -> None:
    folder = Path("leaderboards/digits/linf-0.15/ablations/weights")
    path = entry_path(Path("leaderboards"), entry(ablation={"name": "weights", "row": "w1=0, w2=1"}))
    assert path.parent == folder / "entries"
    assert path.name == "w1-0-w2-1-cccccccc-s0-best-aaaaaaaa.json"
    assert picture_path(path) == folder / "samples" / f"{path.stem}.png"


def test_folder_names_are_one_part_of_a_path() -> None:
    assert folder_name("imagefolder:/data/a b") == "imagefolder-data-a-b"
    assert folder_name("cifar10-jpeg") == "cifar10-jpeg"
    assert folder_name("../..") == "unnamed"


def test_tables_and_ablations_are_found_by_their_entries(entry: Callable[..., Entry], tmp_path: Path) -> None:
    assert table_folders(tmp_path) == ablation_folders(tmp_path) == []
    written = [entry(), entry(dataset="cifar10"), entry(ablation={"name": "weights", "row": "none"})]
    for path in [write_entry(tmp_path, one) for one in written]:
        assert list(read_entries(path.parents[1])) == [path]
    (tmp_path / "digits" / "linf-0.1").mkdir()
    table, other = table_folder(tmp_path, "digits", "Linf:0.15"), table_folder(tmp_path, "cifar10", "linf: 0.15")
    assert table_folders(tmp_path) == [other, table]
    assert ablation_folders(tmp_path) == [table_folder(tmp_path, "digits", "Linf:0.15", "weights")]


def test_entry_in_the_wrong_folder_is_refused(entry: Callable[..., Entry], tmp_path: Path) -> None:
    path = write_entry(tmp_path, entry())
    path.write_text(entry(threat="Linf:0.1").text())
    with pytest.raises(InputError, match=r"it belongs in digits/linf-0\.1\.$"):
        read_entries(path.parents[1])
    path.write_text(entry(threat="none").text())
    with pytest.raises(InputError, match="has no threat model: "):
        read_entries(path.parents[1])


def test_what_no_entry_names_is_dropped(entry: Callable[..., Entry], tmp_path: Path) -> None:
    kept = entry(evidence="a" * 64)
    path = write_entry(tmp_path, kept)
    folder = path.parents[1]
    bundle, weights = bundle_path(path), weights_path(folder, kept)
    stale = bundle.with_name("gone-s0.npz"), weights.with_name("0123.safetensors")
    bystanders = bundle.with_name("notes.md"), weights.with_name("notes.md")
    for file in (bundle, weights, *stale, *bystanders):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    drop_bundles(folder, {path: kept})
    drop_weights(tmp_path, [kept])
    assert not any(file.exists() for file in stale)
    assert bundle.exists()
    assert weights.exists()
    drop_bundles(folder, {path: kept.model_copy(update={"evidence": None})})
    drop_weights(tmp_path, [])
    assert not bundle.exists()
    assert not weights.exists()
    assert all(file.exists() for file in bystanders)
