"""Fill a structure between its painted slices.

Between two painted slices, each connected part of one is linked to the parts of the other that it overlaps; parts that
overlap nothing are linked to the nearest one, if that is close enough. Where a part has several partners (a branch), it
is divided among them by distance. Each pair is moved linearly from one centroid to the other while its signed distances
in mm are blended (shape-based interpolation, Raya and Udupa 1990, IEEE Transactions on Medical Imaging 9:32). The union
of all pairs is the filled slice. Nothing is extrapolated: a part without a partner ends in its slice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change, change_structure
from napari_seg.editing.structure import check_axis, find_structure, inside, shifted
from napari_seg.errors import InputError
from napari_seg.geometry import Grid
from napari_seg.progress import Progress, ignore_progress

Mask = NDArray[np.bool_]
Spacing = tuple[float, float]


def interpolate(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    axis: int,
    *,
    region: Box | None = None,
    overwrite: Collection[int] = (),
    progress: Progress | None = None,
) -> Change:
    """Return the change that fills the slices without voxels of a structure that lie between slices with voxels.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        axis: index axis at right angles to the painted slices.
        region: part of the label map where voxels count and change, such as one side of a structure that the other
            side shows complete; None: all of it.
        overwrite: labels of other structures that the structure may take voxels from.
        progress: called with the stage "filling"; may raise `Cancelled`.

    Raises:
        InputError: `edit.absent`, `edit.axis`; `edit.nothing_between`, there are no empty slices between slices with
            voxels.
    """
    check_axis(axis)
    if region is not None:
        change = interpolate(labels[region], grid, label, axis, overwrite=overwrite, progress=progress)
        return Change(shifted(change.box, [one.start for one in region]), change.before, change.after)
    box, mask = find_structure(labels, label, (1, 1, 1))  # background around it, for distances
    slices = np.moveaxis(mask, axis, 0)
    painted = np.flatnonzero(slices.any(axis=(1, 2)))
    gaps = [(int(a), int(b)) for a, b in pairwise(painted) if b > a + 1]
    if not gaps:
        raise InputError(
            "edit.nothing_between",
            f"structure {label} has no empty slices between its slices along axis {axis}; paint two "
            "slices with a gap, or choose a region without other parts",
        )
    rows_mm, columns_mm, slices_mm = (grid.spacing_mm[n] for n in (*(n for n in range(3) if n != axis), axis))
    report = progress or ignore_progress
    for done, (a, b) in enumerate(gaps):
        report("filling", done, len(gaps))
        for part in _pairs(slices[a], slices[b], (rows_mm, columns_mm), (b - a) * slices_mm):
            for k in range(a + 1, b):
                part.draw(slices[k], (k - a) / (b - a))
    report("filling", len(gaps), len(gaps))
    return change_structure(labels, box, label, mask, overwrite)


def interpolate_sides(
    labels: NDArray[np.unsignedinteger],
    grid: Grid,
    label: int,
    axis: int,
    *,
    overwrite: Collection[int] = (),
    progress: Progress | None = None,
) -> Change:
    """Return the change that fills each side of a structure, such as either lung, whatever slices the others have.

    Sides are parts that are apart when they are seen along the axis.

    Args:
        labels: (I, J, K) label map.
        grid: its grid.
        label: label of the structure.
        axis: index axis at right angles to the painted slices.
        overwrite: labels of other structures that the structure may take voxels from.
        progress: called with the stage "filling"; may raise `Cancelled`.

    Raises:
        InputError: `edit.absent`, `edit.axis`; `edit.nothing_between`, no side has empty slices between slices with
            voxels.
    """
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as connected

    check_axis(axis)
    box, mask = find_structure(labels, label, (1, 1, 1))
    sides, _ = connected(mask.any(axis=axis), np.ones((3, 3)))
    change, nothing = None, None
    for found in find_objects(sides):
        # a margin, for background around it; NumPy ends a slice where the array ends
        across = [slice(max(place.start - 1, 0), place.stop + 1) for place in found]
        across.insert(axis, slice(0, mask.shape[axis]))
        i, j, k = across
        region = shifted((i, j, k), [place.start for place in box])
        try:
            change = interpolate(labels, grid, label, axis, region=region, overwrite=overwrite, progress=progress)
        except InputError as error:
            if error.code != "edit.nothing_between":
                raise
            nothing = error
            continue
        mask[inside(change.box, box)] |= change.after == label
    if change is None:
        assert nothing is not None
        raise nothing
    return change_structure(labels, box, label, mask, overwrite)


@dataclass(frozen=True)
class _Pair:
    """Two parts in two slices that are one part of the structure.

    Attributes:
        place: rows and columns that enclose both, and background around them except at the edge of the scan.
        first: signed distances in mm of the first part, positive inside, in `place`.
        second: signed distances of the second part.
        steps: way in voxels, along rows and columns, from the centroid of the first to that of the second.
    """

    place: tuple[slice, slice]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    steps: NDArray[np.float64]

    def draw(self, mask: Mask, fraction: float) -> None:
        """Add the part at a fraction of the way from the first to the second slice to the mask of a slice."""
        blended = _moved(self.first, fraction * self.steps) * np.float32(1 - fraction)
        blended += _moved(self.second, (fraction - 1) * self.steps) * np.float32(fraction)
        mask[self.place] |= blended >= 0


def _pairs(first: Mask, second: Mask, spacing_mm: Spacing, gap_mm: float) -> Iterator[_Pair]:
    """Return the pairs of parts of two slices.

    Args:
        first: voxels of the structure in the first slice.
        second: voxels in the second slice.
        spacing_mm: voxel size along rows and columns.
        gap_mm: distance of the slices.
    """
    from scipy.ndimage import label as connected

    corners = np.ones((3, 3))
    (parts, count), (others, other_count) = connected(first, corners), connected(second, corners)
    links = _links(parts, count, others, other_count, spacing_mm, gap_mm)
    partners = [[b for a, b in links if a == n] for n in range(count + 1)]
    other_partners = [[a for a, b in links if b == n] for n in range(other_count + 1)]
    for a, b in links:
        yield _pair(
            _share(parts == a, others, partners[a], b, spacing_mm),
            _share(others == b, parts, other_partners[b], a, spacing_mm),
            spacing_mm,
        )


def _links(
    parts: NDArray[np.int32],
    count: int,
    others: NDArray[np.int32],
    other_count: int,
    spacing_mm: Spacing,
    gap_mm: float,
) -> list[tuple[int, int]]:
    """Return which parts of two slices belong together.

    Args:
        parts: number of the part of each voxel in the first slice, 0 for background.
        count: number of parts in the first slice.
        others: number of the part of each voxel in the second slice.
        other_count: number of parts in the second slice.
        spacing_mm: voxel size along rows and columns.
        gap_mm: distance of the slices.
    """
    both = (parts > 0) & (others > 0)
    links = set(zip(parts[both].tolist(), others[both].tolist(), strict=True))
    alone = sorted(set(range(1, count + 1)) - {a for a, _ in links})
    other_alone = sorted(set(range(1, other_count + 1)) - {b for _, b in links})
    if not alone and not other_alone:
        return sorted(links)
    centers, sizes = _centers_mm(parts, count, spacing_mm)
    other_centers, other_sizes = _centers_mm(others, other_count, spacing_mm)
    away = np.linalg.norm(centers[:, None] - other_centers, axis=-1)
    # a contour may be shifted by the distance of the slices and its own width
    reach = gap_mm + (sizes[:, None] + other_sizes) / 2
    for a, b in sorted(((a, b) for a in alone for b in other_alone), key=lambda pair: away[pair[0] - 1, pair[1] - 1]):
        if a in alone and b in other_alone and away[a - 1, b - 1] <= reach[a - 1, b - 1]:
            links.add((a, b))
            alone.remove(a)
            other_alone.remove(b)
    # a branch begins at the nearest part, if the gap between both is not wider than the distance of the slices
    links |= {(a, b) for a in alone if (b := _nearest_part(parts == a, others, spacing_mm, gap_mm))}
    links |= {(a, b) for b in other_alone if (a := _nearest_part(others == b, parts, spacing_mm, gap_mm))}
    return sorted(links)


def _centers_mm(
    parts: NDArray[np.int32], count: int, spacing_mm: Spacing
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centroids (N, 2) of parts, and the diameters (N,) of circles of the same area, in mm."""
    from scipy.ndimage import center_of_mass

    numbers = np.arange(1, count + 1)
    centers = np.array(center_of_mass(parts > 0, parts, numbers)).reshape(-1, 2) * spacing_mm
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:] * spacing_mm[0] * spacing_mm[1]
    return centers, 2 * np.sqrt(areas / np.pi)


