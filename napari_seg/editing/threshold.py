"""Paint or trim a structure by a range of intensities, and suggest the range from a region."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change, change_structure
from napari_seg.editing.structure import check_label, check_shape, find_structure, relabel
from napari_seg.errors import InputError
from napari_seg.geometry import Grid


def threshold_stroke(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    image: NDArray,
    stroke: NDArray[np.intp],
    low: float,
    high: float,
    overwrite: Collection[int] = (),
) -> Change:
    """Return the change that paints those voxels of a stroke whose intensity is in a range.

    Args:
        labels: (I, J, K) label map, before the stroke.
        grid: its grid.
        label: label of the structure, which may be new.
        image: (I, J, K) intensities on the same grid.
        stroke: (N, 3) indices of the voxels under the brush.
        low: lowest intensity, inclusive.
        high: highest intensity, inclusive.
        overwrite: labels of other structures that the structure may take voxels from.

    Raises:
        InputError: `edit.shape`, `edit.label`; `edit.outside`, the stroke has no voxels or reaches outside the scan.
    """
    check_label(labels, label)
    check_shape(image, labels, "an image")
    voxels = np.asarray(stroke)
    is_list = voxels.ndim == 2 and voxels.shape[1] == 3 and len(voxels) > 0
    if not is_list or (voxels < 0).any() or (voxels >= labels.shape).any():
        raise InputError("edit.outside", "the stroke has no voxels, or reaches outside the scan; paint inside")
    start, stop = voxels.min(axis=0), voxels.max(axis=0) + 1
    i, j, k = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    box = (i, j, k)
    painted = np.zeros(tuple(stop - start), bool)
    painted[tuple((voxels - start).T)] = True
    painted &= (image[box] >= low) & (image[box] <= high)
    return change_structure(labels, box, label, painted | (labels[box] == label), overwrite)


def threshold_within(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    image: NDArray,
    low: float,
    high: float,
    *,
    into: int = 0,
) -> Change:
    """Return the change that keeps of a structure only the voxels whose intensity is in a range.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        image: (I, J, K) intensities on the same grid.
        low: lowest intensity, inclusive.
        high: highest intensity, inclusive.
        into: label of the other voxels; 0 removes them.

    Raises:
        InputError: `edit.absent`, `edit.shape`, `edit.label`.
    """
    check_label(labels, into, background=True)
    check_shape(image, labels, "an image")
    box, mask = find_structure(labels, label)
    values = image[box]
    return relabel(labels, box, mask & ~((values >= low) & (values <= high)), into)


def otsu_range(image: NDArray, box: Box, intensity: float | None = None) -> tuple[float, float]:
    """Return the range (lowest, highest) of one of the two groups of intensities in a region, by Otsu's method.

    Args:
        image: (I, J, K) intensities.
        box: the region, such as the box around a structure.
        intensity: an intensity of the requested group, such as that at a click; None: the brighter group.

    Raises:
        InputError: `edit.flat`, all intensities in the region are equal, or none is a number.
    """
    from skimage.filters import threshold_otsu

    values = image[box][np.isfinite(image[box])]
    if values.size == 0 or values.min() == values.max():
        raise InputError("edit.flat", "the intensities in the region are all equal; choose a region with two tissues")
    threshold = threshold_otsu(values)
    is_bright = intensity is None or intensity > threshold
    group = values[(values > threshold) == is_bright]
    return float(group.min()), float(group.max())
