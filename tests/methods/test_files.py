"""Files are whole or not there, and what cannot be written is told in one sentence."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from methods.errors import InputError
from methods.files import write_json, write_text

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_makes_the_folder_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json(path, {"value": 1})
    write_json(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 2}
    assert [item.name for item in path.parent.iterdir()] == ["b.json"]


def full_disk(*arguments: Any, **keywords: Any) -> None:
    raise FULL


def half_written(path: Path, text: str, **keywords: Any) -> int:
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text[: len(text) // 2])
    raise FULL


@pytest.mark.parametrize(
    ("target", "name", "replacement"),
    [(os, "replace", full_disk), (os, "fsync", full_disk), (Path, "write_text", half_written)],
)
@pytest.mark.parametrize("old", [None, "the old file"])
def test_full_disk_leaves_the_old_file_and_nothing_else(
    target: Any, name: str, replacement: Any, old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    if old is not None:
        write_text(path, old)
    monkeypatch.setattr(target, name, replacement)
    with pytest.raises(InputError, match=r"Cannot write .*file\.txt: .*No space left on device") as caught:
        write_text(path, "the new file")
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert [item.read_text() for item in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="Cannot write"):
        write_text(tmp_path / "file" / "sub.txt", "text")
