"""Copy a structure from one slice to another, or to the mirror side of the patient."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change, box_of, change_structure
from napari_seg.editing.plane import Plane
from napari_seg.editing.structure import along, check_label, check_slice, find_structure, pieces, shifted
from napari_seg.errors import InputError
from napari_seg.geometry import Grid


def copy_to_slice(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    axis: int,
    source: int,
    target: int,
    *,
    into: int | None = None,
    overwrite: Collection[int] = (),
) -> Change:
    """Return the change that copies a structure from one slice to another, such as the next one.

    What the target structure has in that slice already stays.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        axis: index axis at right angles to the slices.
        source: slice to copy from.
        target: slice to copy to.
        into: label of the copy; None: the same label.
        overwrite: labels of other structures that the copy may take voxels from.

    Raises:
        InputError: `edit.empty_slice`, the structure has no voxels in the source slice; `edit.outside`, there is no
            such slice; `edit.axis`, `edit.label`.
    """
    into = label if into is None else into
    check_label(labels, label)
    check_label(labels, into)
    for index in (source, target):
        check_slice(axis, index, labels.shape)
    flat = box_of(labels[along(axis, slice(source, source + 1))] == label)
    if flat is None:
        text = f"structure {label} has no voxels in slice {source} of axis {axis}; choose a slice that shows it"
        raise InputError("edit.empty_slice", text)
    i, j, k = (slice(target, target + 1) if n == axis else place for n, place in enumerate(flat))
    box = (i, j, k)
    i, j, k = (slice(source, source + 1) if n == axis else place for n, place in enumerate(flat))
    return change_structure(labels, box, into, (labels[i, j, k] == label) | (labels[box] == into), overwrite)


def copy_to_mirror(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    plane: Plane,
    *,
    into: int,
    overwrite: Collection[int] = (),
) -> Change:
    """Return the change that adds the mirror image of a structure.

    Each voxel gets the label if the mirror image of its centre lies in a voxel of the structure, so that nothing is
    interpolated and no gaps appear, also on an oblique grid. What would lie outside the field of view is left out.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        plane: plane of symmetry; see `center_plane` and `plane_between` of `napari_seg.editing.plane`.
        into: label of the mirror image.
        overwrite: labels of other structures that the mirror image may take voxels from.

    Raises:
        InputError: `edit.absent`, `edit.label`; `edit.outside`, the whole mirror image lies outside the scan.
    """
    check_label(labels, into)
    source, mask = find_structure(labels, label)
    to_source = np.linalg.inv(grid.affine) @ plane.reflection() @ grid.affine  # its own inverse
    parts = []
    for piece in pieces(mask):
        place = shifted(piece, [one.start for one in source])
        target = _mirrored_box(place, to_source, labels.shape)
        if target is not None:
            parts.append((target, _sampled(mask[piece], place, to_source, target)))
    parts = [(target, copied) for target, copied in parts if copied.any()]
    if not parts:
        text = f"the mirror image of structure {label} lies outside the scan; choose another plane"
        raise InputError("edit.outside", text)
    i, j, k = (
        slice(min(target[n].start for target, _ in parts), max(target[n].stop for target, _ in parts)) for n in range(3)
    )
    box = (i, j, k)
    mirrored = labels[box] == into
    for target, copied in parts:
        mirrored[shifted(target, [-one.start for one in box])] |= copied
    return change_structure(labels, box, into, mirrored, overwrite)


def _mirrored_box(box: Box, to_source: NDArray[np.float64], shape: tuple[int, ...]) -> Box | None:
    """Return the box that holds the mirror image of a box, as far as the label map reaches; None if it lies outside."""
    ends = np.array(np.meshgrid(*[(one.start - 0.5, one.stop - 0.5) for one in box], indexing="ij")).reshape(3, -1)
    mirrored = to_source[:3, :3] @ ends + to_source[:3, 3:]
    low = np.maximum(np.floor(mirrored.min(axis=1)).astype(int), 0)
    high = np.minimum(np.ceil(mirrored.max(axis=1)).astype(int) + 1, shape)
    if (low >= high).any():
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def _sampled(mask: NDArray[np.bool_], place: Box, to_source: NDArray[np.float64], target: Box) -> NDArray[np.bool_]:
    """Return whether each voxel of a target box has its mirror image in a voxel of a mask.

    Args:
        mask: (I', J', K') voxels of the structure.
        place: place of the mask in the label map.
        to_source: (4, 4) matrix from a voxel index to that of its mirror image.
        target: box in the label map.
    """
    copied = np.ones(tuple(one.stop - one.start for one in target), bool)
    indices = []
    for row, source in zip(to_source[:3], place, strict=True):
        i, j, k = (row[n] * np.arange(target[n].start, target[n].stop) for n in range(3))
        index = np.floor((i + row[3] + 0.5 + 1e-9)[:, None, None] + j[:, None] + k).astype(np.int32) - source.start
        copied &= (index >= 0) & (index < source.stop - source.start)
        indices.append(index)
    copied[copied] = mask[tuple(index[copied] for index in indices)]
    return copied
