"""Shift the slices of a tilted gantry onto a straight grid, and labels back onto the slices.

Such slices lie parallel and evenly, but each begins farther to one side than the one before. Each is shifted within its
own plane, by fractions of a pixel if necessary; nothing is interpolated between slices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_seg.volume import SolvedStack


def straightened(slices: NDArray, stack: SolvedStack) -> NDArray[np.float32]:
    """Return slices shifted to their places on the straight grid, with linear interpolation.

    Args:
        slices: (K, J, I) values, in the order of the stack.
        stack: geometry of the slices.

    Returns:
        (K, J, I) on the grid; the minimum of all values, air, outside the slices.
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


def on_images(labels: NDArray, stack: SolvedStack) -> NDArray:
    """Return labels at the pixels of the slices, each from the nearest voxel of the straight grid.

    Args:
        labels: (I, J, K) on the stack's grid.
        stack: geometry of the slices.

    Returns:
        (K, J, I), in the order of `in_file_order`.
    """
    columns, rows = stack.size
    begins = np.rint(stack.begins()).astype(int)
    slices = [labels[i : i + columns, j : j + rows, k].T for k, (i, j) in enumerate(begins)]
    return np.stack([slices[k] for k in in_file_order(stack)])


def in_file_order(stack: SolvedStack) -> list[int]:
    """Return the numbers of the slices in the order in which the files hold them."""
    return sorted(range(len(stack.slices)), key=stack.slices.__getitem__)


def _shifted(values: NDArray[np.float32], axis: int, fraction: float, outside: float) -> NDArray[np.float32]:
    """Return values shifted by a fraction of a pixel along an axis, which becomes one pixel longer."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, 1)
    here = np.pad(values, widths, constant_values=outside)
    widths[axis] = (1, 0)
    before = np.pad(values, widths, constant_values=outside)
    return (1 - fraction) * here + fraction * before
