"""Copy a structure from one slice to another, or to the mirror side of the patient."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Change, box_of, change_structure
from napari_seg.editing.plane import Plane
from napari_seg.editing.structure import along, check_label, check_slice, find_structure
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
    ends = np.array(np.meshgrid(*[(place.start, place.stop - 1) for place in source], indexing="ij")).reshape(3, -1)
    mirrored = to_source[:3, :3] @ ends + to_source[:3, 3:]
    low = np.maximum(np.floor(mirrored.min(axis=1)).astype(int), 0)
    high = np.minimum(np.ceil(mirrored.max(axis=1)).astype(int) + 1, labels.shape)
    if (low >= high).any():
        text = f"the mirror image of structure {label} lies outside the scan; choose another plane"
        raise InputError("edit.outside", text)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    box = (i, j, k)
    copied = np.ones(tuple(high - low), bool)
    places = []
    for row, place in zip(to_source[:3], source, strict=True):
        x, y, z = (row[n] * np.arange(box[n].start, box[n].stop) for n in range(3))
        index = np.floor((x + row[3] + 0.5 + 1e-9)[:, None, None] + y[:, None] + z).astype(np.intp) - place.start
        copied &= (index >= 0) & (index < place.stop - place.start)
        places.append(index)
    copied[copied] = mask[tuple(index[copied] for index in places)]
    if not copied.any():
        text = f"the mirror image of structure {label} lies outside the scan; choose another plane"
        raise InputError("edit.outside", text)
    return change_structure(labels, box, into, copied | (labels[box] == into), overwrite)
