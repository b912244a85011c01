"""Order and direction of the axes, and voxel sizes, as nnU-Net's readers return them.

nnU-Net's arrays are (C, Z, Y, X): the index axes of the scan in reverse, then permuted by the plans. Its readers take a
scan as it is stored, but those named "WithReorient" bring it to RAS first. A DICOM series is taken as the series reader
of SimpleITK would write it: columns, rows, slices. dcm2niix reverses the rows; if a model was trained on files of
dcm2niix without mirror images, convert the series first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.nnunet.configuration import Configuration
from napari_seg.geometry import Grid, index_affine
from napari_seg.volume import Volume

Spacing = tuple[float, float, float]
"""Voxel sizes in mm along the axes of an array."""

PLANE_DISTANCE = 999.0
"""Distance of planes of a 2D image, in pixels, in nnU-Net's readers."""


def arranged_grid(volume: Volume, configuration: Configuration) -> Grid:
    """Return the grid of the scan's voxels in the order of nnU-Net's axes."""
    grid = volume.grid.reoriented("RAS") if configuration.is_reoriented else volume.grid
    i, j, k = (2 - axis for axis in configuration.transpose)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, [i, j, k]]
    return Grid((grid.shape[i], grid.shape[j], grid.shape[k]), affine)


def arranged_spacing(volume: Volume, configuration: Configuration) -> Spacing:
    """Return the voxel sizes in mm along the axes of `arranged_grid`, as a reader would return them.

    The length of a column of the affine carries rounding errors, and half a voxel can depend on them. NIfTI states
    voxel sizes as float32, MetaImage and NRRD as float64.
    """
    found = arranged_grid(volume, configuration).spacing_mm
    is_double = volume.source.format == "itk"
    sizes = [_without_noise(mm, 12 if is_double else 6, 1e-12 if is_double else 3e-7) for mm in found]
    if not is_double:
        sizes = [float(np.float32(mm)) for mm in sizes]
    if volume.source.format == "image2d":
        sizes[configuration.transpose.index(0)] = PLANE_DISTANCE
    i, j, k = sizes
    return i, j, k


def network_spacing(configuration: Configuration, spacing: Spacing) -> Spacing:
    """Return the voxel size of the network's grid; a network of slices keeps their distance."""
    i, j, k = (spacing[0], *configuration.spacing_mm) if configuration.is_2d else configuration.spacing_mm
    return i, j, k


def _without_noise(value: float, digits: int, tolerance: float) -> float:
    """Return a number rounded to some digits if that is nearly the same number."""
    rounded = float(f"{value:.{digits}g}")
    return rounded if abs(rounded - value) <= tolerance * value else value


def viewed(array: NDArray, source: Grid, target: Grid) -> NDArray:
    """Return a view (..., *target.shape) of an array (..., I, J, K) of one grid on another, which is a part of it.

    The grids differ by the order and the direction of their axes, and by whole voxels.
    """
    to_source = np.rint(index_affine(source, target)).astype(int)
    parts: list[Any] = [slice(None)] * 3
    order = []
    for n, length in enumerate(target.shape):
        axis = int(np.abs(to_source[:3, n]).argmax())
        step, first = int(to_source[axis, n]), int(to_source[axis, 3])
        stop = first + step * length
        parts[axis] = slice(first, None if stop < 0 else stop, step)
        order.append(axis)
    lead = array.ndim - 3
    return array[(..., *parts)].transpose(*range(lead), *(lead + axis for axis in order))
