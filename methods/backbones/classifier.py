"""The backbone interface: images in [0,1] to float32 logits, normalisation inside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from methods.backbones.resnet import DEPTH, ResNet, Shape
from methods.backbones.wide_resnet import Dialect, Norm, ResidualNetwork, WideResNet
from methods.errors import InputError, nearest
from methods.primitives.splitting import in_pieces

Normalize = Literal["dataset", "half", "none"]

TIMM_PREFIX = "timm:"
SMALLEST_SIDE, LARGEST_SIDE = 8, 512


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, and how its input is normalised. ``build`` makes it. A field out of range is an InputError."""

    architecture: str = "wrn"  # a Dialect of wide residual networks, a Shape of ResNet-18, or "timm:<name>"
    depth: int = 28  # 6n+4; ResNets: 18; not for timm
    widen: int = 10  # width factor; the papers' ResNet-18 has 4 (64 channels); not for timm
    norm: Norm = "batch"  # "none": as JEM; gives a plain network biases and PyTorch's default weights
    norm_momentum: float = 0.1  # weight of the new batch in the running statistics; the JEM family uses 0.9
    normalize: Normalize = "dataset"  # "half": (x-0.5)/0.5, the JEM family's [-1,1]; "none": TRADES
    energy_head: bool = False  # the JEM family's scalar head; without gradient in class-conditional models

    def __post_init__(self) -> None:
        for field, choices in (("norm", get_args(Norm)), ("normalize", get_args(Normalize))):
            value = str(getattr(self, field))
            if value not in choices:
                hint = nearest(value, choices)
                raise InputError(f'backbone.{field} is one of {", ".join(choices)}, not "{value}".{hint}')
        if not 0.0 <= self.norm_momentum <= 1.0:
            raise InputError(f"backbone.norm_momentum lies between 0 and 1, not at {self.norm_momentum}.")
        if self.architecture.startswith(TIMM_PREFIX):
            if self.norm == "none" or self.energy_head:
                raise InputError("A timm backbone has a norm of its own and no energy head: set neither.")
            return
        architectures = get_args(Dialect) + get_args(Shape)
        if self.architecture not in architectures:
            known, hint = ", ".join(architectures), nearest(self.architecture, architectures)
            raise InputError(f'No backbone "{self.architecture}" (known: {known}, timm:<name>).{hint}')
        if self.widen < 1:
            raise InputError(f"backbone.widen is at least 1, not {self.widen}.")
        if self.architecture in get_args(Shape):
            if self.norm == "none" or self.energy_head:
                raise InputError(f'The backbone "{self.architecture}" has batch normalisation and no energy head.')
            if self.depth != DEPTH:
                raise InputError(f'backbone.depth of "{self.architecture}" is {DEPTH}, not {self.depth}.')
            return
        if self.depth < 10 or (self.depth - 4) % 6 != 0:
            raise InputError(f"backbone.depth is 6n+4 (10, 16, 22, 28, 34, ...), not {self.depth}.")


