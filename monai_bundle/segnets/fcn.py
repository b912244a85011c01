"""Implement the fully convolutional network (Long et al. 2015, arXiv:1411.4038)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.networks.layers import Conv
from torch import nn

from segnets.blocks import crop_to, pad_to_multiple, resize
from segnets.encoder import ENCODERS


class FCN(nn.Module):
    """Segment with FCN-32s, 16s or 8s: the class scores of the last one, two or three stages, upsampled and added.

    The variants are named as in the paper, where the stages have strides 4, 8, 16 and 32 (`stem_stride` 4). With the
    default `stem_stride` 1 the strides are 1, 2, 4 and 8. Then the finest scores have stride 2 in "8s", 4 in "16s" and
    8 in "32s", which is too coarse for a hippocampus (see `DeepLabV3`).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        variant: "32s", "16s" or "8s", which add the scores of one, two or three stages.
        encoder: "residual" or "separable".
        encoder_options: further arguments of `ResidualEncoder`: channels, units, stem_stride, norm, act, dropout, ...
    """

    adds_heads = True
    """The logits are the sum of those of several layers."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        variant: Literal["32s", "16s", "8s"] = "8s",
        encoder: Literal["residual", "separable"] = "residual",
        **encoder_options: Any,
    ) -> None:
        super().__init__()
        self.encoder = ENCODERS[encoder](spatial_dims, in_channels, **encoder_options)
        self.multiple = [self.encoder.strides[-1]] * spatial_dims
        fused = {"32s": 1, "16s": 2, "8s": 3}[variant]
        self.scores = nn.ModuleList(
            Conv[Conv.CONV, spatial_dims](features, out_channels, kernel_size=1)
            for features in reversed(self.encoder.channels[-fused:])
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial)."""
        padded = pad_to_multiple(image, self.multiple)
        all_features = self.encoder(padded)
        logits: torch.Tensor | None = None
        for score in self.scores:
            features = all_features.pop()
            scores = score(features)
            logits = scores if logits is None else resize(logits, features.shape[2:]) + scores
        assert logits is not None
        return crop_to(resize(logits, padded.shape[2:]), image)
