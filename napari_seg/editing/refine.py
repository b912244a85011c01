"""Refine a structure from clicks, scribbles and boxes: evidence for and against it, and the best cut between them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change, box_of, change_structure
from napari_seg.editing.evidence import (
    Region,
    corrected,
    from_box,
    from_intensities,
    from_probability,
    from_structure,
)
from napari_seg.editing.min_cut import has_fast_solver, min_cut
from napari_seg.editing.prompts import Prompts
from napari_seg.errors import InputError
from napari_seg.geometry import Grid
from napari_seg.progress import Progress, ignore_progress

MARGIN_MM = 60.0
"""Distance from the prompts within which voxels may change; a new structure that reaches it is looked at farther."""

MAX_VOXELS = 96**3
"""Number of voxels of a region above which it is first looked at more coarsely."""

MAX_VOXELS_SLOW = 56**3
"""The same where numba is not installed."""

STRENGTH_NEW = 1.5
STRENGTH_KNOWN = 0.3
"""Cost of a border of one voxel side between equal intensities, for a new structure and for one that is corrected."""

_MAX_FINE_VOXELS = 6_000_000
_OUT_OF_REACH = 0.02


def refine(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    image: NDArray,
    prompts: Prompts,
    *,
    probability: NDArray[np.uint8] | None = None,
    overwrite: Collection[int] = (),
    progress: Progress | None = None,
) -> Change:
    """Return the change after which a structure agrees with prompts.

    Every positive voxel is in the result, unless it belongs to another structure that may not be overwritten; no
    negative voxel is. Nothing changes outside a region around the prompts. Give all prompts of a correction together
    with the label map from before the first one: they are then weighed against each other.

    Args:
        labels: (I, J, K) label map.
        grid: grid of the label map.
        label: label of the structure; it may be new.
        image: (I, J, K) intensities on the same grid.
        prompts: clicks, scribbles and box.
        probability: (I, J, K) probability of the structure that a network gave, 0 to 255; None if there is none.
        overwrite: labels of other structures that the structure may take voxels from.
        progress: called between steps; it may raise `Cancelled`.

    Raises:
        InputError: `edit.prompt_missing` or `edit.prompt_outside`.
    """
    prompts.check(labels.shape)
    report = progress or ignore_progress
    margin_mm = MARGIN_MM
    while True:
        report("refining", 0, 2)
        box = _around(prompts, grid, margin_mm)
        mask = labels[box] == label
        is_known = bool(mask.any())
        if not is_known and not len(prompts.positive) and prompts.box is None and probability is None:
            raise InputError(
                "edit.prompt_missing", "found only negative prompts and no structure; click on the structure first"
            )
        found = _found(mask, grid, image[box], _within(prompts, box), None if probability is None else probability[box])
        report("refining", 1, 2)
        grows = not is_known and prompts.box is None and _touches_wall(found, box, labels.shape)
        if not grows or margin_mm >= 4 * MARGIN_MM:
            break
        margin_mm *= 2
    report("refining", 2, 2)
    return change_structure(labels, box, label, found, overwrite)


def warm_up() -> None:
    """Load and compile what `refine` needs; a background thread can call it before the first click."""
    image = np.zeros((6, 6, 6), np.float32)
    image[2:4, 2:4, 2:4] = 9
    grid = Grid(image.shape, np.eye(4))
    refine(np.zeros(image.shape, np.uint8), grid, 1, image, Prompts(np.array([(2, 2, 2)]), np.array([(0, 0, 0)])))


def _found(
    mask: NDArray[np.bool_], grid: Grid, image: NDArray, prompts: Prompts, probability: NDArray[np.uint8] | None
) -> NDArray[np.bool_]:
    """Return the structure in a region, first at a resolution at which the region is small.

    Args:
        mask: (I, J, K) the structure as it is.
        grid: grid of the scan, of which only the voxel size is used.
        image: (I, J, K) intensities.
        prompts: prompts in voxel indices of the region.
        probability: (I, J, K) of a network, or None.
    """
    factors = _factors(mask.shape, grid.spacing_mm, MAX_VOXELS if has_fast_solver() else MAX_VOXELS_SLOW)
    if factors == (1, 1, 1):
        found = _cut(Region.of(image, grid.spacing_mm), mask, prompts, probability)[0]
    else:
        i, j, k = (s * f for s, f in zip(grid.spacing_mm, factors, strict=True))
        coarse = Region.of(_mean(image, factors), (i, j, k))
        chance = None if probability is None else _mean(probability, factors).astype(np.uint8)
        found, evidence = _cut(coarse, _mean(mask, factors) >= 0.5, prompts.coarser(factors), chance)
        found = _finer(found, evidence, factors, image, mask, grid.spacing_mm)
    found[tuple(prompts.positive.T)] = True
    found[tuple(prompts.negative.T)] = False
    return found


def _cut(
    region: Region, mask: NDArray[np.bool_], prompts: Prompts, probability: NDArray[np.uint8] | None
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return the structure in a region at one resolution, and the evidence for it."""
    from scipy.ndimage import label as components

    is_known = bool(mask.any()) or probability is not None
    if is_known:
        evidence = from_structure(region, mask)
        if probability is not None:
            evidence += from_probability(probability)
            evidence /= 2
    elif len(prompts.positive):
        evidence = from_intensities(region, prompts)
    else:
        assert prompts.box is not None
        evidence = from_box(region, prompts.box)
    evidence, reached = corrected(region, evidence, prompts)
    decided = evidence.copy()
    if is_known:
        out_of_reach = reached < _OUT_OF_REACH
        decided[out_of_reach] = np.where(mask, np.inf, -np.inf)[out_of_reach]
    if prompts.box is not None:
        outside = np.ones(mask.shape, bool)
        outside[prompts.box] = False
        decided[outside] = -np.inf
    decided[tuple(prompts.positive.T)] = np.inf
    decided[tuple(prompts.negative.T)] = -np.inf
    found = min_cut(decided, region.edge_weights(STRENGTH_KNOWN if is_known else STRENGTH_NEW))
    if not is_known and len(prompts.positive):  # what is only like the structure is not part of it
        parts, _ = components(found)
        found = np.isin(parts, parts[tuple(prompts.positive.T)])
    return found, evidence


