"""Split objects that touch each other and have one label.

The structure is divided by a watershed of the distance in mm to its surface (Beucher and Lantuéjoul 1979): the cuts run
through the necks. Where each part begins is clicked, or found: each local maximum of the distance begins a part, and
two parts are joined again unless the neck between them is narrower than the smaller part by some depth. That is the
watershed from the h-maxima of the distance (Soille 2003, Morphological Image Analysis), without their slow
reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change
from napari_seg.editing.structure import (
    Voxel,
    check_in_structure,
    check_label,
    check_voxel,
    distance_mm,
    find_structure,
    pieces,
)
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

DEPTH_FRACTION = 0.2
"""Usual depth of a neck, relative to the largest distance to the surface."""


def split(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    *,
    seeds: Sequence[Sequence[int]] = (),
    count: int | None = None,
    depth_mm: float | None = None,
    into: Sequence[int] = (),
) -> Change:
    """Return the change that splits a structure into touching objects, each with its own label.

    The first part keeps the label: that of the first seed, or the largest. The others get the labels in `into`, or the
    labels above the highest one in the label map.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        seeds: a voxel of each object; without them the objects are found.
        count: number of objects to find; None: as many as there are necks of the depth. Objects that do not touch
            count too.
        depth_mm: difference between the half width of an object and that of the neck, at least; None: a fifth of
            the largest half width, and at least the largest voxel size.
        into: labels of the second and further parts.

    Raises:
        InputError: `edit.absent`, `edit.label`; `edit.outside` or `edit.not_in_structure`, a seed lies outside the scan
            or the structure; `edit.one_part`, there is only one part, or less than `count`; `edit.too_few_labels`,
            `into` has less labels than there are further parts.
    """
    box, mask = find_structure(labels, label, (1, 1, 1))
    if len(seeds):
        clicked = list(dict.fromkeys(check_voxel(seed, labels.shape) for seed in seeds))
        parts, number = _from_seeds(mask, grid, _markers(labels, label, clicked, box)), len(clicked)
    else:
        parts, number = _found(mask, grid, count, depth_mm)
    if number < (count or 2):
        text = f"structure {label} has {number} part(s); expected {count or 'at least 2'}"
        raise InputError("edit.one_part", f"{text}: choose a smaller depth, or click on each object")
    highest = int(labels.max())
    others = [int(n) for n in into] if len(into) else list(range(highest + 1, highest + number))
    if len(others) < number - 1:
        text = f"found {number} parts; expected at most {len(others) + 1}: give more labels, or a larger depth"
        raise InputError("edit.too_few_labels", text)
    others = others[: number - 1]
    for other in others:
        check_label(labels, other)
    if len({label, *others}) < number:
        raise InputError("edit.same", f"found the labels {[label, *others]}; expected a label of its own for each part")
    before = np.array(labels[box])
    after = before.copy()
    after[mask] = np.array([0, label, *others], before.dtype)[parts[mask]]
    return Change(box, before, after)


def _markers(labels: NDArray[np.unsignedinteger], label: int, seeds: Sequence[Voxel], box: Box) -> NDArray[np.int32]:
    """Return the number of the seed of each voxel in a box, from 1 up, 0 elsewhere."""
    markers = np.zeros(tuple(place.stop - place.start for place in box), np.int32)
    for number, seed in enumerate(seeds, start=1):
        check_in_structure(labels, label, seed)
        i, j, k = (n - place.start for n, place in zip(seed, box, strict=True))
        markers[i, j, k] = number
    return markers


def _from_seeds(mask: NDArray[np.bool_], grid: Grid, markers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the part of each voxel; an object that touches no seed stays with the first part."""
    parts = np.where(mask, np.int32(1), np.int32(0))
    for box in pieces(mask, (1, 1, 1)):
        found = _watershed(distance_mm(~mask[box], grid), markers[box], mask[box])
        parts[box] = np.where(found > 0, found, parts[box])
    return parts


