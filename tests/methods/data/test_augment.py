from typing import Literal

import pytest
import torch
from torch.nn import functional as F

from methods.data.augment import crop, cutout, flip
from methods.errors import InputError


def pictures(dtype: torch.dtype, batch: int = 200) -> torch.Tensor:
    values = torch.randint(1, 256, (batch, 3, 6, 7), generator=torch.Generator().manual_seed(1))
    return values.to(torch.uint8) if dtype == torch.uint8 else values.to(dtype) / 255


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("padding", [1, 4])
def test_crop_equals_a_loop_over_padded_images(
    dtype: torch.dtype, mode: Literal["zero", "reflect"], padding: int
) -> None:
    images = pictures(dtype)
    cropped = crop(images, padding, mode, torch.Generator().manual_seed(5))
    assert cropped.dtype == dtype
    assert cropped.is_contiguous()
    draws = torch.randint(2 * padding + 1, (2, len(images), 1), generator=torch.Generator().manual_seed(5))
    tops, lefts = draws.squeeze(-1).tolist()
    assert set(tops) == set(lefts) == set(range(2 * padding + 1))
    for image, result, top, left in zip(images, cropped, tops, lefts, strict=True):
        padded = F.pad(image.double(), [padding] * 4, mode="constant" if mode == "zero" else "reflect")
        window = padded[:, top : top + 6, left : left + 7]
        assert torch.equal(result.double(), window)


def test_offsets_differ_between_images_and_axes() -> None:
    rows = torch.arange(6).view(1, 1, 6, 1).expand(64, 1, 6, 7).to(torch.uint8)
    top = crop(rows, 2, "reflect", torch.Generator().manual_seed(0))[:, 0, 2, 3]
    left = crop(rows.transpose(2, 3), 2, "reflect", torch.Generator().manual_seed(0))[:, 0, 3, 2]
    assert set(top.tolist()) == set(left.tolist()) == {0, 1, 2, 3, 4}
    assert not torch.equal(top, left)


def test_reflection_needs_larger_images() -> None:
    with pytest.raises(InputError, match="6 pixels needs larger images than 6x7"):
        crop(pictures(torch.uint8), 6, "reflect", torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip_mirrors_about_half(dtype: torch.dtype) -> None:
    images = pictures(dtype)
    flipped = flip(images, torch.Generator().manual_seed(3))
    assert flipped.dtype == dtype
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 75 < sum(mirrored) < 125


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("side", [1, 3, 4])
def test_cutout_hides_a_square_around_a_random_pixel(dtype: torch.dtype, side: int) -> None:
    images = pictures(dtype)
    found = cutout(images, side, torch.Generator().manual_seed(3))
    assert found.dtype == dtype
    hidden = (found == 0).all(1)
    assert torch.equal(found, images * ~hidden[:, None])
    centres = set()
    for mask in hidden:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert int(mask.sum()) == len(rows) * len(columns) <= side**2
        assert len(rows) == int(rows.max() - rows.min()) + 1
        centres.add((int(rows.min()), int(columns.min())))
    assert int(hidden.sum(dim=(1, 2)).max()) == side**2
    assert len(centres) > 15
