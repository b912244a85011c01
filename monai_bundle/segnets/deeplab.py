"""DeepLabV3 (Chen et al. 2017, arXiv:1706.05587) and DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers import Conv, Pool
from torch import nn

from segnets.blocks import ACT, NORM, convolution, crop_to, pad_to_multiple, resize
from segnets.encoder import ENCODERS


def atrous_rates(window: int, output_stride: int) -> tuple[int, int, int]:
    """The three rates of the pyramid that reach as far into a window as the paper's reach into theirs.

    The paper's rates 6, 12 and 18 lie on the 33-pixel map of a 513-pixel window at stride 16: 2/11, 4/11 and 6/11 of
    the map. A rate near the map's size would see padding only: at 96 voxels and stride 16 the map has 6, and the rates
    are 1, 2 and 3. For 513 and 16 this gives 6, 12, 18; for 513 and 8, 12, 24, 36.

    Args:
        window: side of the window that the network is trained on, in voxels.
        output_stride: of the map that the pyramid looks at.
    """
    unit = max(1, round(window / output_stride * 2 / 11))
    return unit, 2 * unit, 3 * unit


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image pooling (Chen et al. 2017, section 3.3).

    The pooled branch has no normalisation: its map is one voxel, whose statistics over a batch of one do not exist.

    Args:
        spatial_dims: 2 or 3.
        in_channels: features of the map.
        out_channels: features of each branch and of the result.
        rates: an atrous convolution each, beside the 1x1 convolution and the pooled branch.
        separable: depthwise separable atrous convolutions (Chen et al. 2018).
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: share of features dropped from the result in training.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        separable: bool = False,
        norm: str | tuple = NORM,
        act: str | tuple = ACT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            convolution(
                spatial_dims,
                in_channels,
                out_channels,
                kernel_size=3 if rate else 1,
                dilation=max(rate, 1),
                separable=separable,
                norm=norm,
                act=act,
            )
            for rate in (0, *rates)
        )
        self.pooled = nn.Sequential(
            Pool[Pool.ADAPTIVEAVG, spatial_dims](1),
            Convolution(spatial_dims, in_channels, out_channels, kernel_size=1, adn_ordering="A", act=act),
        )
        self.project = convolution(
            spatial_dims,
            (2 + len(rates)) * out_channels,
            out_channels,
            kernel_size=1,
            norm=norm,
            act=act,
            dropout=dropout,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, out_channels, *spatial) of a map (N, in_channels, *spatial)."""
        seen = [resize(self.pooled(features), features.shape[2:])]
        for branch in self.branches:
            seen.append(branch(features))
        return self.project(torch.cat(seen, dim=1))


class DeepLabV3(nn.Module):
    """Atrous encoder, pyramid of atrous convolutions, and scores upsampled in one step.

    The classic setting for photographs is `stem_stride` 4, `output_stride` 16 or 8 and a `window` of 513. The default
    stops at stride 2, for organs of a few dozen voxels: with no decoder, the scores' stride bounds what can be drawn.
    The best scores for a hippocampus's reference that 15 steps of back-projection find give a mean Dice of 0.95 at
    stride 2, 0.88 at 4 and 0.55 at 8. Convolutions at stride 2 are dear in 3D, hence few and thin ones.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        output_stride: stride at which the encoder stops shrinking and widens its convolutions instead.
        channels: features of each stage of the encoder.
        units: residual units of each stage of the encoder.
        features: of each branch of the pyramid.
        window: side of the training's window in voxels, from which `atrous_rates` derives the rates.
        rates: the pyramid's, instead.
        auxiliary: in training return [logits, logits of the last but one stage], both at the image's size, for MONAI's
            `DeepSupervisionLoss` (Zhao et al. 2017, arXiv:1612.01105, section 3.3).
        encoder: "residual" or "separable".
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: share of the pyramid's features dropped in training.
        encoder_options: further arguments of `ResidualEncoder`: stem_stride, multi_grid.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        output_stride: int = 2,
        channels: Sequence[int] = (8, 24, 48, 64),
        units: Sequence[int] = (0, 1, 1, 1),
        features: int = 32,
        window: int = 48,
        rates: Sequence[int] | None = None,
        auxiliary: bool = False,
        encoder: Literal["residual", "separable"] = "residual",
        norm: str | tuple = NORM,
        act: str | tuple = ACT,
        dropout: float = 0.1,
        **encoder_options: Any,
    ) -> None:
        super().__init__()
        self.encoder = ENCODERS[encoder](
            spatial_dims,
            in_channels,
            channels,
            units,
            output_stride=output_stride,
            norm=norm,
            act=act,
            **encoder_options,
        )
        self.multiple = [output_stride] * spatial_dims
        rates = rates or atrous_rates(window, output_stride)
        self.aspp = ASPP(spatial_dims, channels[-1], features, rates, norm=norm, act=act, dropout=dropout)
        self.head = Conv[Conv.CONV, spatial_dims](features, out_channels, kernel_size=1)
        self.auxiliary = Conv[Conv.CONV, spatial_dims](channels[-2], out_channels, kernel_size=1) if auxiliary else None

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial); see `auxiliary`."""
        padded = pad_to_multiple(image, self.multiple)
        maps = self.encoder(padded)
        logits = crop_to(resize(self.head(self.aspp(maps[-1])), padded.shape[2:]), image)
        if self.auxiliary is not None and self.training:
            return [logits, crop_to(resize(self.auxiliary(maps[-2]), padded.shape[2:]), image)]
        return logits


