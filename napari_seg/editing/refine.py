"""Refine a structure from clicks, scribbles and boxes: evidence for and against it, and the best cut between them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
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
    from_surroundings,
    log_ratio,
)
from napari_seg.editing.min_cut import has_fast_solver, min_cut
from napari_seg.editing.prompts import Prompts
from napari_seg.errors import InputError
from napari_seg.geometry import Grid
from napari_seg.progress import Progress, ignore_progress

MARGIN_MM = 60.0
"""Distance from the prompts within which voxels may change; a new structure that reaches it is looked at farther."""

BOX_MARGIN_MM = 20.0
"""The same around a drawn box: enough to see what the structure is not."""

MAX_VOXELS = 80**3
"""Number of voxels of a region above which it is first looked at more coarsely."""

MAX_VOXELS_SLOW = 48**3
"""The same where numba is not installed."""

STRENGTH_NEW = 1.5
STRENGTH_KNOWN = 0.5
"""Cost of a border of one voxel side between equal intensities, for a new structure and for one that is corrected."""

STRENGTH_FINE = 1.0
"""The same for the border of a coarse result at full resolution."""

MAX_FINE_VOXELS = 6_000_000
"""Number of voxels around a border above which it is only interpolated."""

_OUT_OF_REACH = 0.1


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
        InputError: `edit.prompt_missing`, `edit.prompt_outside`, or `edit.one_intensity` (no intensities to find a new
            structure by).
    """
    prompts.check(labels.shape)
    report = progress or ignore_progress
    for step in range(3):
        report("refining", step, 4)
        box = region_around(prompts, grid, 2**step)
        mask = labels[box] == label
        is_new = probability is None and not mask.any()
        if is_new and prompts.box is None and not len(prompts.positive):
            raise InputError(
                "edit.prompt_missing", "found only negative prompts and no structure; click on the structure first"
            )
        if is_new and prompts.box is None and not _varies(image[box]):
            raise InputError(
                "edit.one_intensity",
                "found the same intensity all around the prompts; nothing shows where the structure ends",
            )
        inner = _within(prompts, box)
        coarse = _coarse(mask, grid.spacing_mm, image[box], inner, None if probability is None else probability[box])
        if not is_new or prompts.box is not None or not _touches_wall(coarse.found, box, labels.shape):
            break
    report("refining", 3, 4)
    found = _finer(coarse, image[box], mask, grid.spacing_mm)
    if inner.box is not None:  # blocks of voxels at its sides are partly outside
        within = found[inner.box].copy()
        found[:] = mask
        found[inner.box] = within
    found[tuple(inner.positive.T)] = True
    found[tuple(inner.negative.T)] = False
    report("refining", 4, 4)
    return change_structure(labels, box, label, found, overwrite)


def warm_up() -> None:
    """Load and compile what `refine` needs; a background thread can call it before the first click."""
    image = np.zeros((6, 6, 6), np.float32)
    image[2:4, 2:4, 2:4] = 9
    grid = Grid(image.shape, np.eye(4))
    refine(np.zeros(image.shape, np.uint8), grid, 1, image, Prompts(np.array([(2, 2, 2)]), np.array([(0, 0, 0)])))


@dataclass(frozen=True, eq=False)
class _Coarse:
    """Structure found in a region at a resolution at which the region is small.

    Attributes:
        factors: voxels of the scan in one of the region along each axis; 1 where the region is small anyway.
        was: (I, J, K) the structure as it is.
        found: (I, J, K) the structure that was found.
        evidence: (I, J, K) log odds for it.
    """

    factors: tuple[int, int, int]
    was: NDArray[np.bool_]
    found: NDArray[np.bool_]
    evidence: NDArray[np.float32]


