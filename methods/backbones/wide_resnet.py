"""Pre-activation wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146), in three dialects.

- ``"wrn"``: the network of PGD-AT, TRADES and AWP. ReLU, convolutions without bias, stride in the *first*
  convolution of a block; where the shape changes, branch and shortcut share normalisation and activation.
- ``"jem-wrn"``: the network of the JEM family (github.com/wgrathwohl/JEM, github.com/sndnyang/JEMPP).
  LeakyReLU 0.2, convolutions with bias, stride in the *second* one, shortcut taken from the raw block input.
- ``"swish-wrn"``: the network of Gowal et al. 2020 and of what was trained on generated images
  (google-deepmind/deepmind-research, imrahulr/adversarial_robustness_pytorch at 6df6a8f). ``"wrn"`` with SiLU and with
  TensorFlow's "SAME" padding, by which a 3x3 convolution of stride 2 pads even sides right and bottom only. Its
  recipes set norm_momentum to 0.01.

All pool globally, which at 32x32 is the 8x8 average pool of the papers and lets other sizes through.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.errors import InputError

Norm = Literal["batch", "none"]
Dialect = Literal["wrn", "jem-wrn", "swish-wrn"]

LEAKY_SLOPE = 0.2


def _normalisation(norm: Norm, channels: int, momentum: float) -> nn.Module:
    return nn.BatchNorm2d(channels, momentum=momentum) if norm == "batch" else nn.Identity()


def _leaky(x: Tensor) -> Tensor:
    """Return LeakyReLU of any tensor."""
    if torch.compiler.is_compiling():
        # Inductor keeps a bool for each element of LeakyReLU, and writing those takes a CPU far longer than all else in
        # the block. The derivative of this needs none; it differs at 0, where LeakyReLU has no derivative.
        return (1 + LEAKY_SLOPE) / 2 * x + (1 - LEAKY_SLOPE) / 2 * x.abs()
    return F.leaky_relu(x, LEAKY_SLOPE)


class PlainBlock(nn.Module):
    """Residual block of the plain network; [B,in,H,W] -> [B,out,H/stride,W/stride].

    Without normalisation the convolutions get a bias, which its affine part would have supplied. ``swish``: SiLU in
    place of ReLU, and padding as TensorFlow's "SAME".
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, norm: Norm, momentum: float, swish: bool = False
    ) -> None:
        super().__init__()
        bias = norm == "none"
        self.norm1 = _normalisation(norm, inputs, momentum)
        self.same = swish and stride == 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=0 if self.same else 1, bias=bias)
        self.norm2 = _normalisation(norm, outputs, momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=bias) if inputs != outputs else None
        self.activation = F.silu if swish else F.relu

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(self.norm1(x))
        # An odd side needs a pixel on either end.
        padded = F.pad(activated, (x.shape[3] % 2, 1, x.shape[2] % 2, 1)) if self.same else activated
        residual = self.conv2(self.activation(self.norm2(self.conv1(padded))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class JEMBlock(nn.Module):
    """Residual block of the JEM family; [B,in,H,W] -> [B,out,H/stride,W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, momentum: float) -> None:
        super().__init__()
        self.norm1 = _normalisation(norm, inputs, momentum)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _normalisation(norm, outputs, momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(_leaky(self.norm1(x)))
        residual = self.conv2(_leaky(self.norm2(residual)))
        return residual + (x if self.shortcut is None else self.shortcut(x))


class ResidualNetwork(nn.Module):
    """What residual networks have in common; normalised images [B,C,H,W] -> logits [B,K].

    A subclass sets the attributes and says in ``maps`` how an image gets through its stages.
    """

    stages: nn.Sequential
    norm: nn.Module
    activation: nn.Module
    head: nn.Linear

    def maps(self, x: Tensor) -> Tensor:
        """Return the last stage's feature maps [B,D,h,w]."""
        raise NotImplementedError

    def pooled(self, maps: Tensor) -> Tensor:
        """Map the last stage's feature maps to the features [B,D] in front of the head."""
        return self.activation(self.norm(maps)).mean(dim=(2, 3))

    def embed(self, x: Tensor) -> Tensor:
        """Map images to the features [B,D] in front of the head."""
        return self.pooled(self.maps(x))

    def from_maps(self, maps: Tensor) -> Tensor:
        """Map the last stage's feature maps to the logits."""
        return self.head(self.pooled(maps))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class WideResNet(ResidualNetwork):
    """WRN-``depth``-``widen``; normalised images [B,C,H,W] -> logits [B,K].

    Initialisation: the plain and the swish network with normalisation draw Kaiming-normal (fan_out) convolutions and
    give the head a zero bias, as TRADES and the code of the swish network do. Everything else keeps PyTorch's defaults:
    the JEM family never calls its own initialiser, and the others without normalisation follow it, since Kaiming-normal
    branches would double the variance with every block when nothing rescales them.

    Args:
        depth: 6n+4, with n residual blocks in each of the three stages.
        widen: width factor; the stages have 16, 32 and 64 times as many channels.
        momentum: of batch normalisation, in PyTorch's convention (the weight of the new batch).
        energy_head: also build the JEM family's scalar head, read by ``scalar``.
    """

    def __init__(
        self,
        dialect: Dialect,
        depth: int,
        widen: int,
        in_channels: int,
        num_classes: int,
        norm: Norm = "batch",
        momentum: float = 0.1,
        energy_head: bool = False,
    ) -> None:
        super().__init__()
        block = JEMBlock if dialect == "jem-wrn" else partial(PlainBlock, swish=dialect == "swish-wrn")
        channels = 16
        bias = dialect == "jem-wrn" or norm == "none"
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias)
        stages: list[nn.Module] = []
        for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            blocks: list[nn.Module] = []
            for position in range((depth - 4) // 6):
                blocks.append(block(channels, width, stride if position == 0 else 1, norm, momentum))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = _normalisation(norm, channels, momentum)
        activations = {"wrn": nn.ReLU(), "jem-wrn": nn.LeakyReLU(LEAKY_SLOPE), "swish-wrn": nn.SiLU()}
        self.activation = activations[dialect]
        self.head = nn.Linear(channels, num_classes)
        self.energy_head = nn.Linear(channels, 1) if energy_head else None
        if dialect != "jem-wrn" and norm == "batch":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.head.bias)

    def maps(self, x: Tensor) -> Tensor:
        return self.stages(self.conv(x))

    def features(self, hidden: Tensor) -> Tensor:
        """Map the first convolution's output to the pooled features [B, 64*widen] in front of the heads."""
        return self.pooled(self.stages(hidden))

    def rest(self, hidden: Tensor) -> Tensor:
        """Map the first convolution's output to the logits."""
        return self.head(self.features(hidden))

    def scalar(self, x: Tensor) -> Tensor:
        """Return the scalar head's output h(x), [B]; InputError where the network was built without one."""
        if self.energy_head is None:
            raise InputError("The network was built without an energy head: set backbone.energy_head to true.")
        return self.energy_head(self.features(self.conv(x))).squeeze(1)
