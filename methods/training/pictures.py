"""Samples of a run on disk: grids as PNG, the replay buffer, and cheap numbers on their quality for the log."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from methods.data.images import unit
from methods.errors import InputError
from methods.files import write
from methods.training.checkpoint import write_tensors

ROWS, COLUMNS = 10, 10
"""Classes and images of each that a grid shows."""
_CELL = 32
"""Pixels that a cell has at least."""
_THUMBNAIL = 8
"""Largest side of the thumbnails that are compared."""
_REFERENCES = 10_000
"""Images of the reference that are compared; more would cost time at every look."""
_PIECE = 2000
"""Images that are converted to float32 at a time."""
_GREY = 0.5


def write_grid(path: Path, images: Tensor, labels: Tensor, num_classes: int) -> None:
    """Write a PNG with a row per class (the first ten) and in it the first ten images of that label, in order.

    ``images`` [N, C, H, W] are uint8, or float in [0, 1], with one or three channels; ``labels`` are [N]. Missing ones
    are mid-grey; small ones are enlarged by a whole factor, to at least 32 pixels, pixel by pixel.

    Raises:
        InputError: the file cannot be written.
    """
    # Importing torchvision takes a second, and whoever only reads a buffer needs none of it.
    from torchvision.utils import make_grid, save_image

    rows = min(num_classes, ROWS)
    cells = torch.full((rows, COLUMNS, *images.shape[1:]), _GREY)
    for label in range(rows):
        chosen = (labels == label).nonzero().squeeze(1)[:COLUMNS].to(images.device)
        cells[label, : len(chosen)] = unit(images[chosen]).nan_to_num(_GREY).clamp(0, 1).cpu()
    factor = max(1, math.ceil(_CELL / min(images.shape[-2:])))
    enlarged = F.interpolate(cells.flatten(0, 1), scale_factor=factor, mode="nearest")
    grid = make_grid(enlarged, nrow=COLUMNS, padding=2, pad_value=1.0)
    write(path, lambda temporary: save_image(grid, temporary, format="PNG"))


def quality(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Return cheap numbers on samples, to see a collapse while training; none of them is an FID.

    ``mean`` and ``std`` (population) are over all pixels, ``saturated`` is the share of them at or beyond 0 or 1,
    ``frechet_thumbnails`` is :func:`frechet` on :func:`thumbnails` of both sets: 0 for equal means and covariances of
    coarse pixels, whatever the images look like. It is biased upwards for few samples, so numbers compare at equal
    sample sizes only. It is NaN where a sample is NaN or infinite. Samples and training images [N, C, H, W] are uint8
    or float in [0, 1]; of more than 10,000 training images, as many evenly spaced ones are taken.
    """
    x = unit(samples)
    return {
        "mean": x.mean().item(),
        "std": x.std(correction=0).item(),
        "saturated": ((x <= 0) | (x >= 1)).float().mean().item(),
        "frechet_thumbnails": frechet(thumbnails(samples), reference_thumbnails(reference)),
    }


def thumbnails(images: Tensor) -> Tensor:
    """Return images [N, C, H, W] averaged over areas to at most 8x8 and flattened, float32 [N, D] in [0, 1]."""
    size = min(images.shape[-2], _THUMBNAIL), min(images.shape[-1], _THUMBNAIL)
    return torch.cat([F.adaptive_avg_pool2d(unit(piece), size).flatten(1) for piece in images.split(_PIECE)])


def reference_thumbnails(images: Tensor) -> Tensor:
    """Return the thumbnails of training images that samples are compared with: of at most 10,000, evenly spaced."""
    return thumbnails(images[:: math.ceil(len(images) / _REFERENCES)])


def frechet(first: Tensor, second: Tensor) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features, [N, D] and [M, D].

    |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1^(1/2) C_2 C_1^(1/2))^(1/2)) (Dowson & Landau 1982) in float64, with
    population covariances; NaN where a feature is NaN or infinite.
    """
    if not bool(first.isfinite().all() and second.isfinite().all()):
        return math.nan
    (mean, covariance), (other_mean, other_covariance) = _moments(first), _moments(second)
    root = _root(covariance)
    cross = _root(root @ other_covariance @ root).trace()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross
    # Rounding takes equal sets a little below 0.
    return max(0.0, distance.item())


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    values = features.detach().cpu().double()
    mean = values.mean(0)
    centred = values - mean
    return mean, centred.T @ centred / len(values)


def _root(matrix: Tensor) -> Tensor:
    """Return the root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def rounded(samples: Tensor) -> Tensor:
    """Return float images in [0, 1] as uint8, rounded to the nearest level; NaN becomes mid-grey."""
    return (samples.detach().nan_to_num(_GREY).clamp(0, 1) * 255).round().to(torch.uint8)


def save_buffer(path: Path, samples: Tensor) -> None:
    """Write the replay buffer's images, float in [0, 1], [N, C, H, W], rounded to uint8, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    write_tensors(path, {"samples": rounded(samples).cpu().contiguous()})


def load_buffer(path: Path) -> Tensor:
    """Read what :func:`save_buffer` wrote, uint8 [N, C, H, W].

    Raises:
        InputError: there is no such file, or it is truncated or foreign.
    """
    try:
        samples = load_file(path)["samples"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} is missing, truncated or no replay buffer: {error}.") from error
    if samples.dtype != torch.uint8 or samples.dim() != 4:
        raise InputError(f"{path} holds no images uint8 [N,C,H,W], but {samples.dtype} {list(samples.shape)}.")
    return samples
