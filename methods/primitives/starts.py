"""Where chains begin: informative starts fitted to training images, and uniform noise."""

import math
from functools import reduce
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from methods.errors import InputError, nearest
from methods.primitives.random import normal_like, uniform_like

StartName = Literal["class_gaussian", "gaussian", "uniform", "pca"]
_SUBSPACE = 512
"""Principal components that are looked for at first."""
_PIECE = 250
"""Images of a class that are made floats at a time on a CPU: what stays in its cache (3 MiB of 32x32 pixels)."""
_LARGEST_COVARIANCE = 4096
"""Pixels up to which a covariance matrix of all of them is formed (64 MiB in float32)."""
_GAUSSIAN_PIECE = 2000
"""Images of all classes that are made floats at a time."""


class Start(nn.Module):
    """A distribution of images, of one class each.

    Args:
        images: training images [N, C, H, W], uint8 in 0..255 or float in [0, 1].
        labels: their classes [N].
        num_classes: number of classes.
    """

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_shape = images.shape[1:]
        self.device = images.device

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one image for each label of ``y`` [B] -> [B, C, H, W], float32 in [0, 1]."""
        raise NotImplementedError

    def sample_any(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` images of classes chosen uniformly -> [n, C, H, W], float32 in [0, 1]."""
        y = torch.randint(self.num_classes, (n,), generator=generator, device=generator.device)
        return self.sample(y, generator)


def start(name: str, images: Tensor, labels: Tensor, num_classes: int) -> Start:
    """Fit the start called ``name`` (a :data:`StartName`) to training images.

    Raises:
        InputError: no such start, or the images do not suffice for it.
    """
    known: dict[str, type[Start]] = {
        "class_gaussian": ClassGaussian,
        "gaussian": Gaussian,
        "uniform": Uniform,
        "pca": PCA,
    }
    if name not in known:
        raise InputError(f'The start "{name}" is none of {", ".join(get_args(StartName))}.{nearest(name, known)}')
    return known[name](images, labels, num_classes)


class Uniform(Start):
    """Noise, U(0, 1) in each pixel: JEM's start (wgrathwohl/JEM at 3d01161; U(-1, 1) in its units)."""

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return uniform_like(torch.empty(len(y), *self.image_shape, device=self.device), generator)


class ClassGaussian(Start):
    """JEM++'s informative start: a Gaussian per class with the mean and full covariance of its images.

    x ~ N(mu_y, Sigma_y + ridge^2 I), clamped to [0, 1], where Sigma_y divides by the class size n. With X the
    n images of the class as rows and z ~ N(0, I_n), mu + (X - mu)^T z / sqrt(n) has exactly that mean and
    covariance (before the ridge); it equals X^T w with weights w = 1/n + (z - mean z) / sqrt(n), so that
    neither mu nor a d x d matrix is ever formed. The images are kept as given, not copied. ``ridge`` is the standard
    deviation of the added noise; JEM++'s sqrt(1e-4) in [-1, 1] units halves to 0.005.

    Raises:
        InputError: a class has no image.
    """

    images: Tensor
    order: Tensor

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int, ridge: float = 0.005) -> None:
        super().__init__(images, labels, num_classes)
        self.sizes = _class_sizes(labels, num_classes, 1)
        self.ridge = ridge
        # Data, not state: a checkpoint would otherwise carry the training set.
        self.register_buffer("images", images, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True).to(images.device), persistent=False)

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one image for each label of ``y`` [B] -> [B, C, H, W], float32 in [0, 1]."""
        y = y.to(self.images.device)
        x = torch.empty(len(y), *self.images.shape[1:], device=y.device)
        for label, members in enumerate(self.order.split(self.sizes)):
            wanted = (y == label).nonzero().squeeze(1)
            if not len(wanted):
                continue
            z = normal_like(x.new_empty(len(wanted), len(members)), generator)
            weights = 1 / len(members) + (z - z.mean(1, keepdim=True)) / math.sqrt(len(members))
            x[wanted] = self._mixed(weights, members).view(-1, *x.shape[1:])
        return (x + self.ridge * normal_like(x, generator)).clamp(0, 1)

    def _mixed(self, weights: Tensor, members: Tensor) -> Tensor:
        """Return the sums [n, d], with weights [n, N], of the N images that ``members`` names."""
        piece = len(members) if members.is_cuda else _PIECE
        return reduce(
            torch.add,
            (
                shares @ _unit(self.images[some]).flatten(1)
                for shares, some in zip(weights.split(piece, 1), members.split(piece), strict=True)
            ),
        )


class Gaussian(Start):
    """M-EBM's informative start: one Gaussian over the images of all classes (sndnyang/mebm, "one center").

    x = mu + L z, clamped to [0, 1], with L L^T = Sigma + ridge^2 I; the label of a draw says nothing. Where the images
    have too many pixels for a covariance matrix, x = mu + (X - mu)^T z / sqrt(N) + ridge e with the N images as rows
    of X and z ~ N(0, I_N), e ~ N(0, I_d), which has the same distribution; a draw then passes over all the images.
    """

    mean: Tensor
    factor: Tensor | None

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int, ridge: float = 0.005) -> None:
        super().__init__(images, labels, num_classes)
        pixels = images[0].numel()
        mean = torch.zeros(pixels, dtype=torch.float64, device=images.device)
        for piece in images.split(_GAUSSIAN_PIECE):
            mean += _unit(piece).flatten(1).double().sum(0) / len(images)
        self.register_buffer("mean", mean.float(), persistent=False)
        self.ridge = ridge
        if pixels > _LARGEST_COVARIANCE:
            self.factor = None
            self.register_buffer("images", images, persistent=False)
            return
        square = torch.zeros(pixels, pixels, device=images.device)
        for piece in images.split(_GAUSSIAN_PIECE):
            centred = _unit(piece).flatten(1) - mean.float()
            square += centred.T @ centred / len(images)
        square.diagonal().add_(ridge**2)
        self.register_buffer("factor", torch.linalg.cholesky(square), persistent=False)

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        x = torch.empty(len(y), len(self.mean), device=self.device)
        if self.factor is not None:
            x = self.mean + normal_like(x, generator) @ self.factor.T
        else:
            x = self._mixed(x, generator) + self.ridge * normal_like(x, generator)
        return x.view(-1, *self.image_shape).clamp(0, 1)

    def _mixed(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return mu + (X - mu)^T z / sqrt(N) in the place of ``x`` [n, d]."""
        images = cast(Tensor, self.images)
        x.copy_(self.mean.expand_as(x))
        for piece in images.split(_GAUSSIAN_PIECE):
            z = normal_like(x.new_empty(len(x), len(piece)), generator)
            x.addmm_(z, _unit(piece).flatten(1) - self.mean, alpha=1 / math.sqrt(len(images)))
        return x


