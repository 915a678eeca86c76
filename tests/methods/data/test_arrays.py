from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.data import load
from methods.errors import InputError


def content(**changes: Any) -> dict[str, Any]:
    arrays = {
        "x_train": np.random.default_rng(0).integers(0, 256, (6, 3, 8, 9), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.random.default_rng(1).integers(0, 256, (3, 3, 8, 9), dtype=np.uint8),
        "y_test": np.array([2, 1, 0]),
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def both(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"x_train": x, "x_test": x}


def write(folder: Path, arrays: dict[str, Any]) -> str:
    np.savez(folder / "toy.npz", **arrays)
    return f"npz:{folder / 'toy.npz'}"


def test_nchw_bytes(tmp_path: Path) -> None:
    arrays = content()
    dataset = load(write(tmp_path, arrays))
    assert torch.equal(dataset.train.images, torch.from_numpy(arrays["x_train"]))
    assert dataset.test.labels.tolist() == [2, 1, 0]
    assert dataset.classes == ("0", "1", "2")
    assert dataset.slug == "npz-toy"
    assert len(dataset.validation) == 0


def test_nhwc_is_turned_round(tmp_path: Path) -> None:
    arrays = content()
    turned = {key: arrays[key].transpose(0, 2, 3, 1) for key in ("x_train", "x_test")}
    dataset = load(write(tmp_path, {**arrays, **turned}))
    assert torch.equal(dataset.train.images, torch.from_numpy(arrays["x_train"]))
    assert dataset.train.images.is_contiguous()


def test_nchw_wins_where_both_are_possible(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 1), dtype=np.uint8)
    assert load(write(tmp_path, content(x_train=x, x_test=x[:3]))).image_shape == (3, 8, 1)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4"])
def test_floats_stay_floats(kind: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((6, 1, 8, 8)).astype(kind)
    dataset = load(write(tmp_path, content(x_train=x, x_test=x[:3])))
    assert dataset.train.images.dtype == torch.float32
    assert torch.equal(dataset.train.images, torch.from_numpy(x.astype(np.float32)))
    assert dataset.mean == pytest.approx((x.astype(np.float64).mean(),), rel=1e-3)


def test_class_names(tmp_path: Path) -> None:
    named = write(tmp_path, content(classes=np.array(["cat", "dog", "cow"])))
    assert load(named).classes == ("cat", "dog", "cow")


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_type(kind: type[np.integer], tmp_path: Path) -> None:
    dataset = load(write(tmp_path, content(y_train=np.array([0, 1, 2, 0, 1, 2], dtype=kind))))
    assert dataset.train.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "xtest": np.zeros(3)}, 'no array "x_test". Did you mean "xtest"'),
        ({"y_train": None}, 'no array "y_train"'),
        ({"x_train": np.zeros((6, 8, 9), np.uint8)}, "one image shape"),
        ({"x_test": np.zeros((3, 3, 8, 8), np.uint8)}, "one image shape"),
        ({"x_test": np.zeros((3, 3, 8, 9), np.float32)}, "one type"),
        (both(np.zeros((6, 2, 8, 9), np.uint8)), "x_train .*1 or 3 channels"),
        (both(np.zeros((6, 192), np.uint8)), "x_train .*1 or 3 channels"),
        (
            {"x_test": np.zeros((0, 3, 8, 9), np.uint8), "y_test": np.zeros(0, int)},
            "x_test .*not .0, 3, 8, 9",
        ),
        (both(np.zeros((6, 3, 8, 9), int)), "x_train .*not int64"),
        (both(np.full((6, 3, 8, 9), 1.5)), "x_train .*outside"),
        (both(np.full((6, 3, 8, 9), np.nan)), "x_train .*outside"),
        ({"y_train": np.array([0.0, 1, 2, 0, 1, 2])}, "y_train .*integers"),
        ({"y_train": np.array([[0], [1], [2], [0], [1], [2]])}, "y_train .*integers"),
        ({"y_test": np.array([0, -1, 2])}, "y_test .*negative"),
        ({"y_test": np.array([0, 3, 2])}, "y_test .*label 3"),
        ({"y_train": np.array([1, 2, 3, 1, 2, 3])}, "y_train .*lacks 0"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "single class"),
        ({"y_train": np.array([0, 1, 2])}, "x_train and y_train .*6 images and 3 labels"),
        ({"y_test": np.array([0, 1])}, "x_test and y_test .*3 images and 2 labels"),
        ({"y_train": np.array([0, 1, 2, 0, 1, None], dtype=object)}, "y_train .*Python objects"),
        ({"classes": np.array(["cat", "dog"])}, "classes .*3 strings"),
    ],
)
def test_malformed_arrays(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, content(**changes)))


