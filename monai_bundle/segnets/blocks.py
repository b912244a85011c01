"""Pieces that the networks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def run_at_multiple(
    network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, multiple: int
) -> torch.Tensor:
    """Logits at the image's own size, from a network that halves a map without remainder only.

    The image is padded at the far end of each axis by repeating its edge, to the next multiple and to
    no less than twice it (instance normalisation needs more than one voxel at the bottom of the
    network), and the logits are cropped back.

    Args:
        network: maps (N, C, *spatial) to logits of the same spatial size.
        image: (N, C, *spatial), of any spatial size.
        multiple: the product of the network's strides.
    """
    size = image.shape[2:]
    padded = [max(-(-s // multiple), 2) * multiple for s in size]
    if list(size) == padded:
        return network(image)
    pads: list[int] = []
    for s, p in zip(reversed(size), reversed(padded), strict=True):
        pads += [0, p - s]
    logits = network(F.pad(image, pads, mode="replicate"))
    return logits[(slice(None), slice(None), *(slice(s) for s in size))]


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
