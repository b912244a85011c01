"""Islands of a structure: list them, keep the largest, remove small ones, remove or keep the one at a voxel.

An island is a set of voxels that are connected by faces, edges or corners, and not connected to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change
from napari_seg.editing.structure import Voxel, check_voxel, find_structure, pieces, relabel
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
        voxel: index of one voxel of the island, for `remove_island` and `keep_island`.
    """

    voxels: int
    ml: float
    centroid_mm: tuple[float, float, float]
    box: Box
    voxel: Voxel


def list_islands(labels: NDArray[np.unsignedinteger], grid: Grid, label: int) -> list[Island]:
    """Return the islands of a structure, the largest first.

    Raises:
        InputError: `edit.absent`.
    """
    from scipy.ndimage import find_objects

    box, parts, sizes = _find_islands(labels, label)
    start = np.array([place.start for place in box])
    islands = []
    for number, found in enumerate(find_objects(parts), start=1):
        voxels = np.argwhere(parts[found] == number) + [place.start for place in found] + start
        x, y, z = grid.to_world(voxels.mean(axis=0))
        i, j, k = (slice(int(low), int(high) + 1) for low, high in zip(voxels.min(0), voxels.max(0), strict=True))
        first = (int(voxels[0, 0]), int(voxels[0, 1]), int(voxels[0, 2]))
        count = int(sizes[number])
        islands.append(Island(count, count * grid.voxel_ml, (float(x), float(y), float(z)), (i, j, k), first))
    return sorted(islands, key=lambda island: -island.voxels)


def keep_largest(labels: NDArray[np.unsignedinteger], grid: Grid, label: int) -> Change:
    """Return the change that removes all islands of a structure but the largest; of equal ones the first remains.

    Raises:
        InputError: `edit.absent`.
    """
    box, parts, sizes = _find_islands(labels, label)
    is_removed = np.ones(len(sizes), bool)
    is_removed[[0, int(sizes[1:].argmax()) + 1]] = False
    return relabel(labels, box, is_removed[parts], 0)


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
    box, parts, sizes = _find_islands(labels, label)
    is_removed = sizes * grid.voxel_ml < min_ml * (1 - 1e-9)
    is_removed[0] = False
    return relabel(labels, box, is_removed[parts], 0)


def remove_island(labels: NDArray[np.unsignedinteger], grid: Grid, label: int, voxel: Sequence[int]) -> Change:
    """Return the change that removes the island of a structure at a voxel.

    Raises:
        InputError: `edit.absent`, `edit.outside`; `edit.not_in_structure`, the voxel is not in the structure.
    """
    box, is_clicked = _island_at(labels, label, voxel)
    return relabel(labels, box, is_clicked, 0)


def keep_island(labels: NDArray[np.unsignedinteger], grid: Grid, label: int, voxel: Sequence[int]) -> Change:
    """Return the change that removes all islands of a structure but the one at a voxel.

    Raises:
        InputError: `edit.absent`, `edit.outside`; `edit.not_in_structure`, the voxel is not in the structure.
    """
    box, is_clicked = _island_at(labels, label, voxel)
    return relabel(labels, box, (labels[box] == label) & ~is_clicked, 0)


def _find_islands(labels: NDArray[np.unsignedinteger], label: int) -> tuple[Box, NDArray[np.int32], NDArray[np.intp]]:
    """Return the box of a structure, the number of each voxel's island from 1 up, and the voxels of each number."""
    from scipy.ndimage import label as connected

    box, mask = find_structure(labels, label)
    parts, sizes = np.zeros(mask.shape, np.int32), [np.zeros(1, np.intp)]
    known = 0
    for piece in pieces(mask):
        own, count = connected(mask[piece], np.ones((3, 3, 3)))
        numbers = own[mask[piece]]
        sizes.append(np.bincount(numbers, minlength=count + 1)[1:])
        parts[piece][mask[piece]] = numbers + known
        known += count
    return box, parts, np.concatenate(sizes)


def _island_at(labels: NDArray[np.unsignedinteger], label: int, voxel: Sequence[int]) -> tuple[Box, NDArray[np.bool_]]:
    clicked = check_voxel(voxel, labels.shape)
    box, parts, _ = _find_islands(labels, label)
    if labels[clicked] != label:
        text = f"voxel {clicked} has the label {labels[clicked]}; expected {label}: click on the structure"
        raise InputError("edit.not_in_structure", text)
    i, j, k = (n - place.start for n, place in zip(clicked, box, strict=True))
    return box, parts == parts[i, j, k]