class PCA(Start):
    """WEAT's start: a class mean and noise along the class's principal components, clamped to [0, 1].

    x = mu_y + sum_i s_i z_i spread PC_i with the singular values s_i = sqrt(n - 1) sqrt(lambda_i) of the centred
    images of the class, over the components that hold ``retained`` of their variance (OmnAI-Lab, WEAT: spread
    0.005; its command line divides the retained share by 100, which leaves no component at all: not followed).

    Raises:
        InputError: a class has fewer than two images.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, num_classes: int, spread: float = 0.005, retained: float = 0.95
    ) -> None:
        super().__init__(images, labels, num_classes)
        _class_sizes(labels, num_classes, 2)
        self.images, self.labels = images, labels.to(images.device)
        self.spread, self.retained = spread, retained
        self._fitted: dict[int, tuple[Tensor, Tensor]] = {}

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        y = y.to(self.device)
        x = torch.empty(len(y), *self.image_shape, device=self.device)
        for label in y.unique().tolist():
            wanted = (y == label).nonzero().squeeze(1)
            mean, scaled = self._components(label)
            z = normal_like(mean.new_empty(len(wanted), len(scaled)), generator)
            x[wanted] = (mean + self.spread * z @ scaled).view(-1, *self.image_shape)
        return x.clamp(0, 1)

    def _components(self, label: int) -> tuple[Tensor, Tensor]:
        """Return the mean [d] of a class and its retained components [k, d] times their singular values."""
        if label not in self._fitted:
            x = _unit(self.images[self.labels == label]).flatten(1)
            mean = x.mean(0)
            centred = x - mean
            # The singular values and right vectors of n x d images from the smaller of the two Gram matrices.
            wide = centred.shape[0] < centred.shape[1]
            squares, vectors = _leading(centred @ centred.T if wide else centred.T @ centred, self.retained)
            scaled = vectors.T @ centred if wide else vectors.T * squares[:, None].sqrt()
            self._fitted[label] = mean, scaled
        return self._fitted[label]


def _leading(gram: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues [k] of a Gram matrix that hold ``share`` of their sum, and vectors [n, k]."""
    wanted = share * gram.trace()
    if len(gram) > 2 * _SUBSPACE:
        # All 3,072 eigenvectors of a CIFAR class take five times as long as the few hundred that are kept.
        with torch.random.fork_rng(devices=[gram.device] if gram.is_cuda else []):
            torch.manual_seed(0)
            vectors, squares, _ = torch.svd_lowrank(gram, q=_SUBSPACE, niter=4)
        if squares.sum() >= wanted:
            enough = int((squares.cumsum(0) < wanted).sum()) + 1
            return squares[:enough], vectors[:, :enough]
    squares, vectors = torch.linalg.eigh(gram.double())
    squares, vectors = squares.flip(0).clamp(min=0).float(), vectors.flip(1).float()
    enough = min(int((squares.cumsum(0) < wanted).sum()) + 1, len(gram))
    return squares[:enough], vectors[:, :enough]


def _class_sizes(labels: Tensor, num_classes: int, least: int) -> list[int]:
    """Return the number of images of each class, or refuse a class with fewer than ``least``."""
    sizes: list[int] = labels.bincount(minlength=num_classes).tolist()
    if min(sizes) < least:
        few = sizes.index(min(sizes))
        raise InputError(
            f"The informative start needs {least} or more images of each class; class {few} has {sizes[few]}."
        )
    return sizes


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
