"""Implement the U-Net (Ronneberger et al. 2015, arXiv:1505.04597), residual as in He et al. 2016, arXiv:1512.03385."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from monai.networks.layers import Conv
from torch import nn

from segnets.blocks import ACT, NORM, ConvUnit, convolution, crop_to, pad_to_multiple

FULL_SIZE_FEATURES = 8
"""Features of the decoder at the full size of the image, if the encoder's first stride is larger than 1."""


class UpUnit(nn.Module):
    """Concatenate the upsampled features of the level below with the encoder's features, and apply a unit."""

    def __init__(self, upsample: nn.Module, unit: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample
        self.unit = unit

    def forward(self, below: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """Return features (N, C, *spatial) of the same size as `here`."""
        return self.unit(torch.cat([self.upsample(below), here], dim=1))


class UNet(nn.Module):
    """Segment with a U-Net of any depth, for images of any size.

    By default no level has the full resolution of the image, because there memory access, not arithmetic, takes the
    time of a step. Instead, the last step of the decoder combines the upsampled features with the image itself, so that
    surfaces stay accurate; this takes half the time of a narrow level at full resolution. The levels have residual
    units, and the decoder upsamples with transposed convolutions whose kernel equals their stride.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        channels: features of each level, from the top to the bottom.
        strides: stride of each level relative to the level above it, of the first relative to the image; one number
            for all levels or one each. With a first stride of 1 the top level has full resolution, and the decoder
            ends there. A level may have one stride per axis, for anisotropic voxels.
        encoder_convs: number of convolutions per unit of the encoder, for all levels or for each.
        decoder_convs: number of convolutions per level of the decoder, for all levels except the bottom or for each.
        residual: use residual units at every level with more than one convolution.
        deep_supervision: in training return a list: the logits, then the logits of the next levels at their own sizes,
            down to the last but one (Lee et al. 2015, arXiv:1409.5185; Isensee et al. 2021).
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: fraction of features dropped after each convolution in training.
        kernels: kernel size of each level's convolutions, for all levels or for each; a level may have one per axis. A
            kernel of 1 along an axis whose voxels are several times as long mixes nothing across it.
        encoder_units: number of units per level of the encoder, for all levels or for each.

    Raises:
        ValueError: `strides`, `kernels`, `encoder_convs`, `encoder_units` or `decoder_convs` do not match the number of
            levels.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: int | Sequence[int | Sequence[int]] = 2,
        encoder_convs: int | Sequence[int] = 2,
        decoder_convs: int | Sequence[int] = 1,
        residual: bool = True,
        deep_supervision: bool = False,
        norm: str | tuple = NORM,
        act: str | tuple = ACT,
        dropout: float = 0.0,
        kernels: int | Sequence[int | Sequence[int]] = 3,
        encoder_units: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        depth = len(channels)
        per_level = {
            "strides": strides,
            "kernels": kernels,
            "encoder_convs": encoder_convs,
            "encoder_units": encoder_units,
        }
        strides, kernels, encoder_convs, encoder_units = (
            [x] * depth if isinstance(x, int) else list(x) for x in per_level.values()
        )
        decoder_convs = [decoder_convs] * (depth - 1) if isinstance(decoder_convs, int) else list(decoder_convs)
        found = [len(strides), len(kernels), len(encoder_convs), len(encoder_units)]
        if found != [depth] * 4 or len(decoder_convs) != depth - 1:
            raise ValueError(
                f"expected one number, or one per level ({depth} in channels), in {', '.join(per_level)}, and one "
                f"fewer in decoder_convs; found {', '.join(map(str, found))} and {len(decoder_convs)}"
            )
        steps = [[s] * spatial_dims if isinstance(s, int) else list(s) for s in strides]
        self.multiple = [prod(axis) for axis in zip(*steps, strict=True)]
        self.deep_supervision = deep_supervision

        def unit(
            inputs: int, outputs: int, stride: list[int] | int, convs: int, kernel: int | Sequence[int]
        ) -> ConvUnit:
            is_residual = residual and convs > 1
            return ConvUnit(
                spatial_dims, inputs, outputs, stride, convs, is_residual, norm, act, dropout, kernel_size=kernel
            )

        def level(
            inputs: int, outputs: int, stride: list[int], convs: int, kernel: int | Sequence[int], units: int
        ) -> nn.Module:
            first = unit(inputs, outputs, stride, convs, kernel)
            return (
                first
                if units == 1
                else nn.Sequential(first, *(unit(outputs, outputs, 1, convs, kernel) for _ in range(units - 1)))
            )

        def upsampling(inputs: int, outputs: int, stride: list[int]) -> nn.Module:
            return Conv[Conv.CONVTRANS, spatial_dims](inputs, outputs, kernel_size=stride, stride=stride, bias=False)

        above = [in_channels, *channels[:-1]]
        self.encoder = nn.ModuleList(map(level, above, channels, steps, encoder_convs, kernels, encoder_units))
        # from the bottom to the top: each level receives features from below and from the encoder
        self.decoder = nn.ModuleList(
            UpUnit(upsampling(below, here, step), unit(2 * here, here, 1, convs, kernel))
            for here, below, step, convs, kernel in reversed(
                list(zip(channels[:-1], channels[1:], steps[1:], decoder_convs, kernels[:-1], strict=True))
            )
        )
        decoded = list(channels[:-1])
        self.concatenates_image = prod(steps[0]) > 1
        if self.concatenates_image:
            width = FULL_SIZE_FEATURES
            mix = convolution(
                spatial_dims, width + in_channels, width, kernel_size=kernels[0], adn_ordering="A", act=act
            )
            self.decoder.append(UpUnit(upsampling(channels[0], width, steps[0]), mix))
            decoded.insert(0, width)
        self.heads = nn.ModuleList(
            Conv[Conv.CONV, spatial_dims](features, out_channels, kernel_size=1)
            for features in (decoded if deep_supervision else decoded[:1])
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial); see `deep_supervision`."""
        features = pad_to_multiple(image, self.multiple)
        encoded: list[torch.Tensor] = [features] if self.concatenates_image else []
        for unit in self.encoder:
            features = unit(features)
            encoded.append(features)
        encoded.pop()
        decoded: list[torch.Tensor] = []
        for unit in self.decoder:
            features = unit(features, encoded.pop())
            decoded.append(features)
        logits: list[torch.Tensor] = []
        for head in self.heads:
            logits.append(head(decoded.pop()))
        logits[0] = crop_to(logits[0], image)
        if self.deep_supervision and self.training:
            return logits
        return logits[0]
