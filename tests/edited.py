"""Label maps for the tests of editing: on a grid that is oblique, anisotropic, flipped and of three different sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from phantoms import oblique_grid

from napari_seg.editing.change import Change
from napari_seg.geometry import Grid

GRID = oblique_grid((20, 26, 14), (1.5, 1.25, 2.5))


def points_mm(grid: Grid = GRID) -> NDArray[np.float64]:
    """Return the centre (I, J, K, 3) of each voxel in mm, RAS+."""
    return grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))


def ball(center_index: tuple[float, float, float], radius_mm: float, grid: Grid = GRID) -> NDArray[np.bool_]:
    """Return the voxels whose centres lie within a distance of a point, which is given as fractional index."""
    return np.linalg.norm(points_mm(grid) - grid.to_world(center_index), axis=-1) <= radius_mm


def nearest_mm(voxels: NDArray[np.bool_], grid: Grid = GRID) -> NDArray[np.float64]:
    """Return the distance in mm of each voxel to the nearest of some voxels, compared one by one."""
    points = points_mm(grid)
    distances = np.full(grid.shape, np.inf)
    for point in points[voxels]:
        distances = np.minimum(distances, np.linalg.norm(points - point, axis=-1))
    return distances


def edited(labels: NDArray[np.unsignedinteger], change: Change) -> NDArray[np.unsignedinteger]:
    """Return a label map after a change, which must not have modified it before."""
    assert np.array_equal(change.before, labels[change.box])
    after = labels.copy()
    change.apply(after)
    return after
