"""Convert closed contours on a slice to the voxels that they enclose, and voxels to contours.

Contours run halfway between voxels inside and voxels outside, so that a voxel belongs to a structure exactly if its
centre lies inside. A contour has no holes: a hole is joined to the contour around it by a channel without width (the
keyhole of PS3.3 C.8.8.6.3), or it is a contour of its own inside the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

SAME_LINE_MM = 0.1
"""Maximum distance of contours that run along the same line: many programs round coordinates to 0.1 mm."""


def enclosed(
    contours: Sequence[NDArray[np.float64]], shape: tuple[int, int], pixel_mm: Sequence[float]
) -> tuple[NDArray[np.bool_], bool]:
    """Return (I, J) the voxels that the contours of one structure on one slice enclose, and whether contours overlap.

    Contours that coincide count once. A contour inside another is a hole, a contour inside a hole is an island.
    Partially overlapping contours enclose the union of their voxels.

    Args:
        contours: (N, 2) corners of each contour, as fractional indices I and J.
        shape: shape (I, J) of the slice.
        pixel_mm: distance between voxels along I and J, in mm.
    """
    fills = [_filled(corners, shape) for corners in contours]
    count = np.zeros(shape, np.uint16)
    for place, fill in fills:
        count[place] += fill
    inside = count == 1
    meeting = [n for n, (place, fill) in enumerate(fills) if (count[place][fill] > 1).any()]
    if not meeting:  # most structures: no contours with common voxels
        return inside, False
    for n in meeting:
        place, fill = fills[n]
        inside[place] &= ~fill
    groups = _grouped([_Line(contours[n], np.asarray(pixel_mm)) for n in meeting])
    for members in groups:
        enclosed_by_any = np.zeros(shape, bool)
        for n in members:
            place, fill = fills[meeting[n]]
            enclosed_by_any[place] |= fill
        inside ^= enclosed_by_any
    return inside, any(len(members) > 1 for members in groups)


def _grouped(lines: Sequence[_Line]) -> list[list[int]]:
    """Return groups of contours that cross each other, directly or through others; coinciding contours count once."""
    boxes = np.array([[corners.min(axis=0), corners.max(axis=0)] for corners in (line.corners for line in lines)])
    meets = np.all(boxes[:, None, 0] <= boxes[None, :, 1] + 1, axis=2)
    group_of: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for n, line in enumerate(lines):
        near = [int(m) for m in np.flatnonzero(meets[n, :n] & meets[:n, n]) if m in group_of]
        relations = {m: line.relation(lines[m]) for m in near}
        if "same" in relations.values():
            continue
        crossed = {group_of[m] for m, relation in relations.items() if relation == "overlap"}
        groups[n] = [n, *(m for group in crossed for m in groups.pop(group))]
        group_of |= dict.fromkeys(groups[n], n)
    return list(groups.values())


def _filled(corners: NDArray[np.float64], shape: tuple[int, int]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Return the box of voxels around a contour, and the voxels in it that the contour encloses."""
    low = np.clip(np.floor(corners.min(axis=0)), 0, shape).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 1, low, shape).astype(int)
    size = high - low
    place = slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
    return place, enclosed_by_odd([corners - low], (int(size[0]), int(size[1])))