def _nearest_part(part: Mask, others: NDArray[np.int32], spacing_mm: Spacing, within_mm: float) -> int:
    """Return the number of the part of another slice that is nearest to a part; 0 if none is near enough."""
    if not others.any():
        return 0
    away = np.where(others > 0, _distance(part, spacing_mm), np.inf)
    nearest = int(away.argmin())
    return int(others.flat[nearest]) if away.flat[nearest] <= within_mm else 0


def _share(part: Mask, others: NDArray[np.int32], partners: list[int], partner: int, spacing_mm: Spacing) -> Mask:
    """Return the voxels of a part that are nearer to one of its partners than to any other partner."""
    if len(partners) == 1:
        return part
    away = np.stack([_distance(others == n, spacing_mm) for n in partners])
    share = part & (away.argmin(axis=0) == partners.index(partner))
    return share if share.any() else part


def _pair(first: Mask, second: Mask, spacing_mm: Spacing) -> _Pair:
    rows, columns = (np.flatnonzero((first | second).any(axis=axis)) for axis in (1, 0))
    place = (slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2))
    centers = [np.argwhere(mask).mean(axis=0) for mask in (first, second)]
    distances = [_signed(mask[place], spacing_mm) for mask in (first, second)]
    return _Pair(place, distances[0], distances[1], centers[1] - centers[0])


def _signed(mask: Mask, spacing_mm: Spacing) -> NDArray[np.float32]:
    """Return the distance in mm to the nearest voxel on the other side of the outline, positive inside."""
    if mask.all():  # it fills the scan: taken to end a voxel beyond the edge
        return _distance(np.pad(mask, 1) == 0, spacing_mm)[1:-1, 1:-1].astype(np.float32)
    return np.where(mask, _distance(~mask, spacing_mm), -_distance(mask, spacing_mm)).astype(np.float32)


def _distance(targets: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    """Return the distance in mm of each voxel of a slice to the nearest target."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~targets, sampling=spacing_mm)


def _moved(values: NDArray[np.float32], steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return values moved by a number of voxels along rows and columns; the edge is repeated."""
    for axis, step in enumerate(steps):
        whole = int(np.floor(step))
        part = np.float32(step - whole)
        index = np.arange(values.shape[axis]) - whole
        last = values.shape[axis] - 1
        near = values.take(np.clip(index, 0, last), axis=axis)
        if part:
            near = near * (1 - part) + values.take(np.clip(index - 1, 0, last), axis=axis) * part
        values = near
    return values
