"""Training batches as a pure function of (seed, name, step): a resumed run sees what an unbroken one saw."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from methods.data.augment import PaddingMode, crop, flip
from methods.data.images import ImageSet, unit
from methods.errors import InputError, nearest
from methods.primitives.random import generator, normal_like


@dataclass(frozen=True)
class Augment:
    """What happens to each training image, in this order.

    Raises:
        InputError: a negative padding or noise, or an unknown padding mode.
    """

    padding: int = 0  # pixels on every side before a random crop of the old size; papers: 4 at 32x32
    padding_mode: PaddingMode = "zero"  # "reflect": Rice et al., JEM family
    flip: bool = False  # mirror left to right with probability 1/2
    noise: float = 0.0  # std of Gaussian noise in [0,1] units, not clamped afterwards; JEM family: 0.015

    def __post_init__(self) -> None:
        modes = get_args(PaddingMode)
        if self.padding_mode not in modes:
            hint = nearest(str(self.padding_mode), modes)
            raise InputError(f'padding_mode is {" or ".join(modes)}, not "{self.padding_mode}".{hint}')
        if self.padding < 0:
            raise InputError(f"padding is a number of pixels from 0, not {self.padding}.")
        if not 0.0 <= self.noise < float("inf"):
            raise InputError(f"noise is a standard deviation from 0, not {self.noise}.")


class Stream:
    """An endless sequence of shuffled, augmented batches; each epoch shows each image once.

    Nothing drawn here depends on what was drawn before: the order of an epoch comes from the epoch's number,
    and each step has an augmentation generator of its own. Streams with different names are independent. All
    random numbers are drawn on the CPU, so batches are the same on every device; images stay where they are.

    Args:
        data: the images, on the device the batches are wanted on.
        batch_size: B; the last batch of an epoch is smaller unless ``drop_last``.
        augment: crop, flip and noise.
        seed, name: of the random streams.
        drop_last: leave out the last batch of an epoch where it is not full.

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
        index = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        chosen = self.data.select(index)
        draws = generator(self.seed, "augment", self.name, step)
        images = chosen.images
        if self.augment.padding:
            images = crop(images, self.augment.padding, self.augment.padding_mode, draws)
        if self.augment.flip:
            images = flip(images, draws)
        x = unit(images)
        if self.augment.noise:
            x = x + self.augment.noise * normal_like(x, draws)
        return x, chosen.labels

    def _order(self, epoch: int) -> Tensor:
        if self._latest_order is None or self._latest_order[0] != epoch:
            draws = generator(self.seed, "order", self.name, epoch)
            self._latest_order = (epoch, torch.randperm(len(self.data), generator=draws))
        return self._latest_order[1]
