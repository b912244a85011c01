"""Grow a structure from a clicked voxel within a range of intensities, with limits against leaks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Change, box_of, change_structure, whole
from napari_seg.editing.structure import (
    ROUNDING_MM,
    Voxel,
    box_around,
    check_label,
    check_shape,
    check_size,
    check_voxel,
    distance_mm,
    margin_of,
)
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

RANGE_RADIUS_MM = 5.0
"""Radius around a click in which intensities are looked at."""

RANGE_SIGMAS = 3.0
"""Half width of the suggested range in standard deviations."""

_QUARTER_SIGMAS, _HALF_SIGMAS = 0.3186, 0.6745
"""Standard deviations around the mean that hold a quarter, and a half, of normally distributed values."""

_RANGE_ROUNDS = 3
"""Number of times that the range is computed again from the values in it."""


def suggest_range(
    image: NDArray, grid: Grid, voxel: Sequence[int], radius_mm: float = RANGE_RADIUS_MM
) -> tuple[float, float]:
    """Return the range of intensities (lowest, highest) that belong to the tissue around a voxel.

    The first centre of the range is the median of the voxel and its neighbours, and the first spread is that of the
    quarter of the values around that are nearest to it. Both are then computed again from the values in the range, so
    that other tissue within the radius does not widen it.

    Args:
        image: (I, J, K) intensities.
        grid: its grid.
        voxel: index of the clicked voxel.
        radius_mm: radius of the ball whose intensities count.

    Raises:
        InputError: `edit.outside`, `edit.size`; `edit.not_finite`, the intensity at the voxel is not a number.
    """
    check_size(radius_mm, "the radius")
    clicked = check_voxel(voxel, image.shape)
    value = float(image[clicked])
    if not np.isfinite(value):
        raise InputError("edit.not_finite", f"the intensity at voxel {clicked} is {value}; click on tissue")
    near = image[box_around(clicked, (1, 1, 1), image.shape)].astype(np.float64)
    center = float(np.median(near[np.isfinite(near)]))
    i, j, k = (max(1, n) for n in margin_of(grid, radius_mm))
    box = box_around(clicked, (i, j, k), image.shape)
    values = image[box][_ball_mm(grid, clicked, box) <= max(radius_mm, *grid.spacing_mm)].astype(np.float64)
    values = values[np.isfinite(values)]
    half = RANGE_SIGMAS * float(np.quantile(np.abs(values - center), 0.25)) / _QUARTER_SIGMAS
    for _ in range(_RANGE_ROUNDS):
        own = values[np.abs(values - center) <= half]
        if not own.size:
            break
        center = float(np.median(own))
        half = RANGE_SIGMAS * float(np.median(np.abs(own - center))) / _HALF_SIGMAS
    return min(center - half, value), max(center + half, value)


def grow(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    image: NDArray,
    voxel: Sequence[int],
    low: float,
    high: float,
    *,
    max_mm: float,
    neck_mm: float = 0.0,
    max_ml: float | None = None,
    overwrite: Collection[int] = (),
) -> Change:
    """Return the change that adds to a structure what is connected to a voxel within a range of intensities.

    The structure may be new. Bridges that are thinner than twice the neck radius are not crossed: the voxels in the
    range are eroded by that radius, the part at the clicked voxel is kept, dilated by the same radius, and cut to the
    voxels in the range (a morphological opening of one part). Voxels are connected by faces.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        image: (I, J, K) intensities on the same grid.
        voxel: index of the clicked voxel.
        low: lowest intensity, inclusive; see `suggest_range`.
        high: highest intensity, inclusive.
        max_mm: largest distance from the clicked voxel.
        neck_mm: radius of the widest bridge that is not crossed; 0 crosses any.
        max_ml: largest volume to add.
        overwrite: labels of other structures that the structure may take voxels from; all others are walls.

    Raises:
        InputError: `edit.outside`, `edit.shape`, `edit.size`, `edit.label`; `edit.out_of_range`, the clicked voxel
            is not in the range, or belongs to another structure; `edit.neck`, the tissue around it is thinner than
            the neck; `edit.leak`, the volume exceeds `max_ml`.
    """
    check_label(labels, label)
    check_shape(image, labels, "an image")
    check_size(max_mm, "the distance")
    check_size(neck_mm, "the neck", zero=True)
    clicked = check_voxel(voxel, labels.shape)
    box = box_around(clicked, margin_of(grid, max_mm + 2 * neck_mm), labels.shape)
    i, j, k = (n - place.start for n, place in zip(clicked, box, strict=True))
    before, values = labels[box], image[box]
    is_free = (before == 0) | (before == label)
    for other in overwrite:
        is_free |= before == other
    in_range = is_free & (values >= low) & (values <= high)
    if not in_range[i, j, k]:
        raise InputError(
            "edit.out_of_range", _why_not(image, labels, clicked, low, high, is_free=bool(is_free[i, j, k]))
        )
    is_near = _ball_mm(grid, clicked, box) <= max_mm + ROUNDING_MM
    grown = in_range
    if neck_mm:
        grown = np.zeros_like(in_range)
        reached = _part_at(in_range, (i, j, k))
        own = box_of(reached, (1, 1, 1)) or whole(reached.shape)
        grown[own] = _opened(reached[own], is_near[own], _ball_mm(grid, clicked, box)[own], grid, neck_mm)
        if not grown[i, j, k]:
            text = f"the tissue at voxel {clicked} is thinner than {2 * neck_mm:g} mm; choose a smaller neck"
            raise InputError("edit.neck", text)
    grown = _part_at(grown & is_near, (i, j, k))
    ml = float((grown & (before != label)).sum()) * grid.voxel_ml
    if max_ml is not None and ml > max_ml:
        text = f"growing would add {ml:.3g} ml; expected at most {max_ml:g} ml; narrow the range or widen the neck"
        raise InputError("edit.leak", text)
    return change_structure(labels, box, label, grown | (before == label), overwrite)


def _ball_mm(grid: Grid, voxel: Voxel, box: tuple[slice, slice, slice]) -> NDArray[np.float32]:
    """Return the distance (I', J', K') in mm of each voxel of a box to a voxel; the axes are at right angles."""
    squares = [
        ((np.arange(place.start, place.stop) - n) * spacing_mm).astype(np.float32) ** 2
        for n, place, spacing_mm in zip(voxel, box, grid.spacing_mm, strict=True)
    ]
    return np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])


