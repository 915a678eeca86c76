"""Perceptual distance between images, by a pretrained network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.errors import InputError


def lpips_distance(image_shape: tuple[int, int, int]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the LPIPS distance (VGG, version 0.1) of images in [0, 1], per image.

    The network is not a part of the method's state. Its backbone weights are downloaded by torchvision.

    Raises:
        InputError: the images are too small or not RGB, or the weights cannot be had.
    """
    import lpips

    if image_shape[0] != 3 or min(image_shape[1:]) < 16:
        raise InputError(f"LPIPS needs RGB images of at least 16 pixels, not {image_shape}.")
    try:
        network: Any = lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False).eval()
    except OSError as error:
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"The VGG weights of LPIPS cannot be loaded ({error}); place torchvision's vgg16-397923af.pth in {place}."
        ) from error

    def distance(x_adv: Tensor, x: Tensor) -> Tensor:
        return network.to(x.device)(x_adv, x, normalize=True).flatten()

    return distance
