"""Measure interactive refinement with simulated clicks against reference labels.

A click is put into the largest connected error, at the voxel that is farthest (in mm) from the error's border: positive
where the structure is missing, negative where it is too large. All clicks so far are given to each refinement, together
with the label map before the first one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the Dice overlap of two masks; 1 if both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def next_click(
    result: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> tuple[tuple[int, int, int], bool] | None:
    """Return the voxel in the centre of the largest error and whether it is missing; None if there is no error."""
    largest, missing = np.zeros_like(truth), False
    for error, is_missing in ((truth & ~result, True), (result & ~truth, False)):
        parts, count = ndimage.label(error, np.ones((3, 3, 3)))
        if count:
            sizes = np.bincount(parts.ravel())[1:]
            if sizes.max() > largest.sum():
                largest, missing = parts == sizes.argmax() + 1, is_missing
    if not largest.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(largest, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    i, j, k = np.unravel_index(int(depth.argmax()), depth.shape)
    return (int(i), int(j), int(k)), missing


def damaged(
    truth: NDArray[np.bool_], spacing_mm: tuple[float, float, float], random: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a structure with the errors of a bad result: a piece too much, a piece missing, and a rough border.

    The pieces are balls around voxels of its surface, 0.8 times as large as the largest ball in it.
    """
    depth = ndimage.distance_transform_edt(truth, sampling=spacing_mm)
    surface = np.argwhere(truth & ~ndimage.binary_erosion(truth))
    result = truth.copy()
    for is_added in (True, False):
        center = surface[random.integers(len(surface))]
        squares = [np.square((np.arange(n) - c) * s) for n, c, s in zip(truth.shape, center, spacing_mm, strict=True)]
        distance = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])
        result[distance < 0.8 * depth.max()] = is_added
    noise = ndimage.gaussian_filter(random.normal(size=truth.shape), 1.5)
    border = ndimage.binary_dilation(result) & ~ndimage.binary_erosion(result)
    result[border] = (noise > 0)[border]
    return result
