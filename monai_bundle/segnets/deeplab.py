"""Implement DeepLabV3 (Chen et al. 2017, arXiv:1706.05587) and DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611)."""

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
    """Return the three rates of the pyramid, in proportion to the window as in the paper.

    The paper has the rates 6, 12 and 18 for a window of 513 pixels at stride 16, which gives a feature map of 33
    pixels: 2/11, 4/11 and 6/11 of the map. A rate near the size of the map would see only padding: 96 voxels at stride
    16 give a map of 6 voxels, and so the rates 1, 2 and 3. The result is 6, 12, 18 for 513 and 16, and 12, 24, 36 for
    513 and 8.

    Args:
        window: side length of the training window, in voxels.
        output_stride: stride of the feature map that the pyramid receives.
    """
    unit = max(1, round(window / output_stride * 2 / 11))
    return unit, 2 * unit, 3 * unit


class ASPP(nn.Module):
    """Apply atrous spatial pyramid pooling with image pooling (Chen et al. 2017, section 3.3).

    The pooled branch has no normalisation, since a map of one voxel has no statistics in a batch of one.

    Args:
        spatial_dims: 2 or 3.
        in_channels: features of the input.
        out_channels: features of each branch and of the result.
        rates: rate of each atrous convolution; a 1x1 convolution and the pooled branch are added.
        separable: use depthwise separable atrous convolutions (Chen et al. 2018).
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: fraction of features dropped from the result in training.
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
        """Return features (N, out_channels, *spatial) of features (N, in_channels, *spatial)."""
        branches = [resize(self.pooled(features), features.shape[2:])]
        for branch in self.branches:
            branches.append(branch(features))
        return self.project(torch.cat(branches, dim=1))


class DeepLabV3(nn.Module):
    """Segment with an atrous encoder, a pyramid of atrous convolutions, and scores upsampled in one step.

    The classic settings for photographs are `stem_stride` 4, `output_stride` 16 or 8 and a `window` of 513. The default
    output stride is 2, for organs of a few dozen voxels: without a decoder, the stride of the scores limits the detail.
    The best scores for a reference of the hippocampus, found by 15 steps of back-projection, give a mean Dice of 0.95
    at stride 2, 0.88 at 4 and 0.55 at 8. Convolutions at stride 2 are expensive in 3D, so they are few and narrow.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        output_stride: stride from which the encoder dilates its convolutions instead of reducing the map.
        channels: features of each stage of the encoder.
        units: number of residual units in each stage of the encoder.
        features: features of each branch of the pyramid.
        window: side length of the training window in voxels, from which `atrous_rates` computes the rates.
        rates: rates of the pyramid, in place of `window`.
        auxiliary: in training return [logits, logits of the last but one stage], both at the image's size, for MONAI's
            `DeepSupervisionLoss` (Zhao et al. 2017, arXiv:1612.01105, section 3.3).
        encoder: "residual" or "separable".
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: fraction of the pyramid's features dropped in training.
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
        """Return logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial); see `auxiliary`."""
        padded = pad_to_multiple(image, self.multiple)
        features = self.encoder(padded)
        logits = crop_to(resize(self.head(self.aspp(features[-1])), padded.shape[2:]), image)
        if self.auxiliary is not None and self.training:
            return [logits, crop_to(resize(self.auxiliary(features[-2]), padded.shape[2:]), image)]
        return logits


class DeepLabV3Plus(nn.Module):
    """Segment as `DeepLabV3`, with depthwise separable convolutions and a decoder that adds low-level features.

    The low-level features are those of the encoder's first stage with a stride of at least a quarter of the output
    stride: 4 of 16 in the paper, 2 of 8 here.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        output_stride: stride from which the encoder dilates its convolutions instead of reducing the map.
        channels: features of each stage of the encoder.
        units: number of residual units in each stage of the encoder.
        features: features of each branch of the pyramid, and of the decoder.
        low_level_features: features that the low-level map is reduced to, so that it does not outweigh the pyramid.
        window: side length of the training window in voxels, from which `atrous_rates` computes the rates.
        rates: rates of the pyramid, in place of `window`.
        encoder: "residual" or "separable".
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: fraction of the pyramid's features dropped in training.
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
        """Return logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial)."""
        padded = pad_to_multiple(image, self.multiple)
        features = self.encoder(padded)
        low = self.reduce(features[self.low_level])
        high = resize(self.aspp(features[-1]), low.shape[2:])
        logits = self.decoder(torch.cat([high, low], dim=1))
        return crop_to(resize(logits, padded.shape[2:]), image)
