"""Cut a structure by a plane, or by a lasso through many slices.

The part that is cut off is removed, or given another label. A voxel belongs to the side on which its centre lies.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.editing.change import Change
from napari_seg.editing.plane import Plane
from napari_seg.editing.structure import check_axis, check_label, find_structure, relabel
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

ON_PLANE_MM = 1e-6
"""Distance in mm within which a voxel lies on a plane."""


def cut_by_plane(labels: NDArray[np.unsignedinteger], grid: Grid, label: int, plane: Plane, *, into: int = 0) -> Change:
    """Return the change that cuts off the part of a structure on the side of a plane where the normal points to.

    Voxels on the plane stay.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        plane: plane in mm, RAS+; see `napari_seg.editing.plane` for the plane through a line in a slice.
        into: label of the part that is cut off; 0 removes it.

    Raises:
        InputError: `edit.absent`, `edit.label`.
    """
    check_label(labels, into, background=True)
    box, mask = find_structure(labels, label)
    return relabel(labels, box, mask & (plane.distances_mm(grid, box) > ON_PLANE_MM), into)


def cut_by_lasso(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    polygon: ArrayLike,
    axis: int,
    *,
    slices: tuple[int, int] | None = None,
    cut_off: Literal["inside", "outside"] = "inside",
    into: int = 0,
) -> Change:
    """Return the change that cuts off what lies inside or outside of a polygon, in all slices or in some.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        polygon: (N, 2) corners in a slice, as fractional voxel indices along the other two axes in ascending order; it
            is closed by itself.
        axis: index axis at right angles to the slice.
        slices: first slice, and the one after the last; None: all slices. Other slices do not change.
        cut_off: part to cut off.
        into: label of the part that is cut off; 0 removes it.

    Raises:
        InputError: `edit.absent`, `edit.axis`, `edit.label`; `edit.polygon`, the polygon has less than three corners;
            `edit.outside`, there are no such slices.
    """
    from skimage.draw import polygon2mask

    check_axis(axis)
    check_label(labels, into, background=True)
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        text = f"found a polygon of shape {corners.shape}; expected (N, 2) with at least three corners"
        raise InputError("edit.polygon", text)
    first, end = slices or (0, labels.shape[axis])
    if not 0 <= first < end <= labels.shape[axis]:
        text = (
            f"found slices {first} to {end} (exclusive) of axis {axis}; expected a range in 0 to {labels.shape[axis]}"
        )
        raise InputError("edit.outside", text)
    box, mask = find_structure(labels, label)
    rows, columns = (place for n, place in enumerate(box) if n != axis)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    is_cut = polygon2mask(shape, corners - [rows.start, columns.start])
    if cut_off == "outside":
        is_cut = ~is_cut
    place = box[axis]
    in_range = slice(max(first - place.start, 0), max(end - place.start, 0))
    part = np.zeros_like(mask)
    np.moveaxis(part, axis, 0)[in_range] = np.moveaxis(mask, axis, 0)[in_range] & is_cut
    return relabel(labels, box, part, into)