class DeepLabV3Plus(nn.Module):
    """DeepLabV3 with depthwise separable convolutions and a decoder that sees low-level features.

    The low-level map is the encoder's first at a quarter of the output stride or more: stride 4 under 16 in the paper,
    2 under 8 here.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        output_stride: stride at which the encoder stops shrinking and widens its convolutions instead.
        channels: features of each stage of the encoder.
        units: residual units of each stage of the encoder.
        features: of each branch of the pyramid, and of the decoder.
        low_level_features: to which the low-level map is reduced, so that it does not outweigh the pyramid.
        window: side of the training's window in voxels, from which `atrous_rates` derives the rates.
        rates: the pyramid's, instead.
        encoder: "residual" or "separable".
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: share of the pyramid's features dropped in training.
        encoder_options: further arguments of `ResidualEncoder`: stem_stride, multi_grid.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        output_stride: int = 8,
        channels: Sequence[int] = (8, 32, 64, 128, 128),
        units: Sequence[int] = (0, 1, 2, 2, 1),
        features: int = 64,
        low_level_features: int = 16,
        window: int = 48,
        rates: Sequence[int] | None = None,
        encoder: Literal["residual", "separable"] = "residual",
        norm: str | tuple = NORM,
        act: str | tuple = ACT,
        dropout: float = 0.1,
        **encoder_options: Any,
    ) -> None:
        super().__init__()
        self.encoder = ENCODERS[encoder](
            spatial_dims,
            in_channels,
            channels,
            units,
            output_stride=output_stride,
            norm=norm,
            act=act,
            **encoder_options,
        )
        self.multiple = [output_stride] * spatial_dims
        self.low_level = next(n for n, stride in enumerate(self.encoder.strides) if 4 * stride >= output_stride)
        rates = rates or atrous_rates(window, output_stride)
        self.aspp = ASPP(spatial_dims, channels[-1], features, rates, True, norm=norm, act=act, dropout=dropout)
        self.reduce = convolution(
            spatial_dims, channels[self.low_level], low_level_features, kernel_size=1, norm=norm, act=act
        )
        self.decoder = nn.Sequential(
            convolution(spatial_dims, features + low_level_features, features, separable=True, norm=norm, act=act),
            convolution(spatial_dims, features, features, separable=True, norm=norm, act=act),
            Conv[Conv.CONV, spatial_dims](features, out_channels, kernel_size=1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial)."""
        padded = pad_to_multiple(image, self.multiple)
        maps = self.encoder(padded)
        low = self.reduce(maps[self.low_level])
        seen = resize(self.aspp(maps[-1]), low.shape[2:])
        logits = self.decoder(torch.cat([seen, low], dim=1))
        return crop_to(resize(logits, padded.shape[2:]), image)
