"""Solve the grid whose slices are the frames of a DICOM segmentation.

Segmentations omit empty slices, so the distance between neighbouring frames is a multiple of the slice spacing. The
distances themselves come from the positions of the frames alone. SpacingBetweenSlices and SliceThickness, which many
programs write wrongly or not at all, only decide how many slices the smallest distance spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice
from napari_seg.formats.dicom.geometry import MISPLACED_PIXELS, SAME_POSITION_PIXELS
from napari_seg.formats.dicom.kinds import ORIENTATION_TOLERANCE
from napari_seg.geometry import RAS_FROM_LPS, Grid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MISPLACED_SLICES = 0.06
"""Maximum distance of a frame from its place on the regular grid, in slice spacings."""

MAX_EMPTY = 1000
"""Maximum number of slices of the grid for each frame; slices without a frame are empty."""

MAX_GUESSED = 5
"""Maximum number of slices that the smallest distance between frames spans if no attribute states it."""

GUESSED_MISPLACED_SLICES = 0.01
"""Maximum distance of a frame from its place in that case; with a larger one, some number would always fit."""


@dataclass(frozen=True, eq=False)
class FrameLayout:
    """Grid of a segmentation, and the slice of each frame.

    Attributes:
        grid: grid over columns, rows and slices from the first frame to the last, in RAS+.
        slices: K index of each frame, in the order of the frames.
        groups: functional groups of each frame, as of `functional_groups`.
        notices: contradictions between the positions and the attributes.
    """

    grid: Grid
    slices: tuple[int, ...]
    groups: Sequence[Sequence[Any]]
    notices: tuple[Notice, ...] = ()


def layout_of(dataset: Dataset, name: str, scan: Grid | None = None) -> FrameLayout:
    """Return the grid of a segmentation, and the slice of each frame.

    Args:
        dataset: the segmentation.
        name: name of the file, for messages.
        scan: grid of its scan, which gives the distance between slices; None if the file must give it.

    Raises:
        InputError: `geometry.incomplete`, a frame has no position, orientation or pixel spacing;
            `geometry.mixed_orientation`; `geometry.uneven_spacing`, the frames do not lie on a regular grid, as under a
            tilted gantry; `geometry.no_thickness`, one frame of unknown thickness; `geometry.other_grid`, it was made
            for thicker slices than the scan has.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    groups = functional_groups(dataset, name)
    positions = np.array([_numbers(g, "PlanePositionSequence", "ImagePositionPatient", 3, name) for g in groups])
    orientations = np.array(
        [_numbers(g, "PlaneOrientationSequence", "ImageOrientationPatient", 6, name) for g in groups]
    )
    pixels_mm = np.array([_numbers(g, "PixelMeasuresSequence", "PixelSpacing", 2, name) for g in groups])
    cosines, (row_mm, column_mm) = orientations[0].reshape(2, 3), pixels_mm[0]
    if min(row_mm, column_mm) <= 0:
        raise InputError("geometry.incomplete", f"{name} has pixels of {row_mm:g} x {column_mm:g} mm; expected a size")
    if (
        max(np.ptp(orientations, axis=0).max(), (np.ptp(pixels_mm, axis=0) / pixels_mm[0]).max())
        > ORIENTATION_TOLERANCE
    ):
        text = f"the frames of {name} differ in orientation or pixel spacing; expected parallel frames of one size"
        raise InputError("geometry.mixed_orientation", text)
    normal = np.cross(*cosines)
    normal /= np.linalg.norm(normal)
    depths = positions @ normal
    first = int(depths.argmin())
    depths = depths - depths[first]
    sideways = positions - positions[first] - depths[:, None] * normal
    pixel_mm = min(row_mm, column_mm)
    places = np.sort(depths)
    places = places[np.diff(places, prepend=-np.inf) > SAME_POSITION_PIXELS * pixel_mm]
    spacing, notices = _spacing(places, _lengths(groups), _spacing_of_scan(scan, normal), name)
    slices = np.rint(depths / spacing).astype(int)
    count = int(slices.max()) + 1
    if np.linalg.norm(sideways, axis=1).max() > MISPLACED_PIXELS * pixel_mm or count > MAX_EMPTY * len(groups):
        raise _uneven(name)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([cosines[0] * column_mm, cosines[1] * row_mm, normal * spacing])
    affine[:3, 3] = positions[first]
    grid = Grid((columns, rows, count), RAS_FROM_LPS @ affine)
    return FrameLayout(grid, tuple(slices.tolist()), groups, notices)


