from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.primitives.saliency import grad_cam


def test_grad_cam_is_the_package_of_the_paper(
    golden_network: Callable[[], nn.Sequential],
    golden_images: dict[str, Tensor],
    golden: Callable[[str], dict[str, Any]],
) -> None:
    network = golden_network().eval().requires_grad_(False)
    cam = grad_cam(network[:6], network[6:], golden_images["x"], golden_images["y"])
    expected = torch.tensor(golden("grad_cam")["cam"]).view(4, 1, 8, 8)
    torch.testing.assert_close(cam, expected, atol=1e-5, rtol=0)
    assert not cam.requires_grad


def test_map_of_one_weighted_channel() -> None:
    """The channel that raises the label's logit, its smallest value 0 and its largest 1; negative ones are cut."""
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(2, 1, 1, 1)

    def logits(maps: Tensor) -> Tensor:
        mean = maps.mean((2, 3))
        return torch.cat([3 * mean, -2 * mean], 1)

    cam = grad_cam(lambda images: images, logits, x, torch.tensor([0, 1]))
    torch.testing.assert_close(cam[0, 0], x[0, 0] / 15, atol=1e-6, rtol=0)
    assert torch.equal(cam[1], torch.zeros(1, 4, 4))


@pytest.mark.parametrize("sides", [(8, 8), (6, 10)])
def test_maps_are_resized_to_the_image_about_pixel_centres(sides: tuple[int, int]) -> None:
    x = torch.rand(3, 2, *sides)
    maps = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(3, 1, 2, 2)
    cam = grad_cam(lambda images: maps.clone(), lambda z: z.mean((2, 3)), x, torch.zeros(3, dtype=torch.long))
    assert cam.shape == (3, 1, *sides)
    width = sides[1]
    row = ((torch.arange(width) + 0.5) * 2 / width - 0.5).clamp(0, 1)
    torch.testing.assert_close(cam, row.expand(3, 1, *sides), atol=1e-6, rtol=0)


def test_no_pixel_speaks_in_maps_of_one() -> None:
    """Maps of one pixel are constant, and so 0 after scaling: what networks that stride down to 1x1 give."""
    cam = grad_cam(
        lambda x: x.mean((2, 3), keepdim=True), lambda z: z.mean((2, 3)), torch.rand(2, 3, 8, 8), torch.ones(2).long()
    )
    assert torch.equal(cam, torch.zeros(2, 1, 8, 8))
