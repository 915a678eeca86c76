"""Where in an image a classifier looks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def grad_cam(maps: Callable[[Tensor], Tensor], from_maps: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return how much each pixel speaks for the label, [B,1,H,W] in [0, 1]: Grad-CAM (Selvaraju et al. 2017).

    The feature maps weighted by the mean gradient of the label's logit over each, summed, cut at 0, each image scaled
    to [0, 1] and resized bilinearly: what jacobgil/pytorch-grad-cam computes for one target layer, with its 1e-7 beside
    each largest value and its second scaling after the resize. One forward pass, and a backward pass through the head.
    ``maps``, whose mode is the caller's business, takes images [B,C,H,W] to feature maps [B,D,h,w], and ``from_maps``
    those to logits [B,K]; labels are int64 [B].
    """
    with torch.no_grad():
        values = maps(x)
    with torch.enable_grad():
        leaf = values.requires_grad_()
        (gradient,) = torch.autograd.grad(from_maps(leaf).gather(1, y[:, None]).sum(), leaf)
    values = values.detach()
    cam = (gradient.mean((2, 3), keepdim=True) * values).sum(1, keepdim=True).relu()
    return _scaled(F.interpolate(_scaled(cam), x.shape[2:], mode="bilinear", align_corners=False))


def _scaled(cam: Tensor) -> Tensor:
    cam = cam - cam.amin((1, 2, 3), keepdim=True)
    return cam / (1e-7 + cam.amax((1, 2, 3), keepdim=True))
