"""Placement of a volume's voxels in napari's world, and the way back to the grid of its file.

napari shows an array with a scale and a translation per axis. It cannot paint properly on a rotated layer, and it
shows the wrong plane of a layer with permuted axes. The array of a layer is therefore a NumPy view of the volume's
array whose axes grow towards the patient's inferior, posterior and left side (I, P, L). napari draws the last axis to
the right and the one before it downwards, so that the planes appear in radiological convention:

    dims.order (0, 1, 2)  axial, seen from the feet: anterior up, the patient's left on the viewer's right
    dims.order (1, 0, 2)  coronal, seen from the front: head up, the patient's left on the viewer's right
    dims.order (2, 0, 1)  sagittal, seen from the patient's left: head up, the face on the viewer's left

An oblique volume leaves a rotation that such a layer cannot express. The world is rotated instead: the rotation of the
first volume in the viewer is the viewer's frame, and every other volume is shown in this frame. A volume that is still
rotated against the frame is resampled for display. The layer keeps the grid of the file, and labels are written on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.geometry import Grid, index_affine, resample

PLANES: Mapping[str, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Plane -> `viewer.dims.order` that shows it."""

AXIS_LABELS = ("I", "P", "L")

MAX_SHIFT_MM = 1e-3
"""Largest shift of a voxel, in mm, for which a small rotation against the viewer's frame is ignored for display."""

LAYER_AXES = -np.eye(3)[::-1]
"""(3, 3); each column is the direction of one of napari's world axes in RAS+."""


@dataclass(frozen=True, eq=False)
class LayerPlacement:
    """Grid of a file, grid of the layer that shows it, and the viewer's frame.

    Attributes:
        native: grid of the file.
        shown: grid of the layer's array; its axes grow towards I, P and L of the frame.
        frame: (3, 3) orthogonal matrix; its columns are the viewer's R, A and S axes in the patient's RAS+. It is a
            rotation unless a layer of another program has axis labels that name other directions.
    """

    native: Grid
    shown: Grid
    frame: NDArray[np.float64]

    @property
    def scale(self) -> tuple[float, float, float]:
        """`scale` of the layer: mm per voxel along I, P and L; always positive."""
        return self.shown.spacing_mm

    @property
    def translate(self) -> tuple[float, float, float]:
        """`translate` of the layer: position of its first voxel, in mm along I, P and L of the frame."""
        # computed from the centre, which a rotation below the limit does not move
        half = np.array(self.scale) * (np.array(self.shown.shape) - 1) / 2
        i, p, le = self.to_layer_mm(self.shown.center_mm) - half
        return float(i), float(p), float(le)

    @property
    def is_view(self) -> bool:
        """Return whether the layer shows the voxels of the file without interpolation."""
        return sorted(self.shown.shape) == sorted(self.native.shape) and np.allclose(
            np.sort(np.abs(self._shown_to_native).ravel()), (0, 0, 0, 0, 0, 0, 1, 1, 1), atol=1e-6
        )

    @property
    def _shown_to_native(self) -> NDArray[np.float64]:
        return index_affine(self.native, self.shown)[:3, :3]

    def for_new_layer(self) -> LayerPlacement:
        """Return the placement of a new layer of the plugin on the same native grid."""
        return place(self.native, self.frame)

    def to_layer_mm(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the napari world coordinates (..., 3) of points (..., 3) in the patient, in mm, RAS+."""
        return np.asarray(points_mm, dtype=np.float64) @ self.frame @ LAYER_AXES

    def to_patient_mm(self, world: ArrayLike) -> NDArray[np.float64]:
        """Return the points (..., 3) in the patient, in mm, RAS+, of napari world coordinates (..., 3)."""
        return np.asarray(world, dtype=np.float64) @ LAYER_AXES.T @ self.frame.T

    def show(self, array: NDArray, *, order: Literal[0, 1] = 1) -> NDArray:
        """Return the array of the layer for an array (I, J, K) on the native grid.

        Args:
            array: values on the native grid.
            order: interpolation order if the array must be resampled: 1 for intensities, 0 for labels.

        Returns:
            A view of `array` if `is_view`, otherwise a resampled copy.
        """
        if self.is_view:
            rotation = np.rint(self._shown_to_native)
            axes = [int(axis) for axis in np.abs(rotation).argmax(axis=0)]
            steps = tuple(slice(None, None, int(rotation[axis, n])) for n, axis in enumerate(axes))
            return array.transpose(axes)[steps]
        background = 0.0 if order == 0 else float(array.min())
        return resample(array, self.native, self.shown, order=order, outside=background)

    def restore(self, labels: NDArray) -> NDArray:
        """Return labels of the layer on the native grid, (I, J, K), contiguous; unchanged in value if `is_view`."""
        return resample(labels, self.shown, self.native, order=0, outside=0)


def anatomical_letters(frame: NDArray[np.float64]) -> str:
    """Return the patient direction that each of napari's world axes grows towards.

    The answer is "IPL" unless a layer of another program set the frame.
    """
    directions = frame @ LAYER_AXES
    nearest = np.abs(directions).argmax(axis=0)
    return "".join("LRPAIS"[2 * axis + (directions[axis, n] > 0)] for n, axis in enumerate(nearest))


def place(grid: Grid, frame: ArrayLike | None = None) -> LayerPlacement:
    """Return the placement of a volume in a viewer.

    Args:
        grid: grid of the volume's file.
        frame: (3, 3) rotation of the viewer, as in `LayerPlacement.frame`; None for the first volume, which sets it.
    """
    sets_frame = frame is None
    rotation = residual_rotation(grid) if frame is None else np.asarray(frame, dtype=np.float64)
    in_frame = _rotate(grid, rotation.T)
    if sets_frame or _shift_mm(in_frame) <= MAX_SHIFT_MM:
        shown = in_frame.reoriented("IPL")
    else:
        # half a voxel beyond the outer faces of the outermost voxels
        faces = in_frame.box((-1, -1, -1), [n + 1 for n in in_frame.shape]).corners_mm
        low, high = faces.min(axis=0), faces.max(axis=0)
        shown = Grid.around((low + high) / 2, (high - low)[::-1], in_frame.reoriented("IPL").spacing_mm, LAYER_AXES)
    return LayerPlacement(grid, _rotate(shown, rotation), rotation)


def residual_rotation(grid: Grid) -> NDArray[np.float64]:
    """Return the rotation (3, 3) that axis order and flips leave; the identity for a grid along the patient's axes."""
    directions = grid.reoriented("IPL").directions @ LAYER_AXES.T
    # the nearest rotation, because headers round directions and a `Grid` may be slightly sheared
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right
    return np.eye(3) if np.allclose(rotation, np.eye(3), atol=1e-6) else rotation


def _shift_mm(grid: Grid) -> float:
    """Return the largest shift of a corner, in mm, if the grid is rotated about its centre onto the axes."""
    from_center = grid.corners_mm - grid.center_mm
    return float(np.linalg.norm(from_center @ residual_rotation(grid).T - from_center, axis=1).max())


def _rotate(grid: Grid, rotation: NDArray[np.float64]) -> Grid:
    affine = grid.affine.copy()
    affine[:3] = rotation @ affine[:3]
    return Grid(grid.shape, affine)