def _part_at(mask: NDArray[np.bool_], voxel: Voxel) -> NDArray[np.bool_]:
    """Return the part of a mask that is connected to a voxel by faces."""
    from scipy.ndimage import label as connected

    parts, _ = connected(mask)
    return parts == parts[voxel]


def _opened(
    mask: NDArray[np.bool_],
    is_near: NDArray[np.bool_],
    to_click: NDArray[np.float32],
    grid: Grid,
    neck_mm: float,
) -> NDArray[np.bool_]:
    """Return the morphological opening of a mask by a ball, only the part whose wide core is nearest to the click.

    Args:
        mask: (I', J', K') voxels.
        is_near: voxels where the core may lie.
        to_click: distance in mm of each voxel to the click.
        grid: grid whose voxel size counts.
        neck_mm: radius of the ball.
    """
    core = mask & is_near & (distance_mm(~mask, grid) > neck_mm + ROUNDING_MM)
    if not core.any():
        return core
    nearest = np.unravel_index(int(np.where(core, to_click, np.inf).argmin()), mask.shape)
    core = _part_at(core, (int(nearest[0]), int(nearest[1]), int(nearest[2])))
    return mask & (distance_mm(core, grid) <= neck_mm + ROUNDING_MM)


def _why_not(
    image: NDArray, labels: NDArray[np.unsignedinteger], voxel: Voxel, low: float, high: float, *, is_free: bool
) -> str:
    if not is_free:
        return f"voxel {voxel} belongs to structure {labels[voxel]}; click elsewhere, or allow to overwrite it"
    return f"voxel {voxel} has the intensity {image[voxel]:g}; expected {low:g} to {high:g}: change the range"
