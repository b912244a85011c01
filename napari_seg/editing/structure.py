"""Place of one structure in a label map, and the checks that all functions of this room share.

Everything here finds the smallest box that it needs and works there. Distances are Euclidean, in mm, between the
centres of voxels, so that they are exact on anisotropic and oblique grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change, box_of, whole
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

MAX_MM = 1000.0
"""Largest size in mm that a person can request."""

ROUNDING_MM = 1e-4
"""Tolerance of distances, which are computed in float32."""

_BLOCK = 8
"""Voxels along each axis of the blocks by which the parts of a structure are found."""

_MAX_PIECES = 100
"""Largest number of parts of a structure that are worked on one by one."""

_MAX_VOXELS = 1 << 22
"""Size in voxels of a box that is always worked on as a whole."""

_TILE = 32
"""Smallest size of tiles along each axis, in voxels."""

Voxel = tuple[int, int, int]
"""Index of a voxel in a label map (I, J, K)."""


def find_structure(
    labels: NDArray[np.unsignedinteger], label: int, margin: Voxel = (0, 0, 0)
) -> tuple[Box, NDArray[np.bool_]]:
    """Return the box around a structure, and its voxels in the box.

    Args:
        labels: (I, J, K) label map.
        label: label of the structure.
        margin: voxels to add on both sides along each axis, as far as the label map reaches.

    Raises:
        InputError: `edit.absent`, no voxel has the label.
    """
    check_label(labels, label)
    # plane by plane in memory order, so that a large label map needs no second array of its size
    outer = int(np.argmax(np.abs(labels.strides)))
    planes = np.moveaxis(labels, outer, 0)
    rows = np.zeros(len(planes), bool)
    others = np.zeros(planes.shape[1:], bool)
    for n, plane in enumerate(planes):
        found = plane == label
        rows[n] = found.any()
        if rows[n]:
            others |= found
    if not rows.any():
        raise InputError("edit.absent", f"no voxel has the label {label}; choose a structure that has voxels")
    lines = [others.any(axis=1), others.any(axis=0)]
    lines.insert(outer, rows)
    ranges = []
    for line in lines:
        places = np.flatnonzero(line)
        ranges.append(slice(int(places[0]), int(places[-1]) + 1))
    box = enlarged((ranges[0], ranges[1], ranges[2]), margin, labels.shape)
    return box, labels[box] == label


def pieces(mask: NDArray[np.bool_], margin: Voxel = (0, 0, 0)) -> list[Box]:
    """Return boxes that hold all voxels of a mask with a margin, and share no voxels.

    An island far from the rest would make one box around everything large and slow. Every voxel outside all boxes is
    more than the margin away from the mask along some axis, or lies beyond the array.

    Args:
        mask: (I', J', K') voxels.
        margin: voxels to add on both sides of each part along each axis, as far as the array reaches.
    """
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as connected

    blocks = mask
    for axis, size in enumerate(mask.shape):
        blocks = np.logical_or.reduceat(blocks, np.arange(0, size, _BLOCK), axis=axis)
    parts, count = connected(blocks, np.ones((3, 3, 3)))
    if count > _MAX_PIECES:
        return [whole(mask.shape)]
    boxes: list[Box] = []
    for found in find_objects(parts):
        place = [slice(one.start * _BLOCK, one.stop * _BLOCK) for one in found]
        inner = box_of(mask[place[0], place[1], place[2]])
        if inner is not None:
            box = shifted(inner, [one.start for one in place])
            boxes = _with_box(boxes, enlarged(box, margin, mask.shape))
    return boxes


def regions(mask: NDArray[np.bool_], margin: Voxel) -> list[tuple[Box, Box]]:
    """Return boxes to compute, and around each the box to look at, for functions that look as far as a margin.

    Every voxel within the margin of the mask lies in exactly one box to compute. Compact parts have one box each; thin
    structures that reach through a large box, such as vessels or bones, are divided into tiles, and empty tiles are
    left out.

    Args:
        mask: (I', J', K') voxels.
        margin: voxels along each axis.
    """
    found = []
    for box in pieces(mask, margin):
        size = _voxels(box)
        tiles = _tiles(mask, box, margin) if size > _MAX_VOXELS else []
        is_less = bool(tiles) and sum(_voxels(around) for _, around in tiles) < 0.7 * size
        found += tiles if is_less else [(box, box)]
    return found


def _tiles(mask: NDArray[np.bool_], box: Box, margin: Voxel) -> list[tuple[Box, Box]]:
    tiles = []
    sizes = [max(_TILE, 4 * more) for more in margin]
    starts = [range(place.start, place.stop, size) for place, size in zip(box, sizes, strict=True)]
    for corner in product(*starts):
        i, j, k = (
            slice(start, min(start + size, place.stop)) for start, size, place in zip(corner, sizes, box, strict=True)
        )
        around = enlarged((i, j, k), margin, mask.shape)
        if mask[around].any():
            tiles.append(((i, j, k), around))
    return tiles


def _voxels(box: Box) -> int:
    return prod(place.stop - place.start for place in box)


def _with_box(boxes: list[Box], box: Box) -> list[Box]:
    """Return boxes with one more; boxes that share voxels become one."""
    for n, other in enumerate(boxes):
        if all(a.start < b.stop and b.start < a.stop for a, b in zip(box, other, strict=True)):
            i, j, k = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, other, strict=True))
            return _with_box(boxes[:n] + boxes[n + 1 :], (i, j, k))
    return [*boxes, box]


def shifted(box: Box, steps: Sequence[int]) -> Box:
    """Return a box moved by a number of voxels along each axis."""
    i, j, k = (slice(one.start + step, one.stop + step) for one, step in zip(box, steps, strict=True))
    return i, j, k


def inside(box: Box, around: Box) -> Box:
    """Return the place of a box in a larger box that holds it."""
    return shifted(box, [-place.start for place in around])


def enlarged(box: Box, margin: Voxel, shape: tuple[int, ...]) -> Box:
    """Return a box with a margin on both sides along each axis, as far as an array reaches."""
    i, j, k = (
        slice(max(one.start - more, 0), min(one.stop + more, size))
        for one, more, size in zip(box, margin, shape, strict=True)
    )
    return i, j, k


def margin_of(grid: Grid, size_mm: float) -> Voxel:
    """Return the voxels along each axis that cover a length in mm."""
    i, j, k = (ceil(size_mm / spacing_mm + 1e-6) for spacing_mm in grid.spacing_mm)
    return i, j, k


def box_around(voxel: Sequence[int], margin: Voxel, shape: tuple[int, ...]) -> Box:
    """Return the box around a voxel with a margin, as far as an array reaches."""
    i, j, k = (slice(int(n), int(n) + 1) for n in voxel)
    return enlarged((i, j, k), margin, shape)


def distance_mm(targets: NDArray[np.bool_], grid: Grid) -> NDArray[np.float32]:
    """Return the distance (I', J', K') in mm from each voxel to the nearest target; infinite if there is none.

    Args:
        targets: (I', J', K') mask in a part of the grid.
        grid: grid whose voxel size counts.
    """
    import SimpleITK as sitk

    if not targets.any():
        return np.full(targets.shape, np.inf, np.float32)
    image = sitk.GetImageFromArray(targets.astype(np.uint8))
    image.SetSpacing(grid.spacing_mm[::-1])
    # negative inside the targets, where the distance is 0
    signed = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayViewFromImage(signed), 0).astype(np.float32, copy=False)


def relabel(labels: NDArray[np.unsignedinteger], box: Box, part: NDArray[np.bool_], into: int) -> Change:
    """Return the change after which all voxels of a part have a label, whatever label they have now.

    Args:
        labels: (I, J, K) label map.
        box: part of the label map.
        part: (I', J', K') voxels in the box.
        into: new label; 0 for background.
    """
    before = np.array(labels[box])
    after = before.copy()
    after[part] = into
    return Change(box, before, after)


def check_label(labels: NDArray[np.unsignedinteger], label: int, *, background: bool = False) -> None:
    """Refuse a label that the type of a label map can't hold, and background where a structure is required.

    Raises:
        InputError: `edit.label`.
    """
    largest = int(np.iinfo(labels.dtype).max)
    smallest = 0 if background else 1
    if not smallest <= label <= largest:
        text = f"found the label {label}; expected {smallest} to {largest}, which this label map can hold"
        raise InputError("edit.label", text)


def check_size(size_mm: float, what: str, *, zero: bool = False) -> None:
    """Refuse a size in mm that is not a positive number, or is larger than any scan.

    Raises:
        InputError: `edit.size`.
    """
    if not (0 <= size_mm <= MAX_MM) or (size_mm == 0 and not zero):
        least = "at least 0" if zero else "more than 0"
        raise InputError("edit.size", f"found {size_mm:g} mm for {what}; expected {least} and at most {MAX_MM:g} mm")


def check_voxel(voxel: Sequence[int], shape: tuple[int, ...]) -> Voxel:
    """Return a voxel index as integers.

    Raises:
        InputError: `edit.outside`, it lies outside the label map.
    """
    if len(voxel) != 3 or not all(0 <= n < size for n, size in zip(voxel, shape, strict=True)):
        raise InputError(
            "edit.outside",
            f"voxel {tuple(map(int, voxel))} lies outside the scan of shape {tuple(shape)}; click inside",
        )
    i, j, k = (int(n) for n in voxel)
    return i, j, k


def check_in_structure(labels: NDArray[np.unsignedinteger], label: int, voxel: Voxel) -> None:
    """Refuse a voxel that does not belong to a structure.

    Raises:
        InputError: `edit.not_in_structure`.
    """
    if labels[voxel] != label:
        text = f"voxel {voxel} has the label {labels[voxel]}; expected {label}: click on the structure"
        raise InputError("edit.not_in_structure", text)


def check_shape(array: NDArray, labels: NDArray, what: str) -> None:
    """Refuse an array that does not lie on the voxels of a label map.

    Raises:
        InputError: `edit.shape`.
    """
    if array.shape != labels.shape:
        text = f"found {what} of shape {array.shape}; expected {labels.shape}, the shape of the label map"
        raise InputError("edit.shape", text)


def check_slice(axis: int, index: int, shape: tuple[int, ...]) -> None:
    """Refuse a slice outside a label map.

    Raises:
        InputError: `edit.axis`, the axis is not 0, 1 or 2; `edit.outside`, there is no such slice.
    """
    check_axis(axis)
    if not 0 <= index < shape[axis]:
        raise InputError("edit.outside", f"found slice {index} of axis {axis}; expected 0 to {shape[axis] - 1}")


def check_axis(axis: int) -> None:
    """Refuse an axis that an array (I, J, K) does not have.

    Raises:
        InputError: `edit.axis`.
    """
    if axis not in (0, 1, 2):
        raise InputError("edit.axis", f"found axis {axis}; expected 0, 1 or 2")


def along(axis: int, place: int | slice) -> tuple[int | slice, int | slice, int | slice]:
    """Return the index of one slice, or of a range of slices, along an axis."""
    i, j, k = (place if n == axis else slice(None) for n in range(3))
    return i, j, k
