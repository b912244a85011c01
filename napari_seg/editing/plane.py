"""Plane in the patient: where a structure is cut or mirrored, and the ways to define one.

No plane is guessed: each function here states in one sentence which plane it returns, and the caller chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box
from napari_seg.editing.structure import check_axis, find_structure
from napari_seg.errors import InputError
from napari_seg.geometry import Grid


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane in mm, RAS+. Lists and tuples of numbers are accepted.

    Attributes:
        point_mm: (3,) a point on the plane.
        normal: (3,) direction at right angles to the plane; it is given a length of 1.

    Raises:
        InputError: `edit.plane`, the point is not finite or the normal has no direction.
    """

    point_mm: NDArray[np.float64]
    normal: NDArray[np.float64]

    def __post_init__(self) -> None:
        point, direction = np.array(self.point_mm, np.float64), np.array(self.normal, np.float64)
        if point.shape != (3,) or direction.shape != (3,) or not np.isfinite([*point, *direction]).all():
            text = "found a plane without a finite point and normal; expected three numbers each"
            raise InputError("edit.plane", text)
        length = float(np.linalg.norm(direction))
        if length < 1e-9:
            raise InputError("edit.plane", "the plane has no direction: choose two different points")
        object.__setattr__(self, "point_mm", point)
        object.__setattr__(self, "normal", direction / length)

    def distances_mm(self, grid: Grid, box: Box) -> NDArray[np.float64]:
        """Return the distance (I', J', K') in mm of each voxel of a box; positive on the side of the normal."""
        slopes = self.normal @ grid.affine[:3, :3]
        start = float(self.normal @ (grid.affine[:3, 3] - self.point_mm))
        i, j, k = (
            slope * np.arange(place.start, place.stop, dtype=np.float64)
            for slope, place in zip(slopes, box, strict=True)
        )
        return (i + start)[:, None, None] + j[:, None] + k

    def reflection(self) -> NDArray[np.float64]:
        """Return the (4, 4) matrix that maps each point in mm to its mirror image."""
        matrix = np.eye(4)
        matrix[:3, :3] -= 2 * np.outer(self.normal, self.normal)
        matrix[:3, 3] = 2 * (self.normal @ self.point_mm) * self.normal
        return matrix


def plane_through_line(grid: Grid, first: Sequence[float], second: Sequence[float], axis: int) -> Plane:
    """Return the plane through a line that was drawn in a slice and through the same line in all other slices.

    Its normal is the direction of the axis times (vector product) the direction from the first to the second point.

    Args:
        grid: grid of the slice.
        first: voxel index (3,) of a point of the line, may be fractional.
        second: voxel index (3,) of another point.
        axis: index axis at right angles to the slice.

    Raises:
        InputError: `edit.axis`; `edit.plane`, both points are the same in the slice.
    """
    check_axis(axis)
    start, end = grid.to_world([first, second])
    return Plane(start, np.cross(grid.directions[:, axis], end - start))


def center_plane(grid: Grid) -> Plane:
    """Return the plane through the centre of the field of view, at right angles to the index axis nearest to x.

    Its mirror image of a voxel is a voxel, also on an oblique grid. It is the plane of symmetry of the patient only if
    the patient lies in the centre of the field of view and along its axes. The normal points to the patient's right.
    """
    axes, flips = grid.patient_axes()
    return Plane(grid.center_mm, grid.directions[:, axes[0]] * (-1 if flips[0] else 1))


def plane_between(labels: NDArray[np.unsignedinteger], grid: Grid, first: int, second: int) -> Plane:
    """Return the plane halfway between the centroids of two structures, such as both kidneys, that mirrors one on the
    other. The normal points to the second structure.

    Raises:
        InputError: `edit.absent`; `edit.plane`, both have the same centroid.
    """
    centers = []
    for label in (first, second):
        box, mask = find_structure(labels, label)
        centers.append(grid.to_world(np.argwhere(mask).mean(axis=0) + [place.start for place in box]))
    return Plane((centers[0] + centers[1]) / 2, centers[1] - centers[0])
