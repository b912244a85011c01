"""Steps that correct the label map of a task, on the grid of its models or on that of the scan.

The rules are those of TotalSegmentator; the voxels of an island are connected by faces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.unsignedinteger]

EXTREMITY_MM3 = 50_000.0
"""Volume up to which an island of the extremities is removed."""

VERTEBRA_MM3 = 100.0
"""Volume below which an island of touching vertebrae is removed."""

VERTEBRA_MM = 3.0
"""Distance by which vertebral bodies grow: the model was trained on bodies that were eroded by it."""

REFINED_MM = 2.0
"""Distance by which they grow again within the mask of all vertebral bodies."""


def remove_labels(labels: Labels, removed: Sequence[int]) -> None:
    """Set the voxels of some labels to background, in place."""
    if len(removed):
        table = np.arange(max(int(labels.max(initial=0)), *removed) + 1, dtype=labels.dtype)
        table[list(removed)] = 0
        for plane in labels:  # a table for the whole map would copy it
            plane[...] = table[plane]


def clean_body(labels: Labels, by_name: Mapping[str, int], spacing_mm: Sequence[float]) -> None:
    """Keep the largest island of the trunk, and remove small islands of the extremities, in place.

    Args:
        labels: label map.
        by_name: name -> label.
        spacing_mm: voxel size.
    """
    trunk = by_name["body_trunc"]
    pieces, count = ndimage.label(labels == trunk)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        labels[(pieces > 0) & (pieces != 1 + int(np.argmax(sizes[1:])))] = 0
    pieces, count = ndimage.label(labels == by_name["body_extremities"])
    if count:
        is_small = np.bincount(pieces.ravel()) <= EXTREMITY_MM3 / prod(spacing_mm)
        is_small[0] = False
        labels[is_small[pieces]] = 0


def separate_vertebrae(labels: Labels, by_name: Mapping[str, int], spacing_mm: Sequence[float]) -> Labels:
    """Return vertebral bodies in which each island has one label, grown to their true size.

    If two labels touch, the islands are numbered again along the third axis: from the lowest one upwards beginning
    with the last vertebra that was found, or downwards from C1 if it was found and L5 was not.

    Args:
        labels: label map with the axes x, y and z; labels count the vertebrae from C1 downwards.
        by_name: name -> label.
        spacing_mm: voxel size.
    """
    known = sorted(by_name.values())
    if not _touch(labels):
        return grown(labels, known, spacing_mm, VERTEBRA_MM)
    pieces, _ = ndimage.label(labels > 0)
    is_kept = np.bincount(pieces.ravel()) * prod(spacing_mm) >= VERTEBRA_MM3
    is_kept[0] = False
    numbers = np.flatnonzero(is_kept)
    present = [label for label in np.unique(labels[is_kept[pieces]]).tolist() if label in known]
    result = np.zeros_like(labels)
    if not present:
        return result
    heights = {number: z for number, (_, _, z) in zip(numbers, _centres(pieces, numbers), strict=True)}
    top, bottom = by_name["vertebrae_C1"], by_name["vertebrae_L5"]
    is_from_top = top in present and bottom not in present
    given = range(top, known[-1] + 1) if is_from_top else range(present[-1], known[0] - 1, -1)
    table = np.zeros(len(is_kept), labels.dtype)
    for number, label in zip(sorted(heights, key=lambda n: heights[n], reverse=is_from_top), given, strict=False):
        table[number] = label
    return grown(table[pieces], known, spacing_mm, VERTEBRA_MM)


def refine_vertebrae(
    labels: Labels, bodies: NDArray[np.bool_], known: Sequence[int], spacing_mm: Sequence[float]
) -> Labels:
    """Return vertebrae that are grown once more, within a mask of all vertebral bodies."""
    result = grown(labels, known, spacing_mm, REFINED_MM)
    result[~bodies] = 0
    return result


def grown(labels: Labels, known: Sequence[int], spacing_mm: Sequence[float], distance_mm: float) -> Labels:
    """Return a label map in which each label grows into the background; where two meet, the lower one is first.

    Args:
        labels: label map.
        known: labels that grow, in ascending order.
        spacing_mm: voxel size.
        distance_mm: radius of the ellipsoid by which they grow.
    """
    radii = [distance_mm / size for size in spacing_mm]
    # begins at -radius, in steps of one voxel: for a radius of broken voxels, the ellipsoid is not symmetric
    i, j, k = np.ix_(*(np.arange(-radius, radius + 1) for radius in radii))
    ellipsoid = (i * i) / radii[0] ** 2 + (j * j) / radii[1] ** 2 + (k * k) / radii[2] ** 2 <= 1
    result = labels.copy()
    boxes = ndimage.find_objects(labels, max_label=max(known, default=0))
    for label in known:
        box = boxes[label - 1]
        if box is None:
            continue
        wide = tuple(
            slice(max(part.start - ceil(radius), 0), part.stop + ceil(radius))
            for part, radius in zip(box, radii, strict=True)
        )
        near = ndimage.binary_dilation(labels[wide] == label, ellipsoid)
        part = result[wide]
        part[near & (part == 0)] = label
    return result


def remove_outside(labels: Labels, mask: NDArray[np.bool_], spacing_mm: Sequence[float], distance_mm: float) -> None:
    """Set the voxels that are farther from a mask than a distance to background, in place.

    The distance counts faces between voxels of the mean voxel size.
    """
    steps = int(distance_mm / (sum(spacing_mm) / len(spacing_mm)))
    labels[~(ndimage.binary_dilation(mask, iterations=steps) if steps else mask)] = 0


def _touch(labels: Labels) -> bool:
    """Return whether two different labels share a face."""
    for axis in range(labels.ndim):
        planes = np.moveaxis(labels, axis, 0)
        for one, other in pairwise(planes):
            if ((one != other) & (one > 0) & (other > 0)).any():
                return True
    return False


def _centres(pieces: NDArray, numbers: NDArray) -> list[tuple[float, ...]]:
    """Return the centre in voxels of each of some islands."""
    return ndimage.center_of_mass(pieces > 0, pieces, list(numbers)) if len(numbers) else []
