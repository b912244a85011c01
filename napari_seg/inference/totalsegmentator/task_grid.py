"""Grid on which the models of a task see a scan: a part of it, its axes canonical, resampled; and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.geometry import Grid
from napari_seg.inference.totalsegmentator.zoom import nearest, zoomed, zoomed_shape

Box = tuple[slice, slice, slice]
"""Part of a scan, along its index axes."""


@dataclass(frozen=True, eq=False)
class TaskGrid:
    """Grid of the image that the models of a task are shown, and how it lies in the scan.

    Attributes:
        scan_grid: grid of the scan.
        box: part of the scan.
        is_cropped: whether the scan was cropped, if only to itself; its values are then whole numbers.
        axes: for each axis of the canonical part (x, y, z, as near as they can be), the index axis of the scan.
        flips: whether that axis is reversed.
        grid: grid of the image.
        is_resampled: whether the image has another voxel size than the scan.
    """

    scan_grid: Grid
    box: Box
    is_cropped: bool
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    grid: Grid
    is_resampled: bool

    @classmethod
    def of(cls, scan_grid: Grid, spacing_mm: tuple[float, float, float] | None, box: Box | None = None) -> TaskGrid:
        """Return the grid of the canonical part of a scan in another voxel size.

        Args:
            scan_grid: grid of the scan.
            spacing_mm: voxel size along the canonical axes; None: that of the scan.
            box: part of the scan; None: all of it.
        """
        part: Box = box or (slice(0, scan_grid.shape[0]), slice(0, scan_grid.shape[1]), slice(0, scan_grid.shape[2]))
        grid = scan_grid.box([one.start for one in part], [one.stop for one in part])
        axes, flips = grid.patient_axes()
        affine = np.eye(4)
        affine[:3, :3] = grid.affine[:3, axes] * np.where(flips, -1, 1)
        first = [grid.shape[axis] - 1 if flip else 0 for axis, flip in zip(axes, flips, strict=True)]
        affine[:3, 3] = grid.affine[:3, 3] + grid.affine[:3, axes] @ first
        shape = (grid.shape[axes[0]], grid.shape[axes[1]], grid.shape[axes[2]])
        found = header_spacing(affine)
        is_resampled = spacing_mm is not None and found != spacing_mm
        if spacing_mm is not None and is_resampled:
            affine[:3, :3] /= np.divide(found, spacing_mm)
            shape = zoomed_shape(shape, found, spacing_mm)
        return cls(scan_grid, part, box is not None, axes, flips, Grid(shape, affine), is_resampled)

    @property
    def truncates(self) -> bool:
        """Whether the values of the image are whole numbers, truncated towards zero."""
        return self.is_cropped or self.is_resampled

    def canonical(self, array: NDArray) -> NDArray:
        """Return the part of an array of the scan with canonical axes, as a view."""
        turn: Any = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return array[self.box].transpose(self.axes)[turn]

    def image(self, array: NDArray) -> NDArray:
        """Return the image of an array (I, J, K) of the scan; a view of it where no value changes.

        Interpolated values and those of a cropped scan are whole numbers, truncated towards zero.
        """
        part = self.canonical(array)
        whole = _whole_type(array.dtype)
        if self.is_cropped and part.dtype.kind == "f":
            part = part.astype(whole)
        return zoomed(part, self.grid.shape, whole) if self.is_resampled else part

    def image_bytes(self, dtype: np.dtype) -> int:
        """Return the memory in bytes that `image` takes for an array of a type, with a label map on its grid."""
        return (_whole_type(dtype).itemsize * self.is_resampled + 1) * prod(self.grid.shape)

    def back(self, labels: NDArray[np.unsignedinteger], outside: int = 0) -> NDArray[np.unsignedinteger]:
        """Return an array of the image on the grid of the scan, where each voxel takes the nearest one of the image.

        Args:
            labels: (i, j, k) on `grid`.
            outside: value outside the part that the models were shown.
        """
        result = np.full(self.scan_grid.shape, outside, labels.dtype)
        into = result[self.box]
        turn: Any = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        source = labels[turn].transpose(np.argsort(self.axes))
        first, *others = (
            _taken(source.shape[axis], into.shape[axis], self.flips[self.axes.index(axis)]) for axis in range(3)
        )
        last, plane = -1, np.empty(0, labels.dtype)
        for number, taken in enumerate(first):
            if taken != last:
                last, plane = taken, source[taken].take(others[0], 0).take(others[1], 1)
            into[number] = plane
        return result


def header_spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the voxel size of an affine in the precision of a NIfTI header, on which rounding and equality depend."""
    i, j, k = (float(length) for length in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).astype(np.float32))
    return i, j, k


def box_around(mask: NDArray[np.bool_], grid: Grid, margin_mm: tuple[float, float, float]) -> Box | None:
    """Return the bounding box of a mask with a margin, within the grid; None for an empty mask.

    Args:
        mask: (I, J, K) on `grid`.
        grid: grid of the mask.
        margin_mm: margin along each index axis; it is cut to whole voxels.
    """
    voxels = [int(mm / size) for mm, size in zip(margin_mm, header_spacing(grid.affine), strict=True)]
    found = []
    for axis, margin in enumerate(voxels):
        lines = np.flatnonzero(mask.any(axis=tuple(n for n in range(3) if n != axis)))
        if not len(lines):
            return None
        found.append(slice(max(0, int(lines[0]) - margin), min(mask.shape[axis], int(lines[-1]) + 1 + margin)))
    i, j, k = found
    return i, j, k


def _taken(length: int, new_length: int, flip: bool) -> NDArray[np.int64]:
    """Return for each voxel of the scan along an axis the number of the voxel of the image, both in the scan's order.

    A half is rounded up in the order of the image.
    """
    numbers = nearest(length, new_length)
    return (length - 1 - numbers)[::-1] if flip else numbers


def _whole_type(dtype: np.dtype) -> np.dtype:
    """Return the type for values that are truncated to whole numbers, which interpolation keeps in their range."""
    is_small = dtype.kind in "iu" and np.can_cast(dtype, np.int32)
    return dtype if is_small else np.dtype(np.int32)
