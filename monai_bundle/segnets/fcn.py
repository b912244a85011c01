"""Fully convolutional network (Long et al. 2015, arXiv:1411.4038)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.networks.layers import Conv
from torch import nn

from segnets.blocks import crop_to, pad_to_multiple, resize
from segnets.encoder import ENCODERS


class FCN(nn.Module):
    """FCN-32s, 16s or 8s: class scores of the last one, two or three stages, upsampled and added from the bottom up.

    The names are the paper's, whose stages lie at strides 4, 8, 16 and 32 (`stem_stride` 4). With the default
    `stem_stride` 1 they lie at 1, 2, 4 and 8, so the finest scores of "8s" lie at stride 2, of "16s" at 4 and of "32s"
    at 8, which is too coarse to draw a hippocampus (see `DeepLabV3`).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        variant: how many stages are fused.
        encoder: "residual" or "separable".
        encoder_options: further arguments of `ResidualEncoder`: channels, units, stem_stride, norm, act, dropout, ...
    """

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
        """Logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial)."""
        padded = pad_to_multiple(image, self.multiple)
        maps = self.encoder(padded)
        logits: torch.Tensor | None = None
        for score in self.scores:
            features = maps.pop()
            here = score(features)
            logits = here if logits is None else resize(logits, features.shape[2:]) + here
        assert logits is not None
        return crop_to(resize(logits, padded.shape[2:]), image)
