"""Window covering: the layouts that cover an image with the least work."""

from __future__ import annotations

from itertools import product
from math import ceil, prod

from napari_seg.bundles.windows import WindowSettings
from napari_seg.inference.options import WindowLayout
from napari_seg.inference.windows.layout import Triple, Windows, divisor, step_between

LENGTHS = (1.0, 1.25, 1.5)
"""Lengths of a window relative to the bundle's. Each takes a moment to compile."""

MAX_VOLUME = 2.0
"""Largest volume of a window relative to the bundle's."""

MAX_PADDING = 1 / 16
"""Largest fraction of a longer window that may lie outside the image."""


def layouts(layout: WindowLayout, image_shape: Triple, settings: WindowSettings) -> list[Windows]:
    """Return windows over an image for each possible window size, the least work first.

    Args:
        layout: name of the way to lay windows.
        image_shape: (I, J, K).
        settings: the bundle's settings.
    """
    if layout == "bundle" or (layout == "even" and settings.mode == "nnunet"):
        return [Windows.over(image_shape, settings)]
    found = coverings(image_shape, settings)
    return found if layout == "fewest" else found[-1:]


def coverings(image_shape: Triple, settings: WindowSettings) -> list[Windows]:
    """Return evenly spaced windows over an image for each possible window size, the least work first.

    MONAI moves the last window of an axis back until it ends with the image, so it repeats much of the one before.
    Here windows are spaced evenly, overlap by at least as many voxels as the bundle requires, and may be longer than
    the bundle's windows if that saves one. Convolutional networks take any size; docs/reference/benchmarks.md states
    how much the result changes. The last item has windows of the bundle's own size.

    Args:
        image_shape: (I, J, K).
        settings: the bundle's settings.
    """
    usual = Windows.over(image_shape, settings)
    choices = [_choices(*axis) for axis in zip(image_shape, usual.size, settings.overlap, strict=True)]
    max_voxels = MAX_VOLUME * prod(usual.size)
    found = []
    for lengths in product(*choices):
        (a, i), (b, j), (c, k) = lengths
        if a * b * c <= max_voxels:
            found.append(Windows.evenly(image_shape, settings, (a, b, c), (i, j, k)))
    found.sort(key=lambda windows: (windows.count * prod(windows.size), windows.count))
    return found[: 1 + next(n for n, windows in enumerate(found) if windows.size == usual.size)]


def _choices(length: int, window: int, overlap: float) -> list[tuple[int, int]]:
    """Return the possible window lengths along one axis, each with the number of windows."""
    repeated = window - step_between(window, overlap)
    found: list[tuple[int, int]] = []
    for longer in LENGTHS:
        size = int(window * longer) // divisor(window) * divisor(window)
        count = max(1, ceil((length - repeated) / (size - repeated)))
        if not found or (count < found[-1][1] and size - length <= MAX_PADDING * size):
            found.append((size, count))
    return found