def _finer(
    found: NDArray[np.bool_],
    evidence: NDArray[np.float32],
    factors: tuple[int, int, int],
    image: NDArray,
    mask: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
) -> NDArray[np.bool_]:
    """Return a coarse result at full resolution: only its border is cut again, between the voxels near it.

    Args:
        found: (I', J', K') coarse result.
        evidence: (I', J', K') coarse evidence.
        factors: voxels of the scan in a coarse voxel along each axis.
        image: (I, J, K) intensities.
        mask: (I, J, K) the structure as it was; voxels stay as they are where the coarse result says so.
        spacing_mm: voxel size of `image`.
    """
    from scipy.ndimage import binary_dilation, map_coordinates

    was = _mean(mask, factors) >= 0.5
    near = binary_dilation(found, iterations=1) & binary_dilation(~found, iterations=1)
    if mask.any():
        near &= binary_dilation(found != was, iterations=2)
    shape = image.shape
    fine = _repeat(found, factors, shape)
    if mask.any():
        same = _repeat(found == was, factors, shape) & ~_repeat(near, factors, shape)
        fine[same] = mask[same]
    band = _repeat(near, factors, shape)
    box = box_of(band, (1, 1, 1))
    if box is None:
        return fine
    sides = np.where(fine[box], np.inf, -np.inf).astype(np.float32)
    voxels = np.argwhere(band[box])
    offset = np.array([part.start for part in box])
    places = ((voxels + offset + 0.5) / np.array(factors) - 0.5).T
    signed = np.clip(evidence, -3, 3) + np.where(found, 1, -1)  # the coarse cut counts, too
    sides[band[box]] = map_coordinates(signed.astype(np.float32), places, order=1, mode="nearest")
    if sides.size > _MAX_FINE_VOXELS:
        fine[box] = sides > 0
        return fine
    region = Region.of(image[box], spacing_mm)
    fine[box] = min_cut(sides, region.edge_weights(1.0))
    return fine


def _around(prompts: Prompts, grid: Grid, margin_mm: float) -> Box:
    """Return the box in which voxels may change."""
    if prompts.box is not None and not len(prompts.positive) and not len(prompts.negative):
        ends = np.array([[part.start, part.stop - 1] for part in prompts.box]).T
        margin_mm = min(margin_mm, 20.0)
    else:
        voxels = np.concatenate([prompts.positive, prompts.negative])
        ends = np.array([voxels.min(axis=0), voxels.max(axis=0)])
        if prompts.box is not None:
            margin_mm = min(margin_mm, 20.0)
            both = np.array([[part.start, part.stop - 1] for part in prompts.box]).T
            ends = np.array([np.minimum(ends[0], both[0]), np.maximum(ends[1], both[1])])
    margin = np.ceil(margin_mm / np.array(grid.spacing_mm)).astype(int)
    starts, stops = np.maximum(ends[0] - margin, 0), np.minimum(ends[1] + margin + 1, grid.shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
    return i, j, k


def _within(prompts: Prompts, box: Box) -> Prompts:
    """Return prompts in the voxel indices of a box that encloses them."""
    start = np.array([part.start for part in box])
    inner = None
    if prompts.box is not None:
        i, j, k = (slice(p.start - int(s), p.stop - int(s)) for p, s in zip(prompts.box, start, strict=True))
        inner = (i, j, k)
    return Prompts(prompts.positive - start, prompts.negative - start, inner)


def _touches_wall(found: NDArray[np.bool_], box: Box, shape: tuple[int, ...]) -> bool:
    """Return whether a result ends at a side of the box that is not a side of the scan."""
    for axis, part in enumerate(box):
        layers = np.moveaxis(found, axis, 0)
        if (part.start > 0 and layers[0].any()) or (part.stop < shape[axis] and layers[-1].any()):
            return True
    return False


def _factors(shape: tuple[int, ...], spacing_mm: tuple[float, float, float], most: int) -> tuple[int, int, int]:
    """Return how many voxels are joined along each axis so that a region has at most a number of voxels."""
    factors = [1, 1, 1]
    while np.prod([-(-n // f) for n, f in zip(shape, factors, strict=True)]) > most:
        finest = min(range(3), key=lambda axis: factors[axis] * spacing_mm[axis])
        factors[finest] += 1
    return factors[0], factors[1], factors[2]


def _mean(array: NDArray, factors: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return the means over blocks; the last block along an axis repeats the last voxels."""
    result: Any = array
    for axis, factor in enumerate(factors):
        count = -(-result.shape[axis] // factor)
        index = np.minimum(np.arange(count) * factor, result.shape[axis] - 1)
        total = np.take(result, index, axis).astype(np.float32)
        for step in range(1, factor):
            total += np.take(result, np.minimum(index + step, result.shape[axis] - 1), axis)
        result = total / factor
    return np.ascontiguousarray(result)


def _repeat(array: NDArray[np.bool_], factors: tuple[int, int, int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a coarse mask at full resolution."""
    result = array
    for axis, factor in enumerate(factors):
        result = result.repeat(factor, axis)
    i, j, k = shape
    return np.ascontiguousarray(result[:i, :j, :k])
