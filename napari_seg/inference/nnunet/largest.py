"""nnU-Net's own step on label maps: all but the largest island of some labels is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import Notice
from napari_seg.volume import Segmentation


def keep_largest(found: Segmentation, steps: Sequence[Sequence[int]]) -> Segmentation:
    """Return a result after the steps, with a notice for each that removed something.

    Args:
        found: the result.
        steps: labels of each step; islands that touch at a corner are one, and of equal ones all stay, as in nnU-Net.
    """
    array = found.array.copy()
    names = {segment.label: segment.name for segment in found.segments}
    notices = []
    for labels in steps:
        if removed := _keep_largest(array, labels):
            named = ", ".join(names.get(label, str(label)) for label in labels)
            text = f"{named}: removed islands of {removed * found.grid.voxel_ml:.2g} ml; the largest is kept"
            notices.append(Notice("result.islands", text))
    result = replace(found, array=array, notices=(*found.notices, *notices))
    counts = result.voxel_counts()
    return replace(result, confidence={n: mean for n, mean in found.confidence.items() if counts.get(n)})


def _keep_largest(array: NDArray[np.unsignedinteger], labels: Sequence[int]) -> int:
    """Remove, in place, all but the largest island of some labels together, and return the number of voxels removed."""
    from scipy import ndimage

    is_chosen = np.zeros(max(int(array.max(initial=0)), *labels) + 1, bool)
    is_chosen[list(labels)] = True
    mask = is_chosen[array]
    removed = 0
    for box in ndimage.find_objects(mask.view(np.uint8)):
        pieces, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
        sizes = np.sum([np.bincount(plane.ravel(), minlength=count + 1) for plane in pieces], axis=0)
        sizes[0] = 0
        is_small = (sizes > 0) & (sizes < sizes.max())
        removed = int(sizes[is_small].sum())
        if removed:
            array[box][is_small[pieces]] = 0
    return removed
