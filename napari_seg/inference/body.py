"""Where in an image there can be something to find: in the body, or around what a coarse pass found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_seg.geometry import Grid, index_affine, resample
from napari_seg.inference.windows.layout import Triple
from napari_seg.volume import Volume

COARSE_MM = 3.0
"""Distance of the samples in which the body is sought; each counts as the mean of 27."""

AIR_HU = -800.0
"""CT: a mean below this is air. High enough for noise, low enough for skin beside two thirds of air."""

AIR_SHARE = 0.25
"""MR: a mean below this share of Otsu's threshold is air. So low that rather noise is kept than a dark organ lost."""


@dataclass(frozen=True)
class Body:
    """The body in an image, or whatever else of it is worth a look.

    Attributes:
        mask: (i, j, k) on every `stride`-th voxel of the image.
        stride: of the mask along each axis.
        shape: of the image.
    """

    mask: NDArray[np.bool_]
    stride: Triple
    shape: Triple

    def box(self, least: Triple, multiple: Triple) -> tuple[slice, slice, slice]:
        """The part of the image that holds all of it, along each axis so long at least, and such a multiple, if it can.

        Args:
            least: that the part must have where the image has it.
            multiple: that its length is of, where the image is long enough.
        """
        parts = []
        for axis, (stride, length) in enumerate(zip(self.stride, self.shape, strict=True)):
            held = np.flatnonzero(self.mask.any(axis=tuple(n for n in range(3) if n != axis)))
            begin, end = int(held[0]) * stride, min((int(held[-1]) + 1) * stride, length)
            wanted = min(max(-(-(end - begin) // multiple[axis]) * multiple[axis], least[axis]), length)
            begin = min(max(begin - (wanted - (end - begin)) // 2, 0), length - wanted)
            parts.append(slice(begin, begin + wanted))
        return parts[0], parts[1], parts[2]

    def reaches(self, start: Triple, size: Triple) -> bool:
        """Whether any of it lies in a box of the image, which may go beyond the image."""
        parts = []
        for begin, length, stride in zip(start, size, self.stride, strict=True):
            parts.append(slice(max(begin, 0) // stride, max(-(-(begin + length) // stride), 0)))
        return bool(self.mask[tuple(parts)].any())


def find_body(volume: Volume, grid: Grid, modality: str) -> Body | None:
    """The body of a CT or MR scan; None where it can't be told from air, as in other images.

    Args:
        volume: the scan; its first channel counts.
        grid: of the image in which the body is wanted, in the scan's world.
        modality: DICOM's letters.
    """
    from scipy import ndimage

    if modality not in ("CT", "MR"):
        return None
    stride, coarse = _coarse(grid)
    smooth = ndimage.uniform_filter(resample(volume.array[0], volume.grid, coarse).astype(np.float32), 3)
    if not np.isfinite(smooth).all():
        return None
    if modality == "CT":
        mask = smooth > AIR_HU
    else:
        low = float(smooth.min())
        mask = smooth > low + AIR_SHARE * (otsu_threshold(smooth) - low)
    if not mask.any():
        return None
    return Body(_without_holes(mask), stride, grid.shape)


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With all that lies between two places of the mask along any axis: lungs, gas, and what is dark beside fat."""
    whole = mask.copy()
    for axis in range(3):
        before = np.maximum.accumulate(mask, axis=axis)
        behind = np.flip(np.maximum.accumulate(np.flip(mask, axis), axis=axis), axis)
        whole |= before & behind
    return whole


def around(label_map: NDArray[np.unsignedinteger], scan: Grid, grid: Grid, margin_mm: float) -> Body | None:
    """What lies no farther than a margin from any label; None if there is none in the image.

    Args:
        label_map: (I, J, K), of a coarse pass.
        scan: where it lies.
        grid: of the image that is to be looked at.
        margin_mm: how far around the labels.
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
    """How many voxels of a grid one sample stands for, along each axis, and where the samples lie."""
    i, j, k = (min(max(1, round(COARSE_MM / mm)), n) for mm, n in zip(grid.spacing_mm, grid.shape, strict=True))
    stride = np.array([i, j, k])
    affine = grid.affine @ np.diag([*stride, 1.0])
    affine[:3, 3] = grid.to_world((stride - 1) / 2)
    a, b, c = (int(n) for n in -(-np.array(grid.shape) // stride))
    return (i, j, k), Grid((a, b, c), affine)


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """The value that parts others in two groups whose means lie farthest apart.

    Otsu 1979, doi:10.1109/TSMC.1979.4310076. The brightest 0.5 % count as one value, so that a few bright voxels
    do not make the groups.
    """
    clipped = np.minimum(values, np.percentile(values, 99.5))
    counts, edges = np.histogram(clipped, bins=256)
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(middles[int(np.nanargmax(apart))]) if np.isfinite(apart).any() else float(clipped.min())
