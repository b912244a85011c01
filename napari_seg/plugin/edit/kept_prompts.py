"""Prompts as plain data of their layer, so that automatic copies and sessions hold them.

Positions are kept in mm in the patient: the layer may be restored in another frame, with other voxels.
"""

from __future__ import annotations

from itertools import product
from math import floor, log10
from typing import Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray

from napari_seg.editing.change import Box
from napari_seg.editing.prompts import Prompts
from napari_seg.errors import InputError
from napari_seg.geometry import Grid
from napari_seg.plugin import kept_data
from napari_seg.plugin.layer_info import placement_of

_NAME = "prompts"

_MAX_VOXELS = 100_000
"""Number of voxels of one kind that are kept; of more, every nth one is."""


def keep_prompts(layer: Labels, label: int, prompts: Prompts) -> None:
    """Keep the prompts for a structure of a layer in place of its earlier ones; those for other structures stay."""
    of_labels = _of_labels(layer)
    of_labels.pop(str(label), None)
    if not prompts.is_empty:
        grid = placement_of(layer).shown
        data: dict[str, Any] = {name: _mm(grid, getattr(prompts, name)) for name in ("positive", "negative")}
        if prompts.box is not None:
            data["box"] = _mm(grid, np.array([*product(*((s.start or 0, s.stop - 1) for s in prompts.box))]))
        of_labels[str(label)] = data
    kept_data.keep(layer, _NAME, of_labels)


def kept_prompts(layer: Labels, label: int) -> Prompts:
    """Return the prompts that are kept for a structure of a layer; empty if there are none, or if they are unusable.

    Prompts outside of the layer are left out. The data may come from the session file of a stranger.
    """
    data = _of_labels(layer).get(str(label))
    if not isinstance(data, dict):
        return Prompts()
    grid = placement_of(layer).shown
    try:
        positive, negative = (_voxels(grid, _limited(data.get(name, []))) for name in ("positive", "negative"))
        taken = set(map(tuple, positive.tolist()))  # after resampling, two prompts may share a voxel
        negative = np.array([one for one in negative.tolist() if tuple(one) not in taken], np.intp).reshape(-1, 3)
        prompts = Prompts(positive, negative, _box(grid, data.get("box")))
        if not prompts.is_empty:
            prompts.check(grid.shape)
    except (InputError, ValueError, TypeError, OverflowError, LookupError):
        return Prompts()
    return prompts


def _of_labels(layer: Labels) -> dict[str, Any]:
    """Return label, as text -> prompts of a layer."""
    data = kept_data.kept(layer).get(_NAME)
    return data if isinstance(data, dict) else {}


def _mm(grid: Grid, voxels: NDArray[np.intp]) -> list[list[float]]:
    """Return positions in mm, rounded to less than a hundredth of a voxel."""
    decimals = max(3, 3 - floor(log10(min(grid.spacing_mm))))
    positions: list[list[float]] = np.round(grid.to_world(_limited(voxels)), decimals).tolist()
    return positions


def _limited(voxels: Any) -> Any:
    """Return the elements of a list or an array, or every nth one if there are too many."""
    return voxels[:: max(-(-len(voxels) // _MAX_VOXELS), 1)]


def _voxels(grid: Grid, positions: Any) -> NDArray[np.intp]:
    """Return the voxels (N, 3) at positions in mm that lie in a grid."""
    mm = np.array(positions, np.float64).reshape(-1, 3)
    if not np.isfinite(mm).all():
        raise ValueError
    voxels = np.rint(grid.to_index(mm))
    inside = ((voxels >= 0) & (voxels < grid.shape)).all(axis=1)
    return voxels[inside].astype(np.intp)


def _box(grid: Grid, corners: Any) -> Box | None:
    """Return the box of a grid around the eight corner voxels of a box, as far as it lies inside."""
    if corners is None:
        return None
    mm = np.array(corners, np.float64).reshape(8, 3)
    if not np.isfinite(mm).all():
        raise ValueError
    indices = np.rint(grid.to_index(mm))
    low, high = np.maximum(indices.min(axis=0), 0), np.minimum(indices.max(axis=0) + 1, grid.shape)
    if (low >= high).any():
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k
