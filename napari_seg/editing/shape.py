"""Change the shape of a structure: smooth, fill holes, erode, dilate; all sizes in mm.

Beyond the field of view nothing is known: a structure that the edge cuts off is neither rounded nor eroded there.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Change, change_structure
from napari_seg.editing.structure import (
    ROUNDING_MM,
    check_axis,
    check_size,
    distance_mm,
    find_structure,
    inside,
    margin_of,
    pieces,
    regions,
    relabel,
)
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

GAUSSIAN_END = 3.0
"""Standard deviations after which the Gaussian of `smooth` ends."""

MAX_LOSS = 0.01
"""Largest fraction of its volume that a structure loses in `smooth` because voxels of equal value stay outside."""


def smooth(
    labels: NDArray[np.unsignedinteger], grid: Grid, label: int, size_mm: float, overwrite: Collection[int] = ()
) -> Change:
    """Return the change that smooths the surface of a structure and keeps its volume.

    The mask is blurred by a Gaussian and thresholded so that as many voxels remain as there were, one step of
    volume-preserving threshold dynamics (Ruuth and Wetton 2003, Journal of Scientific Computing 19:373). A threshold of
    one half would shrink convex structures and delete thin ones.

    Next to a flat face whole layers of voxels have one value. If the threshold meets such a layer, it stays outside,
    and the structure keeps its own voxels of the next lower values instead, until it lacks `MAX_LOSS` of its volume.
    A structure that is flat and thin compared with the Gaussian therefore changes little.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        size_mm: standard deviation of the Gaussian; details smaller than about twice this vanish.
        overwrite: labels of other structures that the structure may take voxels from.

    Raises:
        InputError: `edit.absent`, `edit.size`.
    """
    from scipy.ndimage import gaussian_filter

    check_size(size_mm, "smoothing")
    margin = margin_of(grid, GAUSSIAN_END * size_mm)
    place, mask = find_structure(labels, label, margin)
    sigmas = [size_mm / spacing_mm for spacing_mm in grid.spacing_mm]
    boxes = regions(mask, margin)
    blurred = []
    for box, around in boxes:
        values = mask[around].astype(np.float32)
        values = gaussian_filter(values, sigmas, mode="nearest", truncate=GAUSSIAN_END)
        blurred.append(values[inside(box, around)])
    own = np.concatenate([one[mask[box]] for (box, _), one in zip(boxes, blurred, strict=True)])
    around_it = np.concatenate([one[~mask[box] & (one > 0)] for (box, _), one in zip(boxes, blurred, strict=True)])
    threshold = np.partition(np.concatenate([around_it, own]), around_it.size)[around_it.size]
    joining = int(np.count_nonzero(around_it > threshold))
    leaving = min(joining + int(MAX_LOSS * own.size), own.size - 1)
    lowest_kept = min(threshold, np.partition(own, leaving)[leaving])
    smoothed = np.zeros_like(mask)
    for (box, _), one in zip(boxes, blurred, strict=True):
        smoothed[box] = np.where(mask[box], one >= lowest_kept, one > threshold)
    return change_structure(labels, place, label, smoothed, overwrite)


def fill_holes(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    *,
    axis: int | None = None,
    overwrite: Collection[int] = (),
) -> Change:
    """Return the change that fills the holes of a structure.

    A hole is a set of voxels, connected by faces, that the structure encloses. A hollow that is open at the edge of the
    scan is no hole.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        axis: fill the holes of each slice along this axis; None: only what is enclosed in 3D.
        overwrite: labels of other structures that are filled too where they lie in a hole.

    Raises:
        InputError: `edit.absent`, `edit.axis`.
    """
    from scipy.ndimage import generate_binary_structure
    from scipy.ndimage import label as connected

    neighbours = generate_binary_structure(3, 1)
    if axis is not None:
        check_axis(axis)
        np.moveaxis(neighbours, axis, 0)[[0, 2]] = False
    place, mask = find_structure(labels, label)
    for box in pieces(mask):
        parts, count = connected(~mask[box], neighbours)
        is_hole = np.ones(count + 1, bool)
        for side in (n for n in range(3) if n != axis):
            is_hole[np.moveaxis(parts, side, 0)[[0, -1]]] = False
        is_hole[0] = True  # the structure itself
        mask[box] = is_hole[parts]
    return change_structure(labels, place, label, mask, overwrite)


def dilate(
    labels: NDArray[np.unsignedinteger], grid: Grid, label: int, size_mm: float, overwrite: Collection[int] = ()
) -> Change:
    """Return the change that adds all voxels within a distance of a structure.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        size_mm: largest distance between the centres of an added voxel and of a voxel of the structure.
        overwrite: labels of other structures that the structure may take voxels from.

    Raises:
        InputError: `edit.absent`, `edit.size`.
    """
    check_size(size_mm, "the distance")
    margin = margin_of(grid, size_mm)
    place, mask = find_structure(labels, label, margin)
    dilated = np.zeros_like(mask)
    for box, around in regions(mask, margin):
        dilated[box] = (distance_mm(mask[around], grid) <= size_mm + ROUNDING_MM)[inside(box, around)]
    return change_structure(labels, place, label, dilated, overwrite)


def erode(labels: NDArray[np.unsignedinteger], grid: Grid, label: int, size_mm: float) -> Change:
    """Return the change that removes all voxels of a structure within a distance of a voxel that is not in it.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        size_mm: largest distance between the centres of a removed voxel and of a voxel outside the structure.

    Raises:
        InputError: `edit.absent`, `edit.size`; `edit.nothing_left`, the structure is nowhere thicker.
    """
    check_size(size_mm, "the distance")
    margin = margin_of(grid, size_mm)
    place, mask = find_structure(labels, label, margin)
    kept = np.zeros_like(mask)
    for box, around in regions(mask, margin):
        kept[box] = mask[box] & (distance_mm(~mask[around], grid) > size_mm + ROUNDING_MM)[inside(box, around)]
    if not kept.any():
        text = f"eroding structure {label} by {size_mm:g} mm leaves nothing of it; choose a smaller distance"
        raise InputError("edit.nothing_left", text)
    return relabel(labels, place, mask & ~kept, 0)
