"""Islands of a structure: list them, keep the largest, remove small ones, or one that a person clicks on.

An island is a set of voxels that are connected by faces, edges or corners, and not connected to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change
from napari_seg.editing.structure import check_in_structure, check_label, check_voxel, find_structure, pieces, relabel
from napari_seg.errors import InputError
from napari_seg.geometry import Grid


@dataclass(frozen=True)
class Island:
    """A connected part of a structure.

    Attributes:
        voxels: number of voxels.
        ml: volume.
        centroid_mm: mean position of the voxels in mm, RAS+; it may lie outside the island.
        box: smallest box in the label map that holds the island.
    """

    voxels: int
    ml: float
    centroid_mm: tuple[float, float, float]
    box: Box


def list_islands(labels: NDArray[np.unsignedinteger], grid: Grid, label: int) -> list[Island]:
    """Return the islands of a structure, the largest first.

    Raises:
        InputError: `edit.absent`.
    """
    box, mask, numbers, sizes = _find_islands(labels, label)
    order = np.argsort(numbers, kind="stable")
    voxels = np.argwhere(mask)[order] + [place.start for place in box]
    starts = np.concatenate([[0], np.cumsum(sizes[1:-1])]).astype(np.intp)
    lowest, highest = (each.reduceat(voxels, starts) for each in (np.minimum, np.maximum))
    centers = grid.to_world(np.add.reduceat(voxels, starts) / sizes[1:, None])
    islands = []
    for low, high, center, size in zip(lowest, highest, centers, sizes[1:], strict=True):
        i, j, k = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        x, y, z = map(float, center)
        islands.append(Island(int(size), int(size) * grid.voxel_ml, (x, y, z), (i, j, k)))
    return sorted(islands, key=lambda island: -island.voxels)


def keep_largest(labels: NDArray[np.unsignedinteger], grid: Grid, label: int) -> Change:
    """Return the change that removes all islands of a structure but the largest; of equal ones the first remains.

    Raises:
        InputError: `edit.absent`.
    """
    box, mask, numbers, sizes = _find_islands(labels, label)
    mask[mask] = numbers != int(sizes[1:].argmax()) + 1
    return relabel(labels, box, mask, 0)


def remove_small_islands(labels: NDArray[np.unsignedinteger], grid: Grid, label: int, min_ml: float) -> Change:
    """Return the change that removes the islands of a structure that are smaller than a volume, maybe all of them.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        min_ml: volume of the smallest island that stays.

    Raises:
        InputError: `edit.absent`; `edit.volume`, the volume is not a number from 0 up.
    """
    if not 0 <= min_ml < np.inf:
        raise InputError("edit.volume", f"found a volume of {min_ml:g} ml; expected at least 0")
    box, mask, numbers, sizes = _find_islands(labels, label)
    mask[mask] = (sizes * grid.voxel_ml < min_ml * (1 - 1e-9))[numbers]
    return relabel(labels, box, mask, 0)


def take_island(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    voxel: Sequence[int],
    *,
    is_kept: bool = False,
    into: int = 0,
) -> Change:
    """Return the change that removes one island of a structure, or all others.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        voxel: (3,) a voxel of the island.
        is_kept: keep the island, and remove all others.
        into: label that the removed voxels get.

    Raises:
        InputError: `edit.absent`, `edit.label`; `edit.outside` or `edit.not_in_structure`, the voxel lies outside the
            scan or the structure.
    """
    place = check_voxel(voxel, labels.shape)
    if into:
        check_label(labels, into)
    box, mask, numbers, _ = _find_islands(labels, label)
    check_in_structure(labels, label, place)
    of_each = np.zeros(mask.shape, np.int32)
    of_each[mask] = numbers
    i, j, k = (n - side.start for n, side in zip(place, box, strict=True))
    mask[mask] = (numbers == of_each[i, j, k]) != is_kept
    return relabel(labels, box, mask, into)


def _find_islands(
    labels: NDArray[np.unsignedinteger], label: int
) -> tuple[Box, NDArray[np.bool_], NDArray[np.int32], NDArray[np.intp]]:
    """Return the box and mask of a structure, the island of each voxel of the mask, and the voxels of each island.

    Islands are numbered from 1 up; the numbers (N,) are in the order of the voxels of the mask.
    """
    import SimpleITK as sitk

    box, mask = find_structure(labels, label)
    islands, sizes = np.zeros(mask.shape, np.int32), [np.zeros(1, np.intp)]
    known = 0
    for piece in pieces(mask):
        own = mask[piece]
        found = sitk.ConnectedComponent(sitk.GetImageFromArray(own.astype(np.uint8)), True)
        numbers = sitk.GetArrayViewFromImage(found)[own].astype(np.int32)
        sizes.append(np.bincount(numbers)[1:])
        islands[piece][own] = numbers + known
        known += len(sizes[-1])
    return box, mask, islands[mask], np.concatenate(sizes)