def _coarse(
    mask: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    image: NDArray,
    prompts: Prompts,
    probability: NDArray[np.uint8] | None,
) -> _Coarse:
    """Return the structure in a region at the best resolution that is quick enough.

    Args:
        mask: (I, J, K) the structure as it is.
        spacing_mm: voxel size.
        image: (I, J, K) intensities.
        prompts: prompts in voxel indices of the region.
        probability: (I, J, K) of a network, or None.
    """
    factors = _factors(mask.shape, spacing_mm, MAX_VOXELS if has_fast_solver() else MAX_VOXELS_SLOW)
    if factors != (1, 1, 1):
        i, j, k = (s * f for s, f in zip(spacing_mm, factors, strict=True))
        spacing_mm = i, j, k
        image, share, prompts = _mean(image, factors), _mean(mask, factors), prompts.coarser(factors)
        mask = share >= 0.5 if (share >= 0.5).any() else share > 0
        probability = None if probability is None else _mean(probability, factors).astype(np.uint8)
    found, evidence = _cut(Region.of(image, spacing_mm), mask, prompts, probability)
    return _Coarse(factors, mask, found, evidence)


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
    elif prompts.box is not None and not len(prompts.positive):
        evidence = from_box(region, prompts.box)
    else:
        evidence = from_intensities(region, prompts)
    image = from_surroundings(region, mask) if mask.any() else None
    evidence, reached = corrected(region, evidence, prompts, image)
    decided = evidence.copy()
    if is_known:
        out_of_reach = reached < _OUT_OF_REACH
        decided[out_of_reach] = np.where(mask, np.inf, -np.inf)[out_of_reach]
    if prompts.box is not None:
        outside = np.ones(mask.shape, bool)
        outside[prompts.box] = False
        decided[outside] = np.where(mask, np.inf, -np.inf)[outside]
    decided[tuple(prompts.positive.T)] = np.inf
    decided[tuple(prompts.negative.T)] = -np.inf
    found = min_cut(decided, region.edge_weights(STRENGTH_KNOWN if is_known else STRENGTH_NEW))
    if not is_known and len(prompts.positive):  # what is only like the structure is not part of it
        parts, _ = components(found)
        found = np.isin(parts, parts[tuple(prompts.positive.T)])
    return found, evidence


def _finer(
    coarse: _Coarse, image: NDArray, mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """Return a coarse result at full resolution: its border is cut again, between the voxels near it.

    Args:
        coarse: result at a coarse resolution.
        image: (I, J, K) intensities.
        mask: (I, J, K) the structure as it was; it stays where the coarse result has no change.
        spacing_mm: voxel size.
    """
    from scipy.ndimage import binary_dilation, map_coordinates

    factors, found = coarse.factors, coarse.found
    if factors == (1, 1, 1):
        return found.copy()
    near = binary_dilation(found) & binary_dilation(~found)
    fine = _repeat(found, factors, mask.shape)
    if mask.any():
        near &= binary_dilation(found != coarse.was, iterations=2)
        stays = _repeat((found == coarse.was) & ~near, factors, mask.shape)
        fine[stays] = mask[stays]
    band = _repeat(near, factors, mask.shape)
    box = box_of(band, (1, 1, 1))
    if box is None:
        return fine
    start = np.array([part.start for part in box])
    places = (np.argwhere(band[box]) + start + 0.5) / np.array(factors) - 0.5
    leaning = 0.5 * (np.clip(coarse.evidence, -3, 3) + np.where(found, np.float32(1), np.float32(-1)))
    region = Region.of(image[box], spacing_mm)
    inside, is_near = fine[box], band[box]
    evidence = np.where(inside, np.inf, -np.inf).astype(np.float32)
    by_intensity = log_ratio(region, inside & ~is_near, ~inside & ~is_near)  # coarse voxels mixed both sides
    evidence[is_near] = map_coordinates(leaning, places.T, order=1, mode="nearest") + by_intensity[is_near]
    if evidence.size > MAX_FINE_VOXELS or not has_fast_solver():
        fine[box] = evidence > 0
    else:
        fine[box] = min_cut(evidence, region.edge_weights(STRENGTH_FINE))
    return fine


def region_around(prompts: Prompts, grid: Grid, widening: int = 1) -> Box:
    """Return the box in which voxels may change.

    Args:
        prompts: prompts, at least one.
        grid: grid of the label map.
        widening: multiple of the margin; more than 1 only for a new structure that is larger.
    """
    margin_mm = widening * (MARGIN_MM if prompts.box is None else BOX_MARGIN_MM)
    if prompts.box is not None and not len(prompts.positive) and not len(prompts.negative):
        ends = np.array([[part.start, part.stop - 1] for part in prompts.box]).T
    else:
        voxels = np.concatenate([prompts.positive, prompts.negative])
        ends = np.array([voxels.min(axis=0), voxels.max(axis=0)])
        if prompts.box is not None:
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


def _varies(image: NDArray) -> bool:
    """Return whether the finite intensities are not all equal."""
    values = image[np.isfinite(image)]
    return bool(values.size) and bool(values.min() < values.max())


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
