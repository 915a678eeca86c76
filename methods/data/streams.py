"""Training batches as a pure function of (seed, name, step): a resumed run sees what an unbroken one saw."""

from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from methods.data.augment import PaddingMode, crop, cutout, flip
from methods.data.images import ImageSet, unit
from methods.errors import InputError, nearest
from methods.primitives.random import generator, normal_like


@dataclass(frozen=True)
class Augment:
    """What happens to each training image, in this order. A field out of range is an InputError."""

    padding: int = 0  # pixels on every side before a random crop of the old size; papers: 4 at 32x32
    padding_mode: PaddingMode = "zero"  # "reflect": Rice et al., JEM family
    flip: bool = False  # mirror left to right with probability 1/2
    noise: float = 0.0  # std of Gaussian noise in [0,1] units, not clamped afterwards; JEM family: 0.015
    cutout: int = field(default=0, metadata={"later": True})  # side in pixels of a square set to 0; 16 at 32x32

    def __post_init__(self) -> None:
        modes = get_args(PaddingMode)
        if self.padding_mode not in modes:
            hint = nearest(str(self.padding_mode), modes)
            raise InputError(f'padding_mode is {" or ".join(modes)}, not "{self.padding_mode}".{hint}')
        if self.padding < 0:
            raise InputError(f"padding is a number of pixels from 0, not {self.padding}.")
        if self.cutout < 0:
            raise InputError(f"cutout is a number of pixels from 0, not {self.cutout}.")
        if not 0.0 <= self.noise < float("inf"):
            raise InputError(f"noise is a standard deviation from 0, not {self.noise}.")


class Stream:
    """An endless sequence of shuffled, augmented batches; each epoch shows each image once.

    Nothing drawn here depends on what was drawn before: the order of an epoch comes from the epoch's number,
    and each step has an augmentation generator of its own. Streams with different names are independent. All
    random numbers are drawn on the CPU, so batches are the same on every device; images stay where they are. The last
    batch of an epoch is smaller, or with ``drop_last`` left out.

    Raises:
        InputError: no images, a batch size below 1, or ``drop_last`` with fewer images than one batch.
    """

    def __init__(
        self, data: ImageSet, batch_size: int, augment: Augment, seed: int, name: str, drop_last: bool
    ) -> None:
        if batch_size < 1:
            raise InputError(f"The batch size is at least 1, not {batch_size}.")
        if len(data) < (batch_size if drop_last else 1):
            raise InputError(f"{len(data)} training images do not fill a batch of {batch_size}.")
        self.data = data
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.name = name
        self.steps_per_epoch = len(data) // batch_size if drop_last else -(-len(data) // batch_size)
        self._latest_order: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return batch ``step`` (from 0, through all epochs): x float32 [B,C,H,W] and y int64 [B].

        x lies in [0,1] before the noise is added.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        index = self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        chosen = self.data.select(index)
        return _augmented(chosen.images, self.augment, self.seed, self.name, step), chosen.labels

    def order(self, epoch: int) -> Tensor:
        """Return the order of the images in an epoch, int64 [N]."""
        if self._latest_order is None or self._latest_order[0] != epoch:
            draws = generator(self.seed, "order", self.name, epoch)
            self._latest_order = (epoch, torch.randperm(len(self.data), generator=draws))
        return self._latest_order[1]


class MixedStream:
    """Batches of which a fixed share is generated images (Gowal et al. 2021; imrahulr/adversarial_robustness_pytorch).

    A batch of B holds int(share B) generated images, drawn with replacement, and else real ones, drawn without
    replacement from an order that begins anew with each epoch. An epoch has as many steps as if all images were real,
    ceil(N/B), so that it shows only about 1 - share of them. Every batch is full, and both kinds are augmented alike.
    As with :class:`Stream`, whose arguments these are, a batch is a pure function of its step.

    Raises:
        InputError: fewer real images than a batch takes.
    """

    def __init__(
        self, data: ImageSet, generated: ImageSet, share: float, batch_size: int, augment: Augment, seed: int, name: str
    ) -> None:
        self.generated = generated
        self.count = int(share * batch_size)
        self.batch_size = batch_size
        self.real = Stream(data, batch_size - self.count, augment, seed, name, drop_last=True)
        self.steps_per_epoch = -(-len(data) // batch_size)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return batch ``step``: x float32 [B,C,H,W], first the real images, and y int64 [B]."""
        real, (epoch, position) = self.real, divmod(step, self.steps_per_epoch)
        chosen = real.data.select(real.order(epoch)[position * real.batch_size : (position + 1) * real.batch_size])
        draws = generator(real.seed, "generated", real.name, step)
        drawn = self.generated.select(
            torch.randint(len(self.generated), (self.batch_size - len(chosen),), generator=draws)
        )
        both = [chosen.images, drawn.images]
        if both[0].dtype != both[1].dtype:
            both = [unit(images) for images in both]
        x = _augmented(torch.cat(both), real.augment, real.seed, real.name, step)
        return x, torch.cat([chosen.labels, drawn.labels])


def _augmented(images: Tensor, augment: Augment, seed: int, name: str, step: int) -> Tensor:
    draws = generator(seed, "augment", name, step)
    if augment.padding:
        images = crop(images, augment.padding, augment.padding_mode, draws)
    if augment.flip:
        images = flip(images, draws)
    if augment.cutout:
        images = cutout(images, augment.cutout, draws)
    x = unit(images)
    if augment.noise:
        x = x + augment.noise * normal_like(x, draws)
    return x
