"""Negatives for an energy-based model: Langevin chains, the replay buffer and informative starts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.random import normal_like


@dataclass(frozen=True)
class SGLD:
    """Stochastic gradient Langevin dynamics: x <- clamp(x - step_size * clip(grad E(x)) + noise * N(0, 1)).

    Everything is in [0, 1] units. The papers work in u = 2x - 1, where grad_x = 2 grad_u and moving u by d
    moves x by d / 2: a step of 1 on gradients clipped at 1 becomes 0.25 on gradients clipped at 2, and the
    noise halves. JEM (wgrathwohl/JEM at 3d01161): step 1, noise 0.01, no clip and no clamp, hence 0.25 and
    0.005 here. JEM++'s PYLD (Yang & Ji 2021): N inner steps of 0.2 behind an affine first layer see one and
    the same gradient and are one clipped step of 0.2 N exactly (moving N times one way, clamped each time, is
    clamping once); N = 5 gives the defaults here.

    Raises:
        InputError: a field is out of range.
    """

    steps: int = 10
    """Chain length; 0 returns the start."""
    step_size: float = 0.25
    """Factor of the gradient (1 in [-1, 1] units)."""
    clip: float | None = 2.0
    """Bound of every entry of the gradient (1 in [-1, 1] units); None: none."""
    noise: float = 0.0
    """Standard deviation of the noise of a step (half of that in [-1, 1] units)."""
    clamp: bool = True
    """Whether every step ends inside [0, 1]."""

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.step_size < math.inf:
            raise InputError(f"SGLD needs steps >= 0 and a positive step_size, got {self.steps} and {self.step_size}.")
        if not 0 <= self.noise < math.inf or (self.clip is not None and not self.clip > 0):
            raise InputError(f"SGLD needs noise >= 0 and a positive clip or none, got {self.noise} and {self.clip}.")

    def __call__(self, energy: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        """Run chains from ``x`` [B, ...] down ``energy`` (images -> [B]) and return their ends, detached."""
        x = x.detach()
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf)
            if self.clip is not None:
                gradient = gradient.clamp(-self.clip, self.clip)
            x = x - self.step_size * gradient
            if self.noise:
                x = x + self.noise * normal_like(x, generator)
            if self.clamp:
                x = x.clamp(0, 1)
        return x


class ReplayBuffer(nn.Module):
    """Persistent chains (Tieleman 2008; Du & Mordatch 2019), a part of the state that is checkpointed.

    Args:
        images: the first contents, [size, C, H, W]; copied as float32.
    """

    images: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images.detach().float().clone())

    def draw(
        self,
        batch: int,
        restart_probability: float,
        fresh: Callable[[int], Tensor],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Draw slots uniformly with replacement and, independently, restart some of them.

        Args:
            batch: number of chains B.
            restart_probability: share of chains that begin anew (0.05 throughout the JEM family).
            fresh: makes n new starts [n, C, H, W]; called once, with the number needed, or not at all.
            generator: draws the slots and the restarts, on its own device.

        Returns:
            (index [B] int64 for :meth:`update`, x [B, C, H, W]), on the buffer's device; ``x`` is a copy.
        """
        device = generator.device
        index = torch.randint(len(self.images), (batch,), generator=generator, device=device).to(self.images.device)
        restart = torch.rand(batch, generator=generator, device=device) < restart_probability
        x = self.images[index]
        restarts = int(restart.sum())
        if restarts:
            x[restart.to(x.device)] = fresh(restarts).to(x)
        return index, x

    def update(self, index: Tensor, x: Tensor) -> None:
        """Write ``x`` [B, C, H, W] to the slots ``index`` [B]; a slot named twice keeps the last image."""
        # Plain assignment leaves the winner among duplicates undefined on CUDA.
        slots, inverse = index.unique(return_inverse=True)
        order = torch.arange(len(index), device=index.device)
        last = torch.zeros_like(slots).scatter_reduce(0, inverse, order, "amax")
        self.images[slots] = x.detach()[last].to(self.images)

    def statistics(self) -> dict[str, float]:
        """Return ``mean``, ``std`` and ``saturated`` (share at or beyond 0 or 1) of the pixels."""
        saturated = (self.images <= 0) | (self.images >= 1)
        return {
            "mean": self.images.mean().item(),
            "std": self.images.std(correction=0).item(),
            "saturated": saturated.float().mean().item(),
        }


class ClassGaussian(nn.Module):
    """JEM++'s informative start: a Gaussian per class with the mean and full covariance of its images.

    x ~ N(mu_y, Sigma_y + ridge^2 I), clamped to [0, 1], where Sigma_y divides by the class size n. With X the
    n images of the class as rows and z ~ N(0, I_n), mu + (X - mu)^T z / sqrt(n) has exactly that mean and
    covariance (before the ridge); it equals X^T w with weights w = 1/n + (z - mean z) / sqrt(n), so that
    neither mu nor a d x d matrix is ever formed.

    Args:
        images: training images [N, C, H, W], uint8 in 0..255 or float in [0, 1]; kept as given, not copied.
        labels: their classes [N].
        num_classes: number of classes; each needs an image.
        ridge: standard deviation of the added noise; JEM++'s sqrt(1e-4) in [-1, 1] units halves to 0.005.

    Raises:
        InputError: a class has no image.
    """

    images: Tensor
    order: Tensor

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int, ridge: float = 0.005) -> None:
        super().__init__()
        sizes = labels.bincount(minlength=num_classes).tolist()
        if 0 in sizes:
            raise InputError(f"The informative start needs an image of each class; class {sizes.index(0)} has none.")
        self.num_classes = num_classes
        self.ridge = ridge
        self.sizes: list[int] = sizes
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
            x[wanted] = (weights @ self._unit(members).flatten(1)).view(-1, *x.shape[1:])
        return (x + self.ridge * normal_like(x, generator)).clamp(0, 1)

    def sample_any(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` images of classes chosen uniformly -> [n, C, H, W], float32 in [0, 1]."""
        y = torch.randint(self.num_classes, (n,), generator=generator, device=generator.device)
        return self.sample(y, generator)

    def _unit(self, index: Tensor) -> Tensor:
        images = self.images[index]
        return images.float() / 255 if images.dtype == torch.uint8 else images.float()