def _found(
    mask: NDArray[np.bool_], grid: Grid, count: int | None, depth_mm: float | None
) -> tuple[NDArray[np.int32], int]:
    """Return the part of each voxel, from 1 up by descending size, and the number of parts."""
    from scipy.ndimage import label as connected
    from scipy.ndimage import maximum_filter

    basins = np.zeros(mask.shape, np.int32)
    peaks, saddles = [np.zeros(1, np.float32)], list[tuple[float, int, int]]()
    known = 0
    for box in pieces(mask, (1, 1, 1)):
        heights = distance_mm(~mask[box], grid)
        is_top = mask[box] & (heights >= maximum_filter(heights, size=3))
        markers, number = connected(is_top, np.ones((3, 3, 3)))
        own = _watershed(heights, markers, mask[box])
        tops = np.zeros(number + 1, np.float32)
        np.maximum.at(tops, markers[is_top], heights[is_top])
        peaks.append(tops[1:])
        saddles += [(height, a + known, b + known) for height, a, b in _saddles(own, heights)]
        basins[box] = np.where(own > 0, own + known, 0)
        known += number
    highest = np.concatenate(peaks)
    depth = max(DEPTH_FRACTION * float(highest.max()), *grid.spacing_mm) if depth_mm is None else depth_mm
    joined = _joined(highest, sorted(saddles, reverse=True), count, depth)
    sizes = np.bincount(joined[basins[mask]], minlength=known + 1)
    left = int((sizes > 0).sum())
    rank = np.zeros(known + 1, np.int32)
    rank[np.argsort(-sizes, kind="stable")[:left]] = np.arange(1, left + 1)
    return rank[joined][basins], left


def _watershed(heights: NDArray[np.float32], markers: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    from skimage.segmentation import watershed

    return watershed(-heights, markers, mask=mask, connectivity=3)


def _saddles(basins: NDArray[np.int32], heights: NDArray[np.float32]) -> list[tuple[float, int, int]]:
    """Return the height of the highest pass between each two neighbouring basins."""
    keys, passes = [], []
    numbers = int(basins.max()) + 1
    for axis in range(3):
        turned, above = np.moveaxis(basins, axis, 0), np.moveaxis(heights, axis, 0)
        a, b = turned[:-1], turned[1:]
        meets = (a != b) & (a > 0) & (b > 0)
        passes.append(np.minimum(above[:-1][meets], above[1:][meets]))
        low, high = np.minimum(a[meets], b[meets]), np.maximum(a[meets], b[meets])
        keys.append(low.astype(np.int64) * numbers + high)
    order = np.argsort(-np.concatenate(passes), kind="stable")
    sorted_passes = np.concatenate(passes)[order]
    pairs, first = np.unique(np.concatenate(keys)[order], return_index=True)
    return [
        (float(sorted_passes[n]), int(pair) // numbers, int(pair) % numbers)
        for pair, n in zip(pairs, first, strict=True)
    ]


def _joined(
    peaks: NDArray[np.float32], saddles: list[tuple[float, int, int]], count: int | None, depth_mm: float
) -> NDArray[np.intp]:
    """Return the basin that each basin is joined to, itself if it is a part of its own.

    Args:
        peaks: largest height of each basin, from 1 up.
        saddles: see `_saddles`, the highest pass first.
        count: number of parts that are left; None: those that are deep enough.
        depth_mm: least difference between the lower of two peaks and their pass.
    """
    parent = np.arange(len(peaks))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = int(parent[n])
        return n

    # from the highest pass down, the lower of two peaks ends in the higher one: its depth is known then
    merges = []
    for height, a, b in saddles:
        low, high = sorted((root(a), root(b)), key=lambda n: (peaks[n], -n))
        if low != high:
            merges.append((float(peaks[low]) - height, low, high))
            parent[low] = high
    parent = np.arange(len(peaks))
    kept = 0 if count is None else max(count - (len(peaks) - 1 - len(merges)), 0)
    deepest = sorted(merges, reverse=True)[:kept] if count is not None else [m for m in merges if m[0] >= depth_mm]
    is_part = {low for _, low, _ in deepest}
    for _, low, high in merges:
        if low not in is_part:
            parent[low] = high
    return np.array([root(n) for n in range(len(peaks))])
