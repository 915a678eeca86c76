"""The figure of an entry, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark.evaluation.runner import evaluate
from benchmark.leaderboard.sample_grids import panels_of, stack, write_panels
from benchmark.results.store import Store
from benchmark.specs.protocol import Protocol
from methods.errors import InputError


def picture(path: Path) -> np.ndarray:
    """Return a file's pixels, [H,W,3]."""
    return np.asarray(Image.open(path).convert("RGB"))


def found(whole: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """Return where a grey picture [h,w] occurs in another one, [H,W]."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)
    return list(zip(*np.nonzero((windows == part).all((2, 3))), strict=True))


def test_each_image_is_in_the_row_of_its_class_enlarged_and_unchanged(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    labels = np.array([1, 0, 2, 1, 0, 1])
    panels = {"informative start": (images, labels), "random start": (images[::-1], labels[::-1])}
    write_panels(tmp_path / "a.png", "a model", panels, ("zero", "one", "two"))
    pixels = picture(tmp_path / "a.png")
    assert (pixels == pixels[..., :1]).all()
    places = [found(pixels[..., 0], image[0].repeat(4, 0).repeat(4, 1)) for image in images]
    assert [len(place) for place in places] == [2] * 6
    rows = {
        label: {place[0][0] for place, own in zip(places, labels, strict=True) if own == label} for label in (0, 1, 2)
    }
    assert [len(row) for row in rows.values()] == [1, 1, 1]
    assert [min(row) for row in rows.values()] == sorted(min(row) for row in rows.values())
    # Order within a row: images 0, 3 and 5 are of class 1.
    assert [places[i][0][1] - places[0][0][1] for i in (0, 3, 5)] == [0, 34, 68]
    assert len(found(pixels[..., 0], np.full((32, 32), 128))) == 2 * (30 - 6)


def test_file_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(100) % 10
    panels = {str(number): (images, labels) for number in range(4)}
    for name in ("a.png", "b.png"):
        write_panels(tmp_path / name, "noise", panels, [f"class {label}" for label in range(100)])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 700_000
    height, width = picture(tmp_path / "a.png").shape[:2]
    assert height > 340
    assert width > 4 * 340


def test_panels_come_from_the_measurement(
    toy: Any, protocol: Callable[..., Protocol], store: Store, tmp_path: Path
) -> None:
    few = {"generation": {"starts": ["pca", "uniform"], "steps": 1}}
    measurement = evaluate(toy().subject(), toy().dataset, protocol(metrics=few), store=store, progress=False)[
        "generation"
    ]
    panels = panels_of(measurement, store)
    assert list(panels) == ["random start", "PCA start"]
    images, labels = panels["PCA start"]
    assert (images.dtype, images.shape, labels.tolist()) == (
        np.uint8,
        (24, 1, 6, 6),
        toy().dataset.test.labels.tolist(),
    )
    write_panels(tmp_path / "toy.png", "toy", panels, toy().dataset.classes)
    assert panels_of(measurement.model_copy(update={"samples": None}), store) == {}


def test_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    panel = np.zeros((1, 1, 8, 8), np.uint8), np.zeros(1, np.int64)
    with pytest.raises(InputError, match="Cannot write"):
        write_panels(tmp_path / "file" / "a.png", "", {"start": panel}, ("zero",))


def test_stack_has_every_picture_whole_and_in_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    parts = [85 * generator.integers(0, 4, (20, width), dtype=np.uint8) for width in (150, 200)]
    for number, part in enumerate(parts):
        Image.fromarray(part).save(tmp_path / f"{number}.png")
    stack(tmp_path / "a.png", {"JEM": tmp_path / "0.png", "SADA-JEM": tmp_path / "1.png"})
    pixels = picture(tmp_path / "a.png")
    (upper,), (lower,) = (found(pixels[..., 0], part) for part in parts)
    assert upper[1] == lower[1] == 0
    assert upper[0] + 20 < lower[0]
    assert pixels.shape[:2] == (lower[0] + 20, 200)


def test_stack_of_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be read"):
        stack(tmp_path / "a.png", {"JEM": tmp_path / "no.png"})
