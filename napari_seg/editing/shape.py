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

    Towards other structures no gap opens: a voxel that they would take, because they fill most of what is around it,
    stays in the structure, or goes to the nearest one of `overwrite`. A structure that others enclose stays as it is.

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

    def blurred(part: NDArray[np.bool_]) -> NDArray[np.float32]:
        return gaussian_filter(part.astype(np.float32), sigmas, mode="nearest", truncate=GAUSSIAN_END)

    def is_most_around(part: NDArray[np.bool_], own: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return where a part is more than half of what the Gaussian sees besides the structure."""
        return 2 * blurred(part) + own > 1 if part.any() else part

    check_size(size_mm, "smoothing")
    margin = margin_of(grid, GAUSSIAN_END * size_mm)
    place, mask = find_structure(labels, label, margin)
    sigmas = [size_mm / spacing_mm for spacing_mm in grid.spacing_mm]
    boxes = regions(mask, margin)
    replaced = [one for one in overwrite if one not in (0, label)]
    values, may_join, may_leave, falls_to = [], [], [], []
    for box, around in boxes:
        near, within = labels[place][around], inside(box, around)
        is_own, is_open = near == label, np.isin(near, replaced)
        own = blurred(is_own)
        stays = is_most_around(~(is_own | is_open | (near == 0)), own)
        values.append(own[within])
        may_join.append((is_open | (near == 0))[within])
        may_leave.append((is_own & ~stays)[within])
        falls_to.append(_nearest(near, is_open, grid, is_own & is_most_around(is_open, own))[within])
    own_values = np.concatenate([one[may] for one, may in zip(values, may_leave, strict=True)])
    if not own_values.size:
        return change_structure(labels, place, label, mask)
    around_it = np.concatenate([one[may & (one > 0)] for one, may in zip(values, may_join, strict=True)])
    threshold = np.partition(np.concatenate([around_it, own_values]), around_it.size)[around_it.size]
    joining = int(np.count_nonzero(around_it > threshold))
    leaving = min(joining + int(MAX_LOSS * np.count_nonzero(mask)), own_values.size - 1)
    lowest_kept = min(threshold, np.partition(own_values, leaving)[leaving])
    after = np.array(labels[place])
    for (box, _), one, joins, leaves, other in zip(boxes, values, may_join, may_leave, falls_to, strict=True):
        leaves = leaves & (one < lowest_kept)
        after[box][joins & (one > threshold)] = label
        after[box][leaves] = other[leaves]
    return Change(place, np.array(labels[place]), after)


def _nearest(
    labels: NDArray[np.unsignedinteger], others: NDArray[np.bool_], grid: Grid, voxels: NDArray[np.bool_]
) -> NDArray[np.unsignedinteger]:
    """Return at some voxels the label of the nearest one of others, in mm, and 0 everywhere else."""
    from scipy.ndimage import distance_transform_edt

    found = np.zeros_like(labels)
    if voxels.any():
        nearest = distance_transform_edt(~others, grid.spacing_mm, return_distances=False, return_indices=True)
        found[voxels] = labels[tuple(nearest[:, voxels])]
    return found


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
