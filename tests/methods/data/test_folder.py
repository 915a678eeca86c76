from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from methods.data import load
from methods.errors import InputError


def save(file: Path, value: int, shape: tuple[int, ...] = (8, 10, 3)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(file)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Make three cats and two dogs to train on, one of each to test; the grey value tells the image."""
    values = {"train/dog": [100, 110], "train/cat": [10, 20, 30], "test/dog": [150], "test/cat": [50]}
    for folder, greys in values.items():
        for number, grey in enumerate(greys, start=1):
            save(tmp_path / "pets" / folder / f"{number}.png", grey)
    return tmp_path / "pets"


def test_images_are_interleaved_and_classes_sorted(pets: Path) -> None:
    dataset = load(f"imagefolder:{pets}", validation=0)
    assert dataset.name == f"imagefolder:{pets}"
    assert dataset.slug == "imagefolder-pets"
    assert dataset.classes == ("cat", "dog")
    assert dataset.image_shape == (3, 8, 10)
    assert dataset.train.images[:, 0, 0, 0].tolist() == [10, 100, 20, 110, 30]
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert dataset.test.images[:, 2, 7, 9].tolist() == [50, 150]


def test_other_files_and_nested_folders(pets: Path) -> None:
    (pets / "train" / "cat" / "notes.txt").write_text("no picture")
    (pets / "train" / "cat" / ".hidden.png").write_text("no picture")
    (pets / "train" / ".cache").mkdir()
    save(pets / "train" / "dog" / "more" / "0.JPG", 200)
    save(pets / "train" / "dog" / "grey.png", 120, (8, 10))
    train = load(f"imagefolder:{pets}", validation=0).train
    assert train.images[train.labels == 1][:, 1, 0, 0].tolist() == [100, 110, 120, 200]


def test_size_cuts_the_centred_square_and_resamples(pets: Path) -> None:
    striped = np.zeros((16, 32, 3), dtype=np.uint8)
    striped[:, 8:24] = 200
    Image.fromarray(striped).save(pets / "train" / "cat" / "1.png")
    dataset = load(f"imagefolder:{pets}", size=8, validation=0)
    assert dataset.image_shape == (3, 8, 8)
    # Bicubic resampling rings by a few values at the cut; a squeezed picture would have black columns.
    assert (dataset.train.images[0].int() - 200).abs().max().item() < 20


def remove(file: Path) -> None:
    if file.is_dir():
        for entry in file.iterdir():
            remove(entry)
        file.rmdir()
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pets: remove(pets), "there is no .*train"),
        (lambda pets: remove(pets / "test"), "there is no .*test"),
        (lambda pets: remove(pets / "test" / "dog"), 'only one of them has "dog"'),
        (lambda pets: save(pets / "test" / "cow" / "1.png", 1), 'only one of them has "cow"'),
        (lambda pets: remove(pets / "train" / "cat"), "at least two classes"),
        (lambda pets: remove(pets / "test" / "dog" / "1.png"), "dog holds no images"),
        (lambda pets: (pets / "test" / "dog" / "1.png").write_bytes(b"junk"), "1.png is not a readable"),
        (lambda pets: save(pets / "train" / "cat" / "2.png", 1, (8, 8, 3)), "10x8 and 8x8.*set data.size"),
        (
            lambda pets: [save(pets / "test" / label / "1.png", 1, (8, 8, 3)) for label in ("cat", "dog")],
            "train and test .* differ in size: set data.size",
        ),
    ],
)
def test_malformed_folder(spoil: Callable[[Path], object], message: str, pets: Path) -> None:
    spoil(pets)
    with pytest.raises(InputError, match=message):
        load(f"imagefolder:{pets}", validation=0)


def test_truncated_picture(pets: Path) -> None:
    file = pets / "train" / "dog" / "2.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"2\.png is not a readable image"):
        load(f"imagefolder:{pets}")


def test_size_is_positive(pets: Path) -> None:
    with pytest.raises(InputError, match=r"data\.size"):
        load(f"imagefolder:{pets}", size=0)
