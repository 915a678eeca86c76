import hashlib

import pytest
import torch

from methods.data.images import Dataset, ImageSet, channel_statistics, unit


def some(count: int = 6, shape: tuple[int, int, int] = (3, 4, 5)) -> ImageSet:
    images = torch.arange(count * shape[0] * shape[1] * shape[2]).remainder(256).to(torch.uint8)
    return ImageSet(images.view(count, *shape), torch.arange(count) % 3)


def test_unit_range() -> None:
    assert torch.equal(unit(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0.0, 0.2, 1.0]))
    floats = torch.tensor([0.25, 1.0])
    assert torch.equal(unit(floats), floats)


def test_select_and_unit_agree_on_the_index() -> None:
    data, index = some(), torch.tensor([4, 0, 4])
    chosen = data.select(index)
    assert torch.equal(chosen.images, data.images[[4, 0, 4]])
    assert chosen.labels.tolist() == [1, 0, 1]
    assert torch.equal(data.unit(index), data.images[[4, 0, 4]] / 255)
    assert torch.equal(data.unit(slice(1, 3)), data.images[1:3] / 255)
    assert len(data.select(slice(2))) == 2


def test_digest_covers_shape_type_and_bytes() -> None:
    data = some(2, (1, 1, 2))
    sha = hashlib.sha256(b"(2, 1, 1, 2) torch.uint8" + bytes([0, 1, 2, 3]))
    sha.update(b"(2,) torch.int64" + (0).to_bytes(8, "little") + (1).to_bytes(8, "little"))
    assert data.digest == sha.hexdigest()
    variants = [
        ImageSet(data.images.view(2, 1, 2, 1), data.labels),
        ImageSet(data.images.view(torch.int8), data.labels),
        ImageSet(data.images.flip(0), data.labels),
        ImageSet(data.images, data.labels.flip(0)),
        data.select(slice(0)),
    ]
    assert len({variant.digest for variant in [data, *variants]}) == 6


def test_digest_does_not_depend_on_the_memory_layout() -> None:
    data = some()
    assert ImageSet(data.images.to(memory_format=torch.channels_last), data.labels).digest == data.digest


def test_mismatched_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        ImageSet(torch.zeros(2, 1, 4, 4), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("as_float", [False, True])
def test_channel_statistics(as_float: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2500, 3, 2, 3), generator=generator, dtype=torch.uint8)
    values = (images.double() / 255).transpose(0, 1).flatten(1)
    mean, std = channel_statistics(unit(images) if as_float else images)
    assert mean == pytest.approx(values.mean(1).tolist(), rel=1e-6)
    assert std == pytest.approx(values.std(1, correction=0).tolist(), rel=1e-6)


def test_constant_channel_gets_a_harmless_deviation() -> None:
    mean, std = channel_statistics(torch.full((3, 1, 8, 8), 51, dtype=torch.uint8))
    assert (mean, std) == (pytest.approx((0.2,)), (1.0,))


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("digits", "digits"),
        ("imagefolder:/data/My pets/", "imagefolder-my-pets"),
        ("npz:../some/Toy.v2.npz", "npz-toy.v2"),
    ],
)
def test_slug_is_a_folder_name(name: str, slug: str) -> None:
    data = some()
    assert Dataset(name, ("a", "b", "c"), data, data, data, (0.5,) * 3, (0.5,) * 3).slug == slug
