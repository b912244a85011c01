"""The windows that cover an image with the least work."""

from __future__ import annotations

from itertools import product
from math import ceil, gcd, prod
from typing import Literal

from napari_seg.inference.windows.layout import Triple, Windows, WindowSettings, usual_step

Placement = Literal["fewest", "even", "bundle"]
"""How windows are laid: as few as cover the image; of the bundle's size, evenly, as nnU-Net does; or as MONAI does."""

LONGER = (1.0, 1.25, 1.5)
"""By how much a window may be longer than the bundle's. Few lengths, because each is compiled once."""

LARGER = 2.0
"""By how much a window may be larger in all."""

PADDED = 1 / 16
"""How much of a longer window may lie outside the image."""

_STRIDE = 32


def ways_to_lay(placement: Placement, image_shape: Triple, settings: WindowSettings) -> list[Windows]:
    """Ways to cover an image, the least work first.

    Args:
        placement: how windows are laid.
        image_shape: (I, J, K).
        settings: the bundle's.
    """
    if placement == "bundle":
        return [Windows.over(image_shape, settings)]
    ways = coverings(image_shape, settings)
    return ways if placement == "fewest" else ways[-1:]


def coverings(image_shape: Triple, settings: WindowSettings) -> list[Windows]:
    """Ways to cover an image, the least work first.

    The last window of an axis is usually moved back until it ends with the image, and repeats much of the one before.
    Here windows lie as far apart as the image allows, no less than the bundle's overlap in voxels over each other, and
    may be somewhat longer than the bundle's where that saves one. Convolutional networks take any size; how much the
    answer moves stands in docs/benchmarks.md. The last way has windows of the bundle's own size.

    Args:
        image_shape: (I, J, K).
        settings: the bundle's.
    """
    usual = Windows.over(image_shape, settings)
    choices = [_choices(*axis) for axis in zip(image_shape, usual.size, settings.overlap, strict=True)]
    most = LARGER * prod(usual.size)
    found = []
    for lengths in product(*choices):
        (a, i), (b, j), (c, k) = lengths
        if a * b * c <= most:
            found.append(Windows.evenly(image_shape, settings, (a, b, c), (i, j, k)))
    found.sort(key=lambda windows: (windows.count * prod(windows.size), windows.count))
    return found[: 1 + next(n for n, windows in enumerate(found) if windows.size == usual.size)]


def stride(window: int) -> int:
    """What a window's length is a multiple of, so that a network which halves it again and again can take it."""
    return gcd(window, _STRIDE)


def _choices(length: int, window: int, overlap: float) -> list[tuple[int, int]]:
    """(length of a window, how many) along one axis."""
    repeated = window - usual_step(window, overlap)
    found: list[tuple[int, int]] = []
    for longer in LONGER:
        size = int(window * longer) // stride(window) * stride(window)
        count = max(1, ceil((length - repeated) / (size - repeated)))
        if not found or (count < found[-1][1] and size - length <= PADDED * size):
            found.append((size, count))
    return found
