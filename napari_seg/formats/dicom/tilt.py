"""Slices of a tilted gantry: onto a straight grid, and labels back onto the slices.

Such slices lie parallel and evenly, but each begins somewhat farther to one side than the one before. Each is shifted
within its own plane, by parts of a pixel where need be; nothing is interpolated between slices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_seg.formats.dicom.geometry import Stack


def straightened(slices: NDArray, stack: Stack) -> NDArray[np.float32]:
    """The slices shifted to where they lie on the straight grid, with linear interpolation.

    Args:
        slices: (K, J, I), of the stack's frames.
        stack: where they lie.

    Returns:
        (K, *J and I of the grid*); beside the slices the least value of all, air.
    """
    columns, rows, _ = stack.grid.shape
    air = float(slices.min())
    answer = np.full((len(slices), rows, columns), air, np.float32)
    for canvas, values, (i, j) in zip(answer, slices, stack.begins(), strict=True):
        shifted = _shifted(_shifted(values.astype(np.float32), 0, j % 1, air), 1, i % 1, air)
        height, width = shifted.shape
        place = canvas[int(j) : int(j) + height, int(i) : int(i) + width]
        place[:] = shifted[: place.shape[0], : place.shape[1]]
    return answer


def on_images(labels: NDArray, stack: Stack) -> NDArray:
    """The labels at the pixels of the slices, each from the nearest voxel of the straight grid.

    Args:
        labels: (I, J, K) on the stack's grid.
        stack: where the slices lie.

    Returns:
        (K, J, I) of the stack's frames; frames of one file in its order.
    """
    slices = []
    for k, (frame, (i, j)) in enumerate(zip(stack.frames, np.rint(stack.begins()).astype(int), strict=True)):
        slices.append((frame.index, labels[i : i + frame.columns, j : j + frame.rows, k].T))
    return np.stack([values for _, values in sorted(slices, key=lambda one: one[0])])


def _shifted(values: NDArray[np.float32], axis: int, share: float, outside: float) -> NDArray[np.float32]:
    """One longer along an axis, every value so far on its way to the next place."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, 1)
    here = np.pad(values, widths, constant_values=outside)
    widths[axis] = (1, 0)
    before = np.pad(values, widths, constant_values=outside)
    return (1 - share) * here + share * before