class Classifier(nn.Module):
    """A network behind its input normalisation; what every attack, sampler, loss and metric sees.

    The network maps normalised images [B,C,H,W] to logits [B,K]. ``mean`` and ``std``, per channel in [0,1] units, are
    kept in the state dict.

    Attributes:
        autocast: data type the network runs in under ``torch.autocast``; None leaves it alone. Logits are
            float32 either way.
        rows: images that a pass in eval mode takes at a time, for a device on which all of them do not fit
            (:func:`methods.primitives.splitting.in_pieces`); None: all. In train mode they cannot be taken apart.
    """

    rows: int | None = None

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        image_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.autocast: torch.dtype | None = None
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images in [0,1], [B,C,H,W], to logits [B,K], float32."""
        return self._run(self.network, x)

    def scalar_energy(self, x: Tensor) -> Tensor:
        """Return the scalar head's energy E_h(x) = -h(x), [B], float32 (M-EBM, github.com/sndnyang/mebm).

        InputError where the backbone was built without an energy head.
        """
        return -self._run(self._wide_resnet().scalar, x)

    def first(self, x: Tensor) -> Tensor:
        """Return what the first layer makes of images in [0,1], float32 (JEM++'s PYLD freezes gradients there).

        InputError where the backbone is no wide residual network; see also :meth:`rest`.
        """
        return self._run(self._wide_resnet().conv, x)

    def rest(self, hidden: Tensor) -> Tensor:
        """Map the output of :meth:`first` to logits [B,K], float32."""
        return self._split(self._wide_resnet().rest, hidden)

    def maps(self, x: Tensor) -> Tensor:
        """Return the last stage's feature maps [B,D,h,w], float32, of images in [0,1] (Grad-CAM weighs them).

        InputError where the backbone is no residual network of this project; see also :meth:`from_maps`.
        """
        return self._run(self._residual_network().maps, x)

    def from_maps(self, maps: Tensor) -> Tensor:
        """Map the output of :meth:`maps` to logits [B,K], float32."""
        return self._split(self._residual_network().from_maps, maps)

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled features in front of the head, [B, num_features], float32, of images in [0,1].

        InputError where the backbone is no residual network of this project.
        """
        return self._run(self._residual_network().embed, x)

    @property
    def num_features(self) -> int:
        """D of :meth:`features`."""
        return self._residual_network().head.in_features

    def _residual_network(self) -> ResidualNetwork:
        if not isinstance(self.network, ResidualNetwork):
            raise InputError("Only the residual networks of this project give their features: no timm backbone does.")
        return self.network

    def _wide_resnet(self) -> WideResNet:
        if not isinstance(self.network, WideResNet):
            raise InputError("Only wide residual networks have an energy head and a first layer of their own.")
        return self.network

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self._split(function, (x - self.mean) / self.std)

    def _split(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.rows is None or self.training:
            return self._cast(function, x)
        return in_pieces(partial(self._cast, function), self.rows)(x)

    def _cast(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run a part of the network: a module or a bound method, one and the same whenever it is the same part."""
        if self.autocast is None:
            return function(x).float()
        with torch.autocast(x.device.type, dtype=self.autocast):
            return function(x).float()


def build(
    config: BackboneConfig,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    """Build an untrained classifier in training mode; its weights come from torch's global generator.

    Args:
        num_classes: K, at least 2.
        image_shape: (C, H, W) with one or three channels and sides of 8 to 512 pixels.
        mean, std: of the training images, per channel, in [0,1] units; for normalize="dataset" only.

    Raises:
        InputError: classes, image shape or statistics the backbone cannot be built for.
    """
    channels, height, width = image_shape
    if num_classes < 2:
        raise InputError(f"A classifier needs at least 2 classes, not {num_classes}.")
    if channels not in (1, 3):
        raise InputError(f"Images have 1 or 3 channels, not {channels}.")
    if not (SMALLEST_SIDE <= height <= LARGEST_SIDE and SMALLEST_SIDE <= width <= LARGEST_SIDE):
        raise InputError(f"Images are {SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side, not {height}x{width}.")
    if config.normalize != "dataset":
        centre, spread = (0.5, 0.5) if config.normalize == "half" else (0.0, 1.0)
        mean, std = [centre] * channels, [spread] * channels
    if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
        raise InputError(f"Normalisation needs {channels} means and {channels} positive deviations.")

    if config.architecture.startswith(TIMM_PREFIX):
        from methods.backbones.timm_adapter import timm_network

        name = config.architecture.removeprefix(TIMM_PREFIX)
        network = timm_network(name, num_classes, image_shape, config.norm_momentum)
    elif config.architecture in get_args(Shape):
        shape = cast(Shape, config.architecture)
        network = ResNet(shape, config.widen, channels, num_classes, config.norm_momentum)
    else:
        network = WideResNet(
            cast(Dialect, config.architecture),
            config.depth,
            config.widen,
            channels,
            num_classes,
            config.norm,
            config.norm_momentum,
            config.energy_head,
        )
    return Classifier(network, num_classes, image_shape, mean, std)
