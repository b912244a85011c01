"""Pieces that the networks share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers import Conv, Pool, get_act_layer
from torch import nn

# instance normalisation, because a batch of two volumes is too few for batch normalisation; a leaky ReLU in place,
# because the gradient of MONAI's default, PReLU, takes a tenth of a training step on a CPU
NORM = ("instance", {"affine": True})
ACT = ("leakyrelu", {"negative_slope": 0.01, "inplace": True})


def convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    stride: int | Sequence[int] = 1,
    kernel_size: int = 3,
    dilation: int = 1,
    separable: bool = False,
    adn_ordering: str = "NDA",
    norm: str | tuple = NORM,
    act: str | tuple = ACT,
    dropout: float = 0.0,
) -> nn.Module:
    """A convolution that keeps the size but for its stride, with normalisation, dropout and activation.

    Separable: a convolution of each channel on its own, then one of kernel 1 over the channels (Chollet 2017,
    arXiv:1610.02357; Howard 2017, arXiv:1704.04861).
    """
    pointwise = separable and kernel_size > 1
    mixed = Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        strides=1 if pointwise else stride,
        kernel_size=1 if pointwise else kernel_size,
        dilation=1 if pointwise else dilation,
        adn_ordering=adn_ordering,
        norm=norm,
        act=act,
        dropout=dropout or None,
        bias=False,
    )
    if not pointwise:
        return mixed
    each = Convolution(
        spatial_dims,
        in_channels,
        in_channels,
        strides=stride,
        kernel_size=kernel_size,
        dilation=dilation,
        groups=in_channels,
        bias=False,
        conv_only=True,
    )
    return nn.Sequential(each, mixed)


class ConvUnit(nn.Module):
    """Convolutions of kernel 3, the first with the stride, each with normalisation and activation; residual if asked.

    The shortcut averages over the stride before its 1x1 convolution, so that it drops no voxel (He et al. 2019,
    arXiv:1812.01187, ResNet-D).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int] = 1,
        convs: int = 2,
        residual: bool = True,
        norm: str | tuple = NORM,
        act: str | tuple = ACT,
        dropout: float = 0.0,
        dilation: int = 1,
        separable: bool = False,
    ) -> None:
        super().__init__()
        strides = [stride] * spatial_dims if isinstance(stride, int) else list(stride)
        self.convs = nn.Sequential(
            *(
                convolution(
                    spatial_dims,
                    out_channels if n else in_channels,
                    out_channels,
                    1 if n else strides,
                    dilation=dilation,
                    separable=separable,
                    adn_ordering="N" if residual and n == convs - 1 else "NDA",
                    norm=norm,
                    act=act,
                    dropout=dropout,
                )
                for n in range(convs)
            )
        )
        self.residual = residual
        shortcut: list[nn.Module] = []
        if residual and prod(strides) > 1:
            shortcut.append(Pool[Pool.AVG, spatial_dims](kernel_size=strides, stride=strides, ceil_mode=True))
        if residual and in_channels != out_channels:
            shortcut.append(Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1, bias=False))
        self.shortcut = nn.Sequential(*shortcut)
        self.act = get_act_layer(act) if residual else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, out_channels, *spatial / stride)."""
        changed = self.convs(features)
        if self.residual:
            changed = changed + self.shortcut(features)
        return self.act(changed)


def pad_to_multiple(image: torch.Tensor, multiple: list[int]) -> torch.Tensor:
    """The image with each axis padded at its far end, by repeating its edge, to a multiple and to at least twice it."""
    pads: list[int] = []
    for axis in range(len(multiple) - 1, -1, -1):
        size = image.shape[axis + 2]
        step = multiple[axis]
        pads.append(0)
        pads.append(max((size + step - 1) // step, 2) * step - size)
    return F.pad(image, pads, mode="replicate") if max(pads) > 0 else image


def crop_to(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The part of the logits (N, K, *spatial) that lies on an image (N, C, *spatial)."""
    for axis in range(2, image.dim()):
        logits = logits.narrow(axis, 0, image.shape[axis])
    return logits


def resize(features: torch.Tensor, size: list[int]) -> torch.Tensor:
    """The maps (N, C, *spatial) at another spatial size, by linear interpolation along each axis."""
    mode = "trilinear" if features.dim() == 5 else "bilinear"
    return F.interpolate(features, size=size, mode=mode, align_corners=False)
