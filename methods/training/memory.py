"""Attacks on a device that is too small for them: their passes in eval mode are taken apart, and the record says so."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from methods.backbones import Classifier
from methods.primitives.modes import DeviceFull, held

R = TypeVar("R")


def fitted(inner: Callable[[], R], model: nn.Module, images: int, rows: int | None) -> tuple[R, int | None]:
    """Return what ``inner`` returns, and the number of images that passes in eval mode took at a time; None: all.

    Where the device is full that number is halved, and ``inner`` starts again. In eval mode the images do not see each
    other, so this changes nothing but rounding; every pass for input gradients then costs another forward pass.
    ``images`` is the most that a pass takes, and ``rows`` where to begin.

    Raises:
        DeviceFull: in train mode, where BatchNorm makes the images see each other, or with a single image.
    """
    begun = rows
    classifiers = [module for module in model.modules() if isinstance(module, Classifier)]
    while True:
        try:
            with held(classifiers, "rows", rows):
                result = inner()
        except DeviceFull as error:
            if error.training or rows == 1:
                raise
        else:
            break
        # Not in the handler: the error's traceback holds the graph that was too large.
        rows = max(1, (rows or images) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if rows != begun:
        print(f"The device is full: attacks in eval mode now run on {rows} images at a time.", file=sys.stderr)
    return result, rows
