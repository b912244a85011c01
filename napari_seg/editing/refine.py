"""Refine a structure from clicks, scribbles and boxes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change, box_of, change_structure
from napari_seg.editing.prompts import Prompts
from napari_seg.geometry import Grid
from napari_seg.progress import Progress


def refine(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    image: NDArray,
    prompts: Prompts,
    *,
    probability: NDArray[np.uint8] | None = None,
    overwrite: Collection[int] = (),
    progress: Progress | None = None,
) -> Change:
    """Return the change after which a structure agrees with prompts.

    Every positive voxel is in the result, unless it belongs to another structure that may not be overwritten; no
    negative voxel is. Nothing changes outside a region around the prompts.

    Args:
        labels: (I, J, K) label map.
        grid: grid of the label map.
        label: label of the structure; it may be new.
        image: (I, J, K) intensities on the same grid.
        prompts: clicks, scribbles and box.
        probability: (I, J, K) probability of the structure that a network gave, 0 to 255; None if there is none.
        overwrite: labels of other structures that the structure may take voxels from.
        progress: called between steps; it may raise `Cancelled`.

    Raises:
        InputError: `edit.prompt_missing` or `edit.prompt_outside`.
    """
    from scipy import ndimage

    prompts.check(labels.shape)
    box = _region(labels, grid, label, prompts)
    mask = labels[box] == label
    inside = np.array([s.start for s in box])
    intensities = np.asarray(image[box], np.float32)
    if len(prompts.positive):
        i, j, k = prompts.positive.T
        value = float(np.median(image[i, j, k]))
        near = np.abs(intensities - value) < 2 * np.std(intensities)
        parts, _ = ndimage.label(near)
        i, j, k = (prompts.positive - inside).T
        mask |= np.isin(parts, parts[i, j, k])
        mask[i, j, k] = True
    if len(prompts.negative):
        i, j, k = (prompts.negative - inside).T
        mask[i, j, k] = False
    return change_structure(labels, box, label, mask, overwrite)


def warm_up() -> None:
    """Load and compile what `refine` needs; a background thread can call it before the first click."""


def _region(labels: NDArray[np.unsignedinteger], grid: Grid, label: int, prompts: Prompts) -> Box:
    """Return the region in which voxels may change."""
    if prompts.box is not None:
        return prompts.box
    mask = np.zeros(labels.shape, bool)
    i, j, k = np.concatenate([prompts.positive, prompts.negative]).T
    mask[i, j, k] = True
    a, b, c = (int(40 / s) for s in grid.spacing_mm)
    box = box_of(mask, (a, b, c))
    assert box is not None
    return box
