"""Grids, buffers, and the numbers on samples that a training logs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from methods.errors import InputError
from methods.training.pictures import frechet, load_buffer, quality, rounded, save_buffer, thumbnails, write_grid


@pytest.mark.parametrize(
    ("shape", "classes", "size"),
    [
        ((1, 8, 8), 10, (342, 342)),
        ((3, 32, 32), 3, (104, 342)),
        ((1, 20, 20), 100, (422, 422)),
        ((3, 64, 64), 2, (134, 662)),
    ],
)
def test_grid_has_a_row_per_class_and_cells_of_32_pixels_or_more(
    tmp_path: Path, shape: tuple[int, int, int], classes: int, size: tuple[int, int]
) -> None:
    labels = torch.arange(12) % classes
    write_grid(tmp_path / "deep" / "grid.png", torch.rand(12, *shape), labels, classes)
    assert Image.open(tmp_path / "deep" / "grid.png").size == size[::-1]


def test_grid_shows_images_in_order_and_grey_where_there_is_none(tmp_path: Path) -> None:
    images = torch.arange(24, dtype=torch.uint8).mul(10)[:, None, None, None].repeat(1, 1, 8, 8)
    labels = torch.tensor([1, 0] * 12)
    write_grid(tmp_path / "grid.png", images, labels, 3)
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    cells = [[int(pixels[34 * row + 18, 34 * column + 18]) for column in range(10)] for row in range(3)]
    assert cells == [list(range(10, 210, 20)), list(range(0, 200, 20)), [128] * 10]
    write_grid(tmp_path / "float.png", images.float() / 255, labels, 3)
    assert (np.asarray(Image.open(tmp_path / "float.png").convert("L")) == pixels).all()


def test_quality_of_the_training_images_themselves_is_perfect() -> None:
    images = torch.rand(50, 3, 16, 16)
    images[0] = 1
    found = quality(images, images)
    assert found["frechet_thumbnails"] == pytest.approx(0, abs=1e-9)
    assert found["mean"] == pytest.approx(images.mean().item(), rel=1e-5)
    assert found["std"] == pytest.approx(images.std(correction=0).item(), rel=1e-5)
    assert found["saturated"] == pytest.approx(1 / 50)


def test_quality_sees_a_collapse_and_takes_bytes() -> None:
    images = torch.rand(200, 1, 8, 8)
    found = quality(torch.full((20, 1, 8, 8), 255, dtype=torch.uint8), images)
    assert (found["mean"], found["std"], found["saturated"]) == (1, 0, 1)
    mean, covariance = images.flatten(1).double().mean(0), images.flatten(1).double().var(0, correction=0)
    assert found["frechet_thumbnails"] == pytest.approx(((1 - mean) ** 2 + covariance).sum().item(), rel=1e-6)
    assert math.isnan(quality(torch.full((2, 1, 8, 8), torch.nan), images)["frechet_thumbnails"])


def test_frechet_distance_of_independent_gaussians_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)])
    means, scales = torch.rand(2, 3, generator=generator), torch.rand(2, 3, generator=generator)
    sets = [mean + scale * signs for mean, scale in zip(means, scales, strict=True)]
    expected = (means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum()
    assert frechet(sets[0], sets[1]) == pytest.approx(expected.item(), rel=1e-5)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    assert frechet(sets[0] @ turn, sets[1] @ turn) == pytest.approx(expected.item(), rel=1e-4)


def test_thumbnails_average_areas() -> None:
    images = torch.rand(3, 2, 32, 16)
    expected = images.view(3, 2, 8, 4, 8, 2).mean((3, 5)).flatten(1)
    assert torch.allclose(thumbnails(images), expected, atol=1e-6)
    assert torch.equal(thumbnails(images[..., :5, :6]), images[..., :5, :6].flatten(1))


def test_buffer_comes_back_rounded(tmp_path: Path) -> None:
    samples = torch.rand(20, 3, 8, 8)
    samples[0, 0, 0] = torch.tensor([0.0, 1.0, -0.1, 1.2, torch.nan, 0.5 / 255 + 1e-4, 0.4 / 255, 1.0])
    save_buffer(tmp_path / "best-buffer.safetensors", samples)
    loaded = load_buffer(tmp_path / "best-buffer.safetensors")
    assert loaded[0, 0, 0].tolist() == [0, 255, 0, 255, 128, 1, 0, 255]
    assert torch.equal(loaded, rounded(samples))
    assert (loaded[1:].float() / 255 - samples[1:]).abs().max() <= 0.5 / 255 + 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["best-buffer.safetensors"]


def test_foreign_and_truncated_buffers_are_refused_in_one_sentence(tmp_path: Path) -> None:
    save_buffer(tmp_path / "cut", torch.rand(4, 1, 8, 8))
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:60])
    save_file({"weights": torch.zeros(3)}, tmp_path / "foreign")
    save_file({"samples": torch.zeros(3)}, tmp_path / "flat")
    for name in ("cut", "foreign", "flat", "missing"):
        with pytest.raises(InputError) as caught:
            load_buffer(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
