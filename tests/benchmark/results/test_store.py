"""The store: keys, atomic writes, and what happens to broken files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.results.entry import Measurement
from benchmark.results.store import Arrays, SaveError, Store, key

IDENTITY: dict[str, Any] = {"metric": "clean", "weights": "ab", "seed": 0}
SHARD: Arrays = {"correct": np.array([True, False, True]), "shard_warnings": np.array(["one"])}


def measurement(store: Store, n: int = 3) -> Measurement:
    samples = store.save_samples(IDENTITY, n, {"correct": SHARD["correct"]})
    return Measurement(
        **{"metric": "clean", "version": 1, "status": "done", "n": n, "seconds": 0.1, "samples": samples},
        key=key(IDENTITY | {"n": n}),
    )


def test_key_depends_on_content_and_not_on_order() -> None:
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key({"a": 1, "b": 2}) != key({"a": 1, "b": 3})
    with pytest.raises(ValueError, match="JSON"):
        key({"a": float("nan")})


def test_shard_reads_back_equal(store: Store) -> None:
    assert store.load_shard(IDENTITY, 0, 3) is None
    store.save_shard(IDENTITY, 0, 3, SHARD)
    loaded = store.load_shard(IDENTITY, 0, 3)
    assert loaded is not None
    assert {name: array.tolist() for name, array in loaded.items()} == {
        "correct": [True, False, True],
        "shard_warnings": ["one"],
    }
    assert store.load_shard(IDENTITY, 1, 3) is None
    assert store.load_shard(IDENTITY, 0, 2) is None
    assert store.load_shard(IDENTITY | {"seed": 1}, 0, 3) is None


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_truncated_shard_counts_as_not_computed(store: Store, length: int) -> None:
    store.save_shard(IDENTITY, 0, 3, SHARD)
    (path,) = store.root.rglob("shard-*.npz")
    path.write_bytes(path.read_bytes()[:length])
    assert store.load_shard(IDENTITY, 0, 3) is None


def test_flipped_byte_counts_as_not_computed(store: Store) -> None:
    store.save_shard(IDENTITY, 0, 3, {"energy": np.linspace(0, 1, 3)})
    (path,) = store.root.rglob("shard-*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)
    assert store.load_shard(IDENTITY, 0, 3) is None


def test_shard_of_another_length_counts_as_not_computed(store: Store) -> None:
    store.save_shard(IDENTITY, 0, 3, {"correct": np.array([True])})
    assert store.load_shard(IDENTITY, 0, 3) is None


def test_measurement_reads_back_equal_and_only_with_its_samples(store: Store) -> None:
    kept = measurement(store)
    store.save_measurement(IDENTITY, kept)
    assert store.load_measurement(IDENTITY, 3) == kept
    assert store.load_measurement(IDENTITY, 2) is None
    (store.root / str(kept.samples)).unlink()
    assert store.load_measurement(IDENTITY, 3) is None


def test_torn_measurement_counts_as_not_computed(store: Store) -> None:
    store.save_measurement(IDENTITY, measurement(store))
    (path,) = store.root.rglob("measurement-*.json")
    path.write_text(path.read_text()[:40])
    assert store.load_measurement(IDENTITY, 3) is None


def test_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = measurement(store)
    before = sorted(store.root.rglob("*"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for save in (
        lambda: store.save_shard(IDENTITY, 0, 3, SHARD),
        lambda: store.save_samples(IDENTITY, 4, SHARD),
        lambda: store.save_measurement(IDENTITY, kept),
    ):
        with pytest.raises(SaveError, match="No space left") as caught:
            save()
        assert "\n" not in str(caught.value)
    assert sorted(store.root.rglob("*")) == before


def test_store_in_a_place_that_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="Cannot write"):
        Store(tmp_path / "file").save_shard(IDENTITY, 0, 3, SHARD)
