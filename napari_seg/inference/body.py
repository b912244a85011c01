"""Body mask: the part of an image that can have content, the body or the surroundings of a coarse result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_seg.geometry import Grid, index_affine, resample
from napari_seg.inference.windows.layout import Triple
from napari_seg.volume import Volume

COARSE_MM = 3.0
"""Spacing of the samples in which the body is found; each is the mean of 27."""

AIR_HU = -800.0
"""CT: a mean below this is air: high enough to ignore noise, low enough to keep skin mixed with two thirds of air."""

AIR_FRACTION = 0.25
"""MR: a mean below this fraction of Otsu's threshold is air: so low that noise is kept rather than an organ lost."""


@dataclass(frozen=True)
class Body:
    """The part of an image that can have content, such as the body.

    Attributes:
        mask: (i, j, k) bool, on every `stride`-th voxel of the image.
        stride: stride of the mask along each axis.
        shape: shape of the image.
    """

    mask: NDArray[np.bool_]
    stride: Triple
    shape: Triple

    def box(self, min_length: Triple, multiple: Triple) -> tuple[slice, slice, slice]:
        """Return the bounding box of the body, enlarged to a required length along each axis.

        Args:
            min_length: smallest length of the box, as far as the image has it.
            multiple: number that the length is rounded up to a multiple of, as far as the image has it.
        """
        parts = []
        for axis, (stride, length) in enumerate(zip(self.stride, self.shape, strict=True)):
            occupied = np.flatnonzero(self.mask.any(axis=tuple(n for n in range(3) if n != axis)))
            begin, end = int(occupied[0]) * stride, min((int(occupied[-1]) + 1) * stride, length)
            enlarged = min(max(-(-(end - begin) // multiple[axis]) * multiple[axis], min_length[axis]), length)
            begin = min(max(begin - (enlarged - (end - begin)) // 2, 0), length - enlarged)
            parts.append(slice(begin, begin + enlarged))
        return parts[0], parts[1], parts[2]

    def reaches(self, start: Triple, size: Triple) -> bool:
        """Return whether any of the body lies in a box of the image; the box may extend beyond the image."""
        parts = []
        for begin, length, stride in zip(start, size, self.stride, strict=True):
            parts.append(slice(max(begin, 0) // stride, max(-(-(begin + length) // stride), 0)))
        return bool(self.mask[tuple(parts)].any())


def find_body(volume: Volume, grid: Grid, modality: str) -> Body | None:
    """Return the body in a CT or MR scan; None if it can't be separated from air, as in other images.

    Args:
        volume: the scan; its first channel is used.
        grid: grid of the image that the body mask is for, in the scan's world.
        modality: DICOM's code of the modality.
    """
    if modality not in ("CT", "MR"):
        return None
    from scipy import ndimage

    stride, coarse = _coarse(grid)
    smooth = ndimage.uniform_filter(resample(volume.array[0], volume.grid, coarse).astype(np.float32), 3)
    if not np.isfinite(smooth).all():
        return None
    if modality == "CT":
        mask = smooth > AIR_HU
    else:
        low = float(smooth.min())
        mask = smooth > low + AIR_FRACTION * (otsu_threshold(smooth) - low)
    if not mask.any():
        return None
    return Body(_without_holes(mask), stride, grid.shape)


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask with everything between two of its voxels along any axis: lungs, gas, dark tissue next to fat."""
    whole = mask.copy()
    for axis in range(3):
        before = np.maximum.accumulate(mask, axis=axis)
        behind = np.flip(np.maximum.accumulate(np.flip(mask, axis), axis=axis), axis)
        whole |= before & behind
    return whole


def around(label_map: NDArray[np.unsignedinteger], scan: Grid, grid: Grid, margin_mm: float) -> Body | None:
    """Return the part of an image within a margin of any label; None if there is no label in it.

    Args:
        label_map: (I, J, K), result of a coarse pass.
        scan: grid of the label map.
        grid: grid of the image.
        margin_mm: margin around the labels in mm.
    """
    from scipy import ndimage

    stride, coarse = _coarse(grid)
    mask = np.zeros(coarse.shape, dtype=bool)
    to_coarse = index_affine(coarse, scan)
    for i, plane in enumerate(label_map):
        places = np.vstack([np.full(np.count_nonzero(plane), i), *np.nonzero(plane)])
        nearest = np.rint(to_coarse[:3, :3] @ places + to_coarse[:3, 3:]).astype(int)
        inside = ((nearest >= 0) & (nearest < np.array(coarse.shape)[:, None])).all(axis=0)
        mask[tuple(nearest[:, inside])] = True
    if not mask.any():
        return None
    rounded_mm = float(np.linalg.norm(coarse.spacing_mm)) / 2
    reached = ndimage.distance_transform_edt(~mask, sampling=coarse.spacing_mm) <= margin_mm + rounded_mm
    return Body(reached, stride, grid.shape)


def _coarse(grid: Grid) -> tuple[Triple, Grid]:
    """Return the stride of the samples along each axis of a grid, and the grid of the samples."""
    i, j, k = (min(max(1, round(COARSE_MM / mm)), n) for mm, n in zip(grid.spacing_mm, grid.shape, strict=True))
    stride = np.array([i, j, k])
    affine = grid.affine @ np.diag([*stride, 1.0])
    affine[:3, 3] = grid.to_world((stride - 1) / 2)
    a, b, c = (int(n) for n in -(-np.array(grid.shape) // stride))
    return (i, j, k), Grid((a, b, c), affine)


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the threshold that maximises the variance between the two groups of values below and above it.

    Otsu 1979, doi:10.1109/TSMC.1979.4310076. The brightest 0.5 % count as one value, so that a few bright voxels do not
    decide the threshold.
    """
    clipped = np.minimum(values, np.percentile(values, 99.5))
    counts, edges = np.histogram(clipped, bins=256)
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(middles[int(np.nanargmax(variance))]) if np.isfinite(variance).any() else float(clipped.min())
