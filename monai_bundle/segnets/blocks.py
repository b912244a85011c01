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