def enclosed_by_odd(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (I, J) the voxels whose centres lie inside an odd number of contours (N, 2)."""
    crossings = np.zeros((shape[0] + 1, shape[1]), np.int32)
    for corners in contours:
        _count_crossings(corners, crossings)
    return np.cumsum(crossings[:-1], axis=0) % 2 == 1


@dataclass(frozen=True, eq=False)
class _Line:
    """A closed contour, sampled so densely that no point of another contour passes between the samples.

    Attributes:
        corners: (N, 2) as fractional indices.
        pixel_mm: (2,) distance between voxels.
    """

    corners: NDArray[np.float64]
    pixel_mm: NDArray[np.float64]

    @property
    def tolerance_mm(self) -> float:
        """Return the distance below which another contour runs along the same line."""
        return min(SAME_LINE_MM, 0.25 * float(self.pixel_mm.min()))

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """Return (M, 2) points along the contour in mm, at distances of at most the tolerance."""
        starts = self.corners * self.pixel_mm
        steps = np.roll(starts, -1, axis=0) - starts
        counts = np.ceil(np.linalg.norm(steps, axis=1) / self.tolerance_mm).astype(int).clip(1)
        edge = np.repeat(np.arange(len(starts)), counts)
        along = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
        return starts[edge] + steps[edge] * (along / counts[edge])[:, None]

    @cached_property
    def tree(self) -> cKDTree:
        """Return a search tree of the points."""
        from scipy.spatial import cKDTree

        return cKDTree(self.points)

    def relation(self, other: _Line) -> str:
        """Return "same", "overlap" if the contours cross, or "clear" if they are disjoint or nested."""
        (inside, outside), (other_inside, other_outside) = self._sides_of(other), other._sides_of(self)
        if not (inside or outside or other_inside or other_outside):
            return "same"
        return "overlap" if (inside and outside) or (other_inside and other_outside) else "clear"

    def _sides_of(self, other: _Line) -> tuple[bool, bool]:
        """Return whether this contour has points inside, and outside, of another one and off its line."""
        from skimage.measure import points_in_poly

        margin = 2 * self.tolerance_mm
        low, high = other.points.min(axis=0) - margin, other.points.max(axis=0) + margin
        is_near = ((self.points >= low) & (self.points <= high)).all(axis=1)
        near = self.points[is_near]
        if not len(near):
            return False, True
        off = near[other.tree.query(near)[0] > 1.2 * self.tolerance_mm]
        is_inside = points_in_poly(off / self.pixel_mm, other.corners) if len(off) else np.zeros(0, bool)
        return bool(is_inside.any()), bool(not is_near.all() or not is_inside.all())


def _count_crossings(corners: NDArray[np.float64], crossings: NDArray[np.int32]) -> None:
    """Add 1 to the first voxel after each crossing of a contour with a line of voxels along I.

    An edge counts equally in both directions, so that the two sides of a channel cancel out.

    Args:
        corners: (N, 2) corners of the contour.
        crossings: (I + 1, J) counts, changed in place.
    """
    ends = np.roll(corners, -1, axis=0)
    turned = corners[:, 1] > ends[:, 1]
    low, high = np.where(turned[:, None], ends, corners), np.where(turned[:, None], corners, ends)
    first, stop = (np.clip(np.ceil(side[:, 1]).astype(int), 0, crossings.shape[1]) for side in (low, high))
    edge = np.repeat(np.arange(len(low)), stop - first)
    j = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
    slope = (high[edge, 0] - low[edge, 0]) / (high[edge, 1] - low[edge, 1])
    i = np.floor(low[edge, 0] + (j - low[edge, 1]) * slope).astype(int) + 1
    np.add.at(crossings, (np.clip(i, 0, len(crossings) - 1), j), 1)


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Return closed contours (N, 2) around a mask (I, J), as fractional indices; holes are joined by channels.

    Contours run halfway between voxels inside and outside. Pieces that touch only at a corner are separate.
    """
    import contourpy

    padded = np.pad(mask, 1).astype(float)
    lines = contourpy.contour_generator(z=padded.T, fill_type=contourpy.FillType.OuterOffset).filled(0.5, 2.0)
    answer = []
    for points, offsets in zip(*lines, strict=True):
        rings = [points[a : b - 1] - 1 for a, b in pairwise(offsets)]  # the last is the first
        outline = rings[0]
        for hole in sorted(rings[1:], key=lambda ring: ring[:, 0].min()):
            outline = _joined(outline, hole)
        answer.append(outline)
    return answer


def _joined(outline: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one closed line around an outline and, through a channel at their nearest corners, around a hole in it."""
    from scipy.spatial import cKDTree

    distances, nearest = cKDTree(hole).query(outline)
    n = int(distances.argmin())
    start = int(nearest[n])
    return np.concatenate([outline[: n + 1], hole[start:], hole[: start + 1], outline[n:]])
