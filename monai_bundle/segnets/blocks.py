"""Build the blocks that several networks use."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers import Conv, Pool, get_act_layer
from torch import nn

# instance normalisation, because two volumes per batch are too few for batch normalisation; a leaky ReLU in place,
# because the gradient of MONAI's default, PReLU, takes a tenth of a training step on a CPU
NORM = ("instance", {"affine": True})
ACT = ("leakyrelu", {"negative_slope": 0.01, "inplace": True})


def convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    stride: int | Sequence[int] = 1,
    kernel_size: int | Sequence[int] = 3,
    dilation: int = 1,
    separable: bool = False,
    adn_ordering: str = "NDA",
    norm: str | tuple = NORM,
    act: str | tuple = ACT,
    dropout: float = 0.0,
) -> nn.Module:
    """Return a padded convolution with normalisation, dropout and activation; its stride alone changes the size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        stride: stride, for all axes or for each.
        kernel_size: kernel size, for all axes or for each.
        dilation: atrous rate of all axes.
        separable: use a depthwise convolution, of each channel alone, and then a pointwise one, of kernel 1 (Chollet
            2017, arXiv:1610.02357; Howard 2017, arXiv:1704.04861).
        adn_ordering: MONAI's order of activation (A), dropout (D) and normalisation (N).
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: fraction of features dropped in training.
    """
    is_split = separable and (kernel_size if isinstance(kernel_size, int) else max(kernel_size)) > 1
    last = Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        strides=1 if is_split else stride,
        kernel_size=1 if is_split else kernel_size,
        dilation=1 if is_split else dilation,
        adn_ordering=adn_ordering,
        norm=norm,
        act=act,
        dropout=dropout or None,
        bias=False,
    )
    if not is_split:
        return last
    depthwise = Convolution(
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
    return nn.Sequential(depthwise, last)


class ConvUnit(nn.Module):
    """Apply convolutions, the first one with the stride, and add a residual shortcut if `residual`.

    The shortcut averages over the stride before its 1x1 convolution, so that it drops no voxel (He et al. 2019,
    arXiv:1812.01187, ResNet-D).

    Args:
        spatial_dims: 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        stride: stride of the first convolution, for all axes or for each.
        convs: number of convolutions.
        residual: add the shortcut.
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: fraction of features dropped after each convolution in training.
        dilation: atrous rate of the convolutions.
        separable: use depthwise separable convolutions.
        kernel_size: kernel size of the convolutions, for all axes or for each.
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
        kernel_size: int | Sequence[int] = 3,
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
                    kernel_size,
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
        """Return features (N, out_channels, *spatial / stride) of features (N, in_channels, *spatial)."""
        changed = self.convs(features)
        if self.residual:
            changed = changed + self.shortcut(features)
        return self.act(changed)


def pad_to_multiple(image: torch.Tensor, multiple: list[int]) -> torch.Tensor:
    """Pad each axis of an image at its end, by repeating the edge, to a multiple and to at least twice the multiple."""
    pads: list[int] = []
    for axis in range(len(multiple) - 1, -1, -1):
        size = image.shape[axis + 2]
        step = multiple[axis]
        pads.append(0)
        pads.append(max((size + step - 1) // step, 2) * step - size)
    return F.pad(image, pads, mode="replicate") if max(pads) > 0 else image


def crop_to(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return the first part of logits (N, K, *spatial) with the size of an image (N, C, *spatial)."""
    for axis in range(2, image.dim()):
        logits = logits.narrow(axis, 0, image.shape[axis])
    return logits


def resize(features: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Return features (N, C, *spatial) at another spatial size, by linear interpolation along each axis."""
    mode = "trilinear" if features.dim() == 5 else "bilinear"
    return F.interpolate(features, size=size, mode=mode, align_corners=False)
