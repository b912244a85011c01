"""Networks of nnU-Net v2, to train its models further (Isensee et al., Nature Methods 18, 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn

from segnets.blocks import crop_to, pad_to_multiple

ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
OPERATIONS = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Arguments that name a class of torch.nn."""


class NnunetUNet(nn.Module):
    """Segment with a U-Net of dynamic-network-architectures, as the plans of an nnU-Net model describe it.

    The weights have the names that they have in nnU-Net's checkpoints, where those of the encoder have two. Images of
    any size are padded to a multiple of the strides.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        architecture: one of `ARCHITECTURES`.
        arguments: `arch_kwargs` of the plans, with the plain names of torch.nn's classes, such as "Conv3d".

    Raises:
        ValueError: `architecture` or a class is not known, or an operation is for images of other dimensions.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, architecture: str, arguments: Mapping[str, Any]
    ) -> None:
        from dynamic_network_architectures.architectures import unet

        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {architecture!r}; expected one of {', '.join(ARCHITECTURES)}")
        built = {key: _layer(value, spatial_dims) if key in OPERATIONS else value for key, value in arguments.items()}
        built["deep_supervision"] = True
        network = getattr(unet, architecture)(input_channels=in_channels, num_classes=out_channels, **built)
        self.encoder, self.decoder = network.encoder, network.decoder
        del self.decoder.encoder  # it needs it to be built only, and each weight would have two names
        self.multiple = [prod(axis) for axis in zip(*self.encoder.strides, strict=True)]
        heads = self.decoder.seg_layers
        if len(heads) > 1:  # nnU-Net does not train the coarsest head either
            heads[0].requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (N, out_channels, *spatial) of an image (N, in_channels, *spatial).

        In training return a list: the logits, then those of the coarser levels at their own sizes, but the coarsest.
        """
        self.decoder.deep_supervision = self.training
        found = self.decoder(self.encoder(pad_to_multiple(image, self.multiple)))
        if not self.training:
            return crop_to(found, image)
        return [crop_to(found[0], image), *found[1:-1]]


def _layer(name: str | None, spatial_dims: int) -> type[nn.Module] | None:
    """Return a class of torch.nn by its name.

    Raises:
        ValueError: there is no such layer, or it is for images of other dimensions.
    """
    if name is None:
        return None
    found = getattr(nn, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"found the layer {name!r}; expected a class of torch.nn, such as Conv3d")
    if name[-2:] in ("1d", "2d", "3d") and name[-2] != str(spatial_dims):
        raise ValueError(f"found the layer {name} in a network of {spatial_dims} dimensions")
    return found
