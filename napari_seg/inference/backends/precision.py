"""The check whether a network computes the same labels in bfloat16, on a part of the scan's own first window.

The check costs a fraction of a window, and nothing is compiled for it: torch runs both number formats on the middle of
one window, at most `MAX_CHECKED_VOXELS` voxels. torch's bfloat16 and OpenVINO's differ from float32 in about the same
fraction of voxels. The result follows from the scan and the network alone, so that the same run gives the same labels.
"""

from __future__ import annotations

from itertools import count, product
from math import prod
from typing import NamedTuple

import torch

from napari_seg.bundles.output import Output
from napari_seg.inference.backends.base import autocast, first_output
from napari_seg.inference.decide.cells import winners_of
from napari_seg.inference.windows.layout import Triple, Windows, shortened

MIN_EQUAL = 0.999
"""Fraction of all voxels whose labels must be equal."""

MIN_EQUAL_IN_STRUCTURES = 0.99
"""Fraction of the voxels with a structure in either format whose labels must be equal: most voxels may be air."""

MIN_CHECKED_FLOP = 2e12
"""Number of operations from which bfloat16 saves several times what the check takes."""

MAX_CHECKED_VOXELS = 2**18
"""Voxels of the part of a window that is checked: a cube of 64."""


class Agreement(NamedTuple):
    """Fractions of voxels with equal labels in float32 and bfloat16.

    Attributes:
        equal: of all voxels.
        equal_in_structures: of the voxels with a structure in either format; 1 if there are none.
    """

    equal: float
    equal_in_structures: float

    def __str__(self) -> str:
        return f"{self.equal:.2%} of the first window's labels equal ({self.equal_in_structures:.2%} in structures)"

    @property
    def holds(self) -> bool:
        """Whether the network may run in bfloat16."""
        return self.equal >= MIN_EQUAL and self.equal_in_structures >= MIN_EQUAL_IN_STRUCTURES


def checked_part(windows: Windows, image: torch.Tensor) -> torch.Tensor:
    """Return the middle of the window with content that is nearest to the middle of an image, (1, C, *size).

    Args:
        windows: windows over the image.
        image: (C, I, J, K).
    """
    middle = [n / 2 for n in windows.padded_shape]
    occupied = set(product(*windows.starts)) - windows.empty
    nearest = min(occupied, key=lambda start: (_distance(start, windows.size, middle), start))
    window = windows.cut(windows.pad(image), nearest)
    size = next(size for n in count(2) if _is_last(size := shortened(windows.size, n), shortened(windows.size, n + 1)))
    begins = [(full - part) // 2 for full, part in zip(windows.size, size, strict=True)]
    box = [slice(begin, begin + part) for begin, part in zip(begins, size, strict=True)]
    return window[(slice(None), *box)][None].contiguous()


def agreement(network: torch.nn.Module, window: torch.Tensor, output: Output) -> Agreement:
    """Return how far a network's labels agree between float32 and bfloat16; logits that are not finite do not agree.

    Args:
        network: in evaluation mode, on the processor.
        window: (1, C, *size).
        output: how the logits become labels.

    Raises:
        Exception: whatever the network raises on a window of this size.
    """
    labels = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode(), autocast(dtype, window.device):
            logits = first_output(network(window)).float()
        if not bool(torch.isfinite(logits).all()):
            return Agreement(0.0, 0.0)
        labels.append(_winners(logits[0], output))
    equal = labels[0] == labels[1]
    has_structure = (labels[0] > 0) | (labels[1] > 0)
    in_structures = equal[has_structure]
    return Agreement(float(equal.double().mean()), float(in_structures.double().mean()) if len(in_structures) else 1.0)


def _winners(logits: torch.Tensor, output: Output) -> torch.Tensor:
    """Return the winning class of each voxel, (*size), of logits (classes, *size)."""
    if output.decision == "argmax":
        return winners_of(logits, None)
    activations = {"none": lambda values: values, "sigmoid": torch.sigmoid, "softmax": lambda values: values.softmax(0)}
    values = activations[output.activation](logits)
    numbers = [channel.number for channel in output.channels]
    return winners_of(values[numbers], torch.tensor([channel.threshold for channel in output.channels]))


def _distance(start: Triple, size: Triple, middle: list[float]) -> float:
    return sum((begin + n / 2 - m) ** 2 for begin, n, m in zip(start, size, middle, strict=True))


def _is_last(size: tuple[int, ...], next_size: tuple[int, ...]) -> bool:
    return prod(size) <= MAX_CHECKED_VOXELS or size == next_size
