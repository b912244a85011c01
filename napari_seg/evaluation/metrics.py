"""Numbers that compare a segmentation with a reference; plain functions on arrays."""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segmentation


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Twice the shared voxels over the sum of both (Dice 1945, doi:10.2307/1932409).

    Both empty gives nan, so that a structure that is rightly not found neither lifts nor lowers a mean; one
    empty gives 0.

    Args:
        prediction: (I, J, K).
        reference: (I, J, K) on the same grid.
    """
    size = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return nan if size == 0 else 2.0 * int(np.count_nonzero(prediction & reference)) / size


def dice_per_label(prediction: Segmentation, reference: Segmentation) -> dict[int, float]:
    """Label -> Dice, for every label above 0 that either of them holds or names.

    A reference stored with other axes of the same voxels is turned first; nothing is interpolated.

    Raises:
        InputError: `geometry.mismatch`, the two lie on different grids.
    """
    array = on_grid(reference, prediction.grid)
    labels = set(np.unique(prediction.array)) | set(np.unique(array))
    labels |= {s.label for s in (*prediction.segments, *reference.segments)}
    return {int(n): dice(prediction.array == n, array == n) for n in sorted(labels) if n > 0}


def on_grid(segmentation: Segmentation, grid: Grid) -> NDArray[np.unsignedinteger]:
    """The label map with its voxels in the order of another grid that holds the same voxels.

    Raises:
        InputError: `geometry.mismatch`, the grids hold different voxels.
    """
    if not segmentation.grid.reoriented(grid.orientation).matches(grid, tolerance_mm=min(grid.spacing_mm) / 100):
        raise InputError(
            "geometry.mismatch",
            f"the two label maps lie on different grids ({_told(segmentation.grid)} and {_told(grid)}); expected the "
            "same voxels; resample one of them on the other's grid",
        )
    array: NDArray[np.unsignedinteger] = resample(segmentation.array, segmentation.grid, grid, order=0, outside=0)
    return array


def _told(grid: Grid) -> str:
    spacing = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
    return f"{' x '.join(map(str, grid.shape))} voxels of {spacing} mm, {grid.orientation}"
