"""Residual networks of depth 18 for small images (He et al. 2015, arXiv 1512.03385; 2016, arXiv 1603.05027).

- ``"resnet"``: activation after the sum, the network of TDAT, DHAT and LAS-AT's strategy (kuangliu/pytorch-cifar's).
- ``"preact-resnet"``: the network of Rice et al. (locuslab/robust_overfitting at c47a25c) and AWP (csdongxian/AWP at
  a7acf5d), whose last sum is normalised and activated in front of the pool.
- ``"resnet-highres"``: the teacher of LBGAT (dvlab-research/LBGAT at f7f33f0), ``"resnet"`` whose second stage does not
  stride, so that the maps of the last three have four times as many pixels.

All pool globally, which at 32x32 is the 4x4 (LBGAT: 8x8) average pool of the codes, and keep PyTorch's initialisation,
as they do.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.wide_resnet import PlainBlock, ResidualNetwork

Shape = Literal["resnet", "preact-resnet", "resnet-highres"]

DEPTH = 18
PAPER_WIDEN = 4
"""Width factor of the published networks, 64 channels in the first stage."""


class BasicBlock(nn.Module):
    """Residual block with its activation after the sum; [B,in,H,W] -> [B,out,H/stride,W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs, momentum=momentum))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class ResNet(ResidualNetwork):
    """ResNet-18; normalised images [B,C,H,W] -> logits [B,K].

    The four stages have 16, 32, 64 and 128 times ``widen`` channels (papers: 4); ``momentum`` is the weight of the new
    batch in batch normalisation, as in PyTorch.
    """

    def __init__(self, shape: Shape, widen: int, in_channels: int, num_classes: int, momentum: float = 0.1) -> None:
        super().__init__()
        preact, channels = shape == "preact-resnet", 16 * widen
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False))
        if not preact:
            self.stem.extend([nn.BatchNorm2d(channels, momentum=momentum), nn.ReLU()])
        stages: list[nn.Module] = []
        for factor, stride in ((16, 1), (32, 1 if shape == "resnet-highres" else 2), (64, 2), (128, 2)):
            blocks: list[nn.Module] = []
            for own in (stride, 1):
                width = factor * widen
                blocks.append(
                    PlainBlock(channels, width, own, "batch", momentum)
                    if preact
                    else BasicBlock(channels, width, own, momentum)
                )
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels, momentum=momentum) if preact else nn.Identity()
        self.activation = nn.ReLU() if preact else nn.Identity()
        self.head = nn.Linear(channels, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))
