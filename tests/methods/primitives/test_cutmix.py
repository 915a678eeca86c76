import torch

from methods.primitives.cutmix import Box, cutmix, paste, random_box
from methods.primitives.random import generator
from methods.primitives.targets import one_hot

X = torch.rand(6, 3, 8, 8, generator=generator(0, "images"))
TARGET = one_hot(torch.arange(6), 10)


def test_a_box_comes_from_the_partner_and_takes_its_share_of_the_target() -> None:
    partner = torch.tensor([1, 2, 3, 4, 5, 0])
    mixed, target = paste(X, TARGET, Box(1, 2, 3, 4), partner)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:4, 2:6] = True
    assert torch.equal(mixed[:, :, inside], X[partner][:, :, inside])
    assert torch.equal(mixed[:, :, ~inside], X[:, :, ~inside])
    torch.testing.assert_close(target, TARGET * (1 - 12 / 64) + TARGET[partner] * 12 / 64)


def test_boxes_lie_in_the_image_and_have_the_windows_side_unless_cut_off() -> None:
    boxes = [random_box(32, 32, 20 / 32, generator(0, "box", step)) for step in range(200)]
    for box in boxes:
        assert box.top >= 0
        assert box.left >= 0
        assert box.top + box.height <= 32
        assert box.left + box.width <= 32
        assert 10 <= box.height <= 20
        assert 10 <= box.width <= 20
    assert max(box.height for box in boxes) == max(box.width for box in boxes) == 20
    assert len({box.top for box in boxes}) > 10


def test_a_window_is_a_share_of_the_side_and_digits_have_it_too() -> None:
    boxes = [random_box(8, 8, 20 / 32, generator(0, "box", step)) for step in range(50)]
    assert max(box.height for box in boxes) == 4


def test_without_a_window_the_area_is_uniform() -> None:
    """At most the drawn share of the area: E = 1/2 for whole boxes, less for those cut off at an edge."""
    boxes = [random_box(64, 64, None, generator(0, "box", step)) for step in range(400)]
    areas = torch.tensor([box.height * box.width / 64**2 for box in boxes])
    assert areas.min() < 0.02
    assert areas.max() > 0.6
    assert 0.2 < areas.mean() < 0.5


def test_one_stream_gives_one_mixture_and_leaves_the_images_alone() -> None:
    before = X.clone()
    first, again, other = (cutmix(X, TARGET, 0.6, generator(0, "cutmix", step)) for step in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(X, before)
    torch.testing.assert_close(first[1].sum(1), torch.ones(6))
    assert first[0].min() >= 0
    assert first[0].max() <= 1
