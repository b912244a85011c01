"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with residual units (He et al. 2016, arXiv:1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from monai.networks.nets import UNet as MonaiUNet
from torch import nn

from segnets.blocks import run_at_multiple


class UNet(nn.Module):
    """Residual U-Net on MONAI's blocks, for any input size.

    The strides decide what it costs: with (2, 2, 2) the first features already lie at half the resolution and only
    the last upsampling works at full size, which is several times cheaper than a wide level at full size; (1, 2, 2, 2)
    adds such a level, worth having thin.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        channels: features of each level, from the top to the bottom.
        strides: by how much each level but the last shrinks the map.
        num_res_units: convolutions in each residual unit.
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: share of features dropped after each convolution in training.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (24, 48, 96, 192),
        strides: Sequence[int] = (2, 2, 2),
        num_res_units: int = 2,
        norm: str | tuple = "instance",
        act: str | tuple = "prelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.multiple = prod(strides)
        self.unet = MonaiUNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=channels,
            strides=strides,
            num_res_units=num_res_units,
            norm=norm,
            act=act,
            dropout=dropout,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial)."""
        return run_at_multiple(self.unet, image, self.multiple)