def functional_groups(dataset: Dataset, name: str) -> list[tuple[Any, ...]]:
    """Return for each frame its own functional groups, followed by the shared ones.

    Raises:
        InputError: `file.bad_header`, there are not as many groups as frames.
    """
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(own) != count:
        raise InputError("file.bad_header", f"{name} holds {count} frames and describes {len(own)}; export it again")
    shared = tuple(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    return [(group, *shared) for group in own]


def value_of(groups: Sequence[Any], sequence: str, keyword: str) -> Any:
    """Return an attribute from the functional groups of a frame; None if none of them has it."""
    for group in groups:
        for item in (group.get(sequence) or ())[:1]:
            if item.get(keyword) not in (None, ""):
                return item.get(keyword)
    return None


def _numbers(groups: Sequence[Any], sequence: str, keyword: str, count: int, name: str) -> NDArray[np.float64]:
    """Return so many finite numbers from the functional groups of a frame."""
    found = value_of(groups, sequence, keyword)
    values = np.array([float(value) for value in found] if found is not None else [])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputError("geometry.incomplete", f"a frame of {name} has no usable {keyword}; export it again")
    return values


def _lengths(groups: Sequence[Sequence[Any]]) -> tuple[float | None, float | None]:
    """Return SpacingBetweenSlices and SliceThickness; None for a missing value or no length."""
    found = []
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = value_of(groups[0], "PixelMeasuresSequence", keyword)
        length = abs(float(value)) if value is not None else 0.0
        found.append(length if 0 < length < np.inf else None)
    return found[0], found[1]


def _spacing_of_scan(scan: Grid | None, normal: NDArray[np.float64]) -> float | None:
    """Return the distance between those planes of a scan that are parallel to the frames; None without any."""
    if scan is None:
        return None
    along = np.abs((RAS_FROM_LPS[:3, :3] @ normal) @ scan.directions)
    axis = int(along.argmax())
    return scan.spacing_mm[axis] if along[axis] > 1 - ORIENTATION_TOLERANCE else None


def _spacing(
    places: NDArray[np.float64], lengths: tuple[float | None, float | None], of_scan: float | None, name: str
) -> tuple[float, tuple[Notice, ...]]:
    """Return the distance between slices in mm, and notices about contradictions.

    Args:
        places: distances of the frames from the first one in mm, ascending and distinct.
        lengths: SpacingBetweenSlices and SliceThickness in mm.
        of_scan: distance between the slices of the scan in mm.
        name: name of the segmentation, for messages.
    """
    stated, thickness = lengths
    if len(places) == 1:
        found = of_scan or thickness or stated
        if found is None:
            text = f"{name} has one frame and does not say how thick it is; name the scan that it belongs to"
            raise InputError("geometry.no_thickness", text)
        if of_scan is not None:
            differs, text = _is_coarser(stated, of_scan), f"the slices of the scan are {of_scan:g} mm apart"
        else:
            differs = stated is not None and abs(stated - found) > MISPLACED_SLICES * found
            text = f"its one frame is {found:g} mm thick"
        return found, (_contradiction(name, stated, text),) if differs else ()
    smallest = float(np.diff(places).min())
    if of_scan is not None and (spacing := _fitting(places, smallest / of_scan)):
        if stated is not None and _is_coarser(stated, of_scan) and _fitting(places, smallest / stated):
            text = f"{name} was made for slices of {stated:g} mm, as its frames confirm, and the scan has slices of"
            text = f"{text} {of_scan:g} mm, so that slices between its frames would count as empty"
            raise InputError("geometry.other_grid", f"{text}; expected the scan that it was drawn on")
        if stated is None and thickness and _is_coarser(thickness, of_scan) and _fitting(places, smallest / thickness):
            text = f"slices of {name} are {thickness:g} mm thick and lie {smallest:g} mm apart or more"
            text = f"{text}; slices of the scan, {of_scan:g} mm, between them count as empty"
            return spacing, (Notice("geometry.frames_apart", text),)
        return spacing, ()
    spacing = None if stated is None else _fitting(places, smallest / stated)
    # ambiguous: empty slices between all frames, or frames on neighbouring slices
    has_gaps = spacing is not None and spacing < 0.75 * smallest and _fitting(places, 1.0) is not None
    if has_gaps and thickness is not None and abs(thickness - smallest) <= MISPLACED_SLICES * smallest:
        spacing = None  # frames at the distance of their thickness are neighbours, whatever is stated
    if spacing is not None:
        text = f"no two frames of {name} are neighbours: they lie {smallest:g} mm apart or more"
        notice = Notice("geometry.frames_apart", f"{text}; slices of {spacing:g} mm between them count as empty")
        return spacing, (notice,) if has_gaps else ()
    spacing = _fitting(places, 1.0) or (_fitting(places, smallest / thickness) if thickness else None)
    if spacing is None:
        candidates = (_fitting(places, n, GUESSED_MISPLACED_SLICES) for n in range(2, MAX_GUESSED + 1))
        spacing = next((one for one in candidates if one), None)
    if spacing is None:
        raise _uneven(name)
    if stated is not None:
        text = f"its frames lie {smallest:g} mm apart and fit slices of {spacing:g} mm"
        return spacing, (_contradiction(name, stated, text),)
    if thickness is not None and spacing > 1.5 * thickness and _fitting(places, smallest / thickness):
        text = f"slices of {name} are {thickness:g} mm thick and lie {spacing:g} mm apart or more"
        text = f"{text}; slices of {spacing:g} mm were assumed; name the scan if slices between them are empty"
        return spacing, (Notice("geometry.frames_apart", text),)
    return spacing, ()


def _is_coarser(length: float | None, of_scan: float) -> bool:
    """Return whether a distance or thickness of slices is that of two slices of the scan or more."""
    return length is not None and length > 1.5 * of_scan


def _fitting(places: NDArray[np.float64], slices: float, tolerance: float = MISPLACED_SLICES) -> float | None:
    """Return the slice spacing if all frames lie on slices; otherwise None.

    Args:
        places: distances of the frames from the first one in mm, ascending and distinct.
        slices: number of slices that the smallest distance spans, about a whole number.
        tolerance: maximum distance of a frame from its slice, in slice spacings.
    """
    count = max(1, round(slices))
    if abs(slices - count) > 0.05 + 0.02 * count:  # lengths are rounded
        return None
    steps = np.rint(places / (np.diff(places).min() / count))
    spacing = float(places[-1] / steps[-1])
    return spacing if np.abs(places - steps * spacing).max() <= tolerance * spacing else None


def _contradiction(name: str, stated: float | None, found: str) -> Notice:
    text = f"SpacingBetweenSlices of {name} says {stated:g} mm, but {found}; the positions of the frames were used"
    return Notice("geometry.spacing_contradicted", text)


def _uneven(name: str) -> InputError:
    text = f"the frames of {name} do not lie on a regular grid (under a tilted gantry none is); expected one"
    return InputError("geometry.uneven_spacing", text)
