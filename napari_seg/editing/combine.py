"""Combine two structures: union, minus, within.

The structures of one label map share no voxels. The other structure is therefore a label of the same label map, which
`union` joins, or a mask from another label map on the same grid. A margin in mm makes `minus` and `within` useful for
two structures of one label map: keep a distance, or keep what lies close by.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change, box_of, change_structure
from napari_seg.editing.structure import (
    ROUNDING_MM,
    check_label,
    check_shape,
    check_size,
    distance_mm,
    enlarged,
    find_structure,
    inside,
    margin_of,
    regions,
    relabel,
    shifted,
)
from napari_seg.errors import InputError
from napari_seg.geometry import Grid


def union(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    other: int | NDArray[np.bool_],
    overwrite: Collection[int] = (),
) -> Change:
    """Return the change that adds another structure to a structure, which may be new.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        other: label of the other structure, whose voxels are all taken; or (I, J, K) mask.
        overwrite: labels of structures that the structure may take voxels of a mask from.

    Raises:
        InputError: `edit.absent`, the other structure has no voxels; `edit.same`, both are one structure;
            `edit.label`, `edit.shape`.
    """
    check_label(labels, label)
    box, mask = _other_structure(labels, label, other)
    if not isinstance(other, np.ndarray):
        return relabel(labels, box, mask, label)
    return change_structure(labels, box, label, mask | (labels[box] == label), overwrite)


def minus(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    other: int | NDArray[np.bool_],
    *,
    margin_mm: float = 0.0,
) -> Change:
    """Return the change that removes from a structure what lies in another structure, or close to it.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        other: label of the other structure, or (I, J, K) mask.
        margin_mm: distance from the other structure within which voxels are removed too.

    Raises:
        InputError: `edit.absent`, `edit.same`, `edit.label`, `edit.shape`, `edit.size`.
    """
    box, mask, is_near = _near_other(labels, grid, label, other, margin_mm)
    return relabel(labels, box, mask & is_near, 0)


def within(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    other: int | NDArray[np.bool_],
    *,
    margin_mm: float = 0.0,
) -> Change:
    """Return the change that keeps of a structure only what `minus` removes; arguments and errors are the same."""
    box, mask, is_near = _near_other(labels, grid, label, other, margin_mm)
    return relabel(labels, box, mask & ~is_near, 0)


def _other_structure(
    labels: NDArray[np.unsignedinteger], label: int, other: int | NDArray[np.bool_]
) -> tuple[Box, NDArray[np.bool_]]:
    if isinstance(other, np.ndarray):
        check_shape(other, labels, "another structure")
        box = box_of(other)
        if box is None:
            raise InputError("edit.absent", "the other structure has no voxels; choose one that has")
        return box, other[box]
    if other == label:
        raise InputError("edit.same", f"found structure {label} twice; choose two different structures")
    return find_structure(labels, other)


def _near_other(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    other: int | NDArray[np.bool_],
    margin_mm: float,
) -> tuple[Box, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the box of a structure, its voxels, and the voxels in the box that lie in or near the other structure."""
    check_size(margin_mm, "the margin", zero=True)
    _other_structure(labels, label, other)  # refuse one without voxels
    box, mask = find_structure(labels, label)
    if not margin_mm:
        return box, mask, other[box] if isinstance(other, np.ndarray) else labels[box] == other
    is_near = np.zeros_like(mask)
    start = [one.start for one in box]
    margin = margin_of(grid, margin_mm)
    for part, _ in regions(mask, margin):
        place = shifted(part, start)
        around = enlarged(place, margin, labels.shape)
        targets = other[around] if isinstance(other, np.ndarray) else labels[around] == other
        is_near[part] = (distance_mm(targets, grid) <= margin_mm + ROUNDING_MM)[inside(place, around)]
    return box, mask, is_near
