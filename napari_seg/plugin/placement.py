"""Where a volume's voxels lie in napari's world, and the way back to the file's own grid.

napari shows an array with a scale and a translation per axis; layers with a rotation can't be painted on
properly, and permuted ones show the wrong plane. So a layer's array is a NumPy view of the volume's array whose
axes grow towards the patient's Inferior, Posterior and Left side. napari draws the last axis to the right
and the one before it downwards; the planes then come out the way a radiologist reads them:

    dims.order (0, 1, 2)  axial, seen from the feet: anterior up, the patient's left on the viewer's right
    dims.order (1, 0, 2)  coronal, seen from the front: head up, the patient's left on the viewer's right
    dims.order (2, 0, 1)  sagittal, seen from the patient's left: head up, the face on the viewer's left

An oblique volume leaves a rotation that such a layer can't express. The world is turned instead: `frame` is the
rotation of the first volume in the viewer, every other volume is shown in it, and what would still be
rotated is resampled for display. The file's own grid stays in the layer's metadata, and labels are written on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.geometry import Grid, index_affine, resample

PLANES: Mapping[str, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""`viewer.dims.order` of each plane."""

AXIS_LABELS = ("I", "P", "L")

MAX_MOVED_MM = 1e-3
"""A volume turned against the viewer's frame is resampled for display if showing it straight moved a voxel by more."""

LAYER_AXES = -np.eye(3)[::-1]
"""Columns: the directions of napari's three world axes in RAS+."""


@dataclass(frozen=True, eq=False)
class LayerPlacement:
    """How the voxels of one grid are shown as a layer.

    Attributes:
        native: the file's own grid.
        shown: the grid that the layer's array lies on; its axes grow towards I, P and L of the frame.
        frame: (3, 3) orthogonal; its columns are the viewer's R, A and S axes in the patient's RAS+. A rotation,
            but for layers of other programs whose axis labels name other directions.
    """

    native: Grid
    shown: Grid
    frame: NDArray[np.float64]

    @property
    def scale(self) -> tuple[float, float, float]:
        """The layer's `scale`, mm along I, P, L; always positive."""
        return self.shown.spacing_mm

    @property
    def translate(self) -> tuple[float, float, float]:
        """The layer's `translate`: where its first voxel lies, mm along I, P, L of the frame."""
        # Anchored at the centre: there a leftover rotation below the limit moves nothing.
        half = np.array(self.scale) * (np.array(self.shown.shape) - 1) / 2
        i, p, le = self.to_layer_mm(self.shown.center_mm) - half
        return float(i), float(p), float(le)

    @property
    def is_view(self) -> bool:
        """Whether the layer shows the file's own voxels, none of them interpolated."""
        return sorted(self.shown.shape) == sorted(self.native.shape) and np.allclose(
            np.sort(np.abs(self._turn).ravel()), (0, 0, 0, 0, 0, 0, 1, 1, 1), atol=1e-6
        )

    @property
    def _turn(self) -> NDArray[np.float64]:
        return index_affine(self.native, self.shown)[:3, :3]

    def for_new_layer(self) -> LayerPlacement:
        """Return where the plugin shows a new layer on the same native grid, next to a layer of another program."""
        return place(self.native, self.frame)

    def to_layer_mm(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) napari world coordinates of points (..., 3) in the patient, mm, RAS+."""
        return np.asarray(points_mm, dtype=np.float64) @ self.frame @ LAYER_AXES

    def to_patient_mm(self, world: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) points in the patient, mm, RAS+, of napari world coordinates (..., 3)."""
        return np.asarray(world, dtype=np.float64) @ LAYER_AXES.T @ self.frame.T

    def show(self, array: NDArray, *, order: Literal[0, 1] = 1) -> NDArray:
        """An array (I, J, K) of the file's grid as the layer's array.

        Args:
            array: on the native grid.
            order: 1 for intensities, 0 for labels; only used where the volume must be resampled.

        Returns:
            A view of `array` whenever `is_view`.
        """
        if self.is_view:
            turn = np.rint(self._turn)
            axes = [int(axis) for axis in np.abs(turn).argmax(axis=0)]
            steps = tuple(slice(None, None, int(turn[axis, n])) for n, axis in enumerate(axes))
            return array.transpose(axes)[steps]
        background = 0.0 if order == 0 else float(array.min())
        return resample(array, self.native, self.shown, order=order, outside=background)

    def restore(self, labels: NDArray) -> NDArray:
        """A layer's labels on the file's own grid, (I, J, K), contiguous; bit by bit whenever `is_view`."""
        return resample(labels, self.shown, self.native, order=0, outside=0)


def letters_of(frame: NDArray[np.float64]) -> str:
    """Return the side of the patient that each of napari's world axes grows towards: "IPL" but for foreign layers."""
    directions = frame @ LAYER_AXES
    nearest = np.abs(directions).argmax(axis=0)
    return "".join("LRPAIS"[2 * axis + (directions[axis, n] > 0)] for n, axis in enumerate(nearest))


def place(grid: Grid, frame: ArrayLike | None = None) -> LayerPlacement:
    """How to show a grid in a viewer.

    Args:
        grid: the volume's own grid.
        frame: (3, 3) rotation of the viewer, as in `LayerPlacement.frame`; None for the first volume, which sets
            it.
    """
    own = frame is None
    rotation = residual_rotation(grid) if frame is None else np.asarray(frame, dtype=np.float64)
    turned = _rotate(grid, rotation.T)
    if own or _moved_mm(turned) <= MAX_MOVED_MM:
        shown = turned.reoriented("IPL")
    else:
        # Half a voxel more than the outer faces of the outermost voxels.
        faces = turned.box((-1, -1, -1), [n + 1 for n in turned.shape]).corners_mm
        low, high = faces.min(axis=0), faces.max(axis=0)
        shown = Grid.around((low + high) / 2, (high - low)[::-1], turned.reoriented("IPL").spacing_mm, LAYER_AXES)
    return LayerPlacement(grid, _rotate(shown, rotation), rotation)


def residual_rotation(grid: Grid) -> NDArray[np.float64]:
    """(3, 3) the rotation that is left after axis order and flips; the identity for a straight grid."""
    directions = grid.reoriented("IPL").directions @ LAYER_AXES.T
    # The nearest rotation: headers round their directions, and a little shear is let through.
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right
    return np.eye(3) if np.allclose(rotation, np.eye(3), atol=1e-6) else rotation


def _moved_mm(grid: Grid) -> float:
    """How far its outermost voxels would move if a grid were turned straight about its centre."""
    arms = grid.corners_mm - grid.center_mm
    return float(np.linalg.norm(arms @ residual_rotation(grid).T - arms, axis=1).max())


def _rotate(grid: Grid, rotation: NDArray[np.float64]) -> Grid:
    affine = grid.affine.copy()
    affine[:3] = rotation @ affine[:3]
    return Grid(grid.shape, affine)
