import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from methods.data import cifar_jpeg, load
from methods.errors import InputError

REAL_ARCHIVE = Path(__file__).resolve().parents[4] / "shared" / "data" / cifar_jpeg.ARCHIVE
"""Real images where developers keep them, beside the project's folder."""


def jpeg(value: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def tiny_files() -> dict[str, bytes]:
    """Return two classes, three training and two test images each; the grey value tells the image."""
    return {
        f"{split}/{label}/{number:04}.jpg": jpeg(base + 100 * (label == "dog") + 10 * number)
        for label in ("dog", "cat")
        for split, count, base in (("train", 3, 0), ("test", 2, 50))
        for number in reversed(range(count))
    }


@pytest.fixture(autouse=True)
def no_archive_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the archive that the environment names."""
    monkeypatch.delenv("BENCHMARK_DATA", raising=False)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return write_archive(folder / cifar_jpeg.ARCHIVE, tiny_files())


def test_order_is_number_then_class(archive: Path) -> None:
    pool = cifar_jpeg.decode_archive(archive)
    assert pool.classes == ("cat", "dog")
    assert pool.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert pool.train.images[:, 0, 4, 4].tolist() == [0, 100, 10, 110, 20, 120]
    assert pool.test.images[:, 0, 4, 4].tolist() == [50, 150, 60, 160]
    assert pool.test.images.shape == (4, 3, 8, 8)


def test_archive_is_decoded_once(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_DATA", str(archive))
    root = tmp_path / "new" / "root"
    first = cifar_jpeg.read(root)
    assert [file.suffix for file in root.iterdir()] == [".npz"]
    monkeypatch.setattr(cifar_jpeg, "decode_archive", None)
    again = cifar_jpeg.read(root)
    assert again.classes == first.classes
    assert (again.train.digest, again.test.digest) == (first.train.digest, first.test.digest)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_damaged_cache_is_rebuilt(damage: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_DATA", str(archive.parent))
    first = cifar_jpeg.read(tmp_path)
    cache = next(tmp_path.glob("*.npz"))
    content = bytearray(cache.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[400] ^= 0xFF
    else:
        content[:] = b"not an archive"
    cache.write_bytes(content)
    assert cifar_jpeg.read(tmp_path).train.digest == first.train.digest
    assert cache.read_bytes() != bytes(content)


def test_another_archive_does_not_meet_the_old_cache(archive: Path, tmp_path: Path) -> None:
    os.rename(archive, tmp_path / cifar_jpeg.ARCHIVE)
    first = cifar_jpeg.read(tmp_path)
    write_archive(tmp_path / cifar_jpeg.ARCHIVE, {**tiny_files(), "test/cat/0001.jpg": jpeg(255)})
    assert cifar_jpeg.read(tmp_path).test.digest != first.test.digest


def test_places_of_the_archive_in_order(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_archive(root / cifar_jpeg.ARCHIVE, tiny_files())
    monkeypatch.setenv("BENCHMARK_DATA", str(archive))
    assert cifar_jpeg.find_archive(root) == archive
    monkeypatch.setenv("BENCHMARK_DATA", str(archive.parent))
    assert cifar_jpeg.find_archive(root) == archive
    monkeypatch.setenv("BENCHMARK_DATA", str(tmp_path / "nowhere"))
    assert cifar_jpeg.find_archive(root) == root / cifar_jpeg.ARCHIVE
    monkeypatch.delenv("BENCHMARK_DATA")
    assert cifar_jpeg.find_archive(root) == root / cifar_jpeg.ARCHIVE


@pytest.mark.parametrize("beside", ["shared/data", "data", "."])
def test_no_place_is_searched_that_the_user_did_not_name(
    beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside the project's folder nor in it nor where the command runs."""
    monkeypatch.setattr(cifar_jpeg, "__file__", str(tmp_path / "project" / "methods" / "data" / "cifar_jpeg.py"))
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / beside, tmp_path / "project" / beside):
        folder.mkdir(parents=True, exist_ok=True)
        write_archive(folder / cifar_jpeg.ARCHIVE, tiny_files())
    with pytest.raises(InputError, match="cifar10-jpeg needs"):
        cifar_jpeg.find_archive(tmp_path / "root")


def test_missing_archive_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"set BENCHMARK_DATA .* or place it in {tmp_path}"):
        load("cifar10-jpeg", root=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/cat/0002.jpg": b"not a picture"}, "0002.jpg in .* is not a readable image"),
        ({"train/cow/0000.jpg": jpeg(9)}, "same classes"),
        ({"test/cat/0001.jpg": jpeg(9, side=16)}, "differ in size"),
    ],
)
def test_malformed_archive(change: dict[str, bytes], message: str, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / cifar_jpeg.ARCHIVE, {**tiny_files(), **change})
    with pytest.raises(InputError, match=message):
        cifar_jpeg.decode_archive(archive)


@pytest.mark.parametrize("keep", [0, 40, -20])
def test_truncated_archive(keep: int, archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"not a readable \.tar\.gz"):
        cifar_jpeg.decode_archive(archive)


def test_root_that_cannot_hold_the_cache(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_DATA", str(archive))
    root = tmp_path / "file"
    root.write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        cifar_jpeg.read(root)


def test_the_real_archive_has_the_layout() -> None:
    archive = REAL_ARCHIVE
    if not archive.is_file():
        pytest.skip(f"needs the archive of real images, {archive}, which is not part of the project")
    with tarfile.open(archive) as tar:
        members = [tar.next() for _ in range(4)]
        pictures = [member for member in members if member is not None and member.isfile()]
        assert pictures
        content = tar.extractfile(pictures[0])
        assert content is not None
        image = cifar_jpeg.decode(io.BytesIO(content.read()), pictures[0].name)
    assert image.shape == (32, 32, 3)
    split, label, number = pictures[0].name.split("/")
    assert split in {"train", "test"}
    assert (label, number) == ("airplane", "0000.jpg")