def test_foreign_arrays_are_not_read(tmp_path: Path) -> None:
    assert len(load(write(tmp_path, content(notes=np.array([{}], dtype=object)))).train) == 6


@pytest.mark.parametrize("damage", [b"", b"text", b"PK\x03\x04 cut short"])
def test_not_an_archive(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "toy.npz").write_bytes(damage)
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        load(f"npz:{tmp_path / 'toy.npz'}")


def test_a_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "toy.npy", np.zeros(3))
    with pytest.raises(InputError, match="single array"):
        load(f"npz:{tmp_path / 'toy.npy'}")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.npz"):
        with pytest.raises(InputError, match="no file"):
            load(f"npz:{path}")


def test_damaged_array_is_named(tmp_path: Path) -> None:
    name = write(tmp_path, content())
    file = tmp_path / "toy.npz"
    raw = bytearray(file.read_bytes())
    raw[600] ^= 0xFF
    file.write_bytes(raw)
    with pytest.raises(InputError, match=r"x_train .* damaged"):
        load(name)


def generated(folder: Path, **changes: Any) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    arrays = {"image": images, "label": np.array([0, 9, 3, 3])} | changes
    np.savez(folder / "generated.npz", **{key: value for key, value in arrays.items() if value is not None})
    return folder / "generated.npz"


def test_generated_images_join_a_data_set(tmp_path: Path) -> None:
    path = generated(tmp_path)
    plain, found = load("digits"), load("digits", generated=path)
    assert plain.generated is None
    assert found.generated is not None
    with np.load(path) as arrays:
        assert torch.equal(found.generated.images, torch.from_numpy(arrays["image"].transpose(0, 3, 1, 2)))
    assert found.generated.labels.tolist() == [0, 9, 3, 3]
    assert dict(found.digests) == dict(plain.digests) | {"generated": found.generated.digest}
    # Trap 14: what is validated on is neither trained on nor generated.
    assert torch.equal(found.validation.images, plain.validation.images)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": None}, 'no array "label"'),
        ({"image": None, "images": np.zeros((4, 8, 8, 1), np.uint8)}, 'no array "image". Did you mean "images"'),
        ({"image": np.zeros((4, 8, 8, 1))}, "image in .* must be uint8, not float64"),
        ({"image": np.zeros((4, 64), np.uint8)}, "must be .N,C,H,W. or"),
        ({"image": np.zeros((4, 9, 8, 1), np.uint8)}, r"differ in shape \(C,H,W\): 1x9x8 and 1x8x8"),
        ({"image": np.zeros((4, 8, 8, 3), np.uint8)}, r"differ in shape \(C,H,W\): 3x8x8 and 1x8x8"),
        ({"label": np.array([0, 1, 2])}, "differ in length: 4 and 3"),
        ({"label": np.array([0, 1, 2, 10])}, "reaches 10, but the data set has 10 classes"),
        ({"label": np.array([0, 1, 2, -1])}, "holds a negative label"),
        ({"label": np.array([0.0, 1, 2, 3])}, "must be integers"),
    ],
)
def test_generated_images_that_do_not_fit_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load("digits", generated=generated(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_generated_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*none\.npz of generated images: make one"):
        load("digits", generated=tmp_path / "none.npz")
