"""Read the contours of RT structure sets (PS3.3 A.19) as label maps; `contours` decides which voxels they enclose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, told_plainly
from napari_seg.formats.dicom.contours import enclosed, enclosed_by_odd
from napari_seg.formats.dicom.headers import quiet_pydicom
from napari_seg.formats.dicom.objects import object_label, read_object
from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.volume import Segment, Segmentation, distinct_color, smallest_label_type

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PLANE_TOLERANCE = 0.06
"""Maximum distance of a contour from the plane of its slice, in slice spacings; slices themselves may be 0.05 off."""

ROUNDED_MM = 0.06
"""Additional distance in mm: many programs round coordinates to 0.1 mm."""

MAX_PLANE_TOLERANCE = 0.3
"""Upper limit of both together, in slice spacings, so that the slice of a contour is never in doubt."""

BEYOND_VOXELS = 1.0
"""Distance by which a contour may reach beyond the scan without a notice, in voxels."""

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
"""Types of contours that enclose voxels; points and open lines are marks."""

_LPS = np.diag(RAS_FROM_LPS)[:3]
"""Signs that turn points in LPS+ into RAS+, and back."""


def read_rtstruct(path: Path, grid: Grid, only: Sequence[str] = (), *, extend: bool = False) -> Segmentation:
    """Read the contours of a structure set as a label map, labels in the order of its regions.

    A voxel belongs to a structure if its centre lies inside the structure's contours on its slice, see
    `contours.enclosed`; for contours of the type CLOSEDPLANAR_XOR, inside an odd number of them.

    Args:
        path: the file.
        grid: grid of the scan that it was drawn on.
        only: names of the required structures; all if empty.
        extend: enlarge the grid by whole voxels where contours reach beyond it.

    Raises:
        InputError: `file.*`; `geometry.not_on_slices`, contours lie between the slices of the grid, or outside of it;
            `labels.overlap`, structures share voxels; `labels.unknown`, it lacks a required structure.
    """
    dataset = read_object(path)
    file_name = object_label(dataset, path)
    text = f"{file_name} is not a usable RT structure set ({{kind}})"
    with quiet_pydicom(), told_plainly(InputError, "file.bad_header", text):
        names = {int(roi.ROINumber): str(roi.get("ROIName") or "") for roi in dataset.StructureSetROISequence}
        drawn: dict[int, list[Dataset]] = {n: [] for n in names if not only or names[n] in only}
        for item in dataset.get("ROIContourSequence") or ():  # some programs write several of one structure
            if int(item.ReferencedROINumber) in drawn:
                drawn[int(item.ReferencedROINumber)].append(item)
        contours = {n: [one for item in items for one in _contours(item, grid)] for n, items in drawn.items()}
        colors = {n: next((color for item in items if (color := _color(item))), None) for n, items in drawn.items()}
        open_ones = [names[n] for n in drawn if not contours[n] and any(one.get("ContourSequence") for one in drawn[n])]
    if missing := set(only) - set(names.values()):
        known = ", ".join(names.values())
        raise InputError("labels.unknown", f"{file_name} has no structure {', '.join(sorted(missing))}; it has {known}")
    text = f"in {file_name} has no closed contour, only points or open lines; no voxel is inside"
    notices = [Notice("labels.not_closed", f"{name} {text}", name) for name in open_ones]
    if extend:
        grid, contours = _extended(grid, contours)
    else:
        notices += _beyond({names[n]: some for n, some in contours.items()}, grid, file_name)
    _check_slices({names[n]: some for n, some in contours.items()}, grid, file_name)
    array = np.zeros(grid.shape, smallest_label_type(len(names)))
    segments = []
    for label, number in enumerate(sorted(names), start=1):
        if number not in contours:
            continue
        color = colors.get(number) or distinct_color(label)
        segments.append(Segment(label, names[number] or f"structure {number}", color))
        crossing, count = [], 0
        for k, inside, is_overlapping in _filled(contours[number], grid):
            if is_overlapping:
                crossing.append(k)
            if overlap := int(np.count_nonzero(array[..., k][inside])):
                raise InputError(
                    "labels.overlap",
                    f"{segments[-1].name} shares {overlap} voxels with other structures of {file_name}, and a label "
                    "map holds one label a voxel; name the structures to read",
                )
            array[..., k][inside] = label
            count += int(np.count_nonzero(inside))
        if contours[number] and not count:
            text = f"the contours of {segments[-1].name} in {file_name} enclose the centre of no voxel; it has 0 voxels"
            notices.append(Notice("labels.no_voxels", text, segments[-1].name))
        if crossing:
            text = f"contours of {segments[-1].name} in {file_name} overlap on slices {_listed(crossing)}"
            notice = f"{text}; all voxels inside any of them count as inside"
            notices.append(Notice("labels.contours_overlap", notice, segments[-1].name))
    return Segmentation(array, grid, tuple(segments), notices=tuple(notices))


@dataclass(frozen=True, eq=False)
class _Contour:
    """A closed contour.

    Attributes:
        k: index of the slice that is nearest to it.
        off_slice: distance from that slice, in slice spacings.
        corners: (N, 2) as fractional indices I and J.
        is_xor: whether a voxel is enclosed if it lies inside an odd number of contours of this type.
    """

    k: int
    off_slice: float
    corners: NDArray[np.float64]
    is_xor: bool


def _contours(region: Dataset, grid: Grid) -> list[_Contour]:
    """Return the closed contours of a structure; points and open lines are marks."""
    found = []
    for contour in region.get("ContourSequence") or ():
        if contour.get("ContourGeometricType") in _AREAS:
            values = contour.get_item("ContourData").value
            if isinstance(values, bytes):  # not converted yet, or too long for an explicit VR
                values = values.decode("ascii").strip(" \0").split("\\")
            points = np.reshape(np.array(values or [], float), (-1, 3))
            indices = grid.to_index(points * _LPS)
            if not np.isfinite(indices).all():
                raise ValueError
            if len(indices):
                k = int(np.rint(indices[:, 2].mean()))
                off_slice = float(np.abs(indices[:, 2] - k).max())
                is_xor = contour.ContourGeometricType != "CLOSED_PLANAR"
                found.append(_Contour(k, off_slice, indices[:, :2], is_xor))
    return found


def _color(region: Dataset) -> tuple[int, int, int] | None:
    color = [int(value) for value in region.get("ROIDisplayColor") or ()]
    return (color[0], color[1], color[2]) if len(color) == 3 else None


def _extended(grid: Grid, contours: Mapping[int, Sequence[_Contour]]) -> tuple[Grid, dict[int, list[_Contour]]]:
    """Return the grid enlarged by whole voxels until it holds all contours, and the contours in its indices."""
    every = [contour for some in contours.values() for contour in some]
    low, high = np.zeros(3, int), np.array(grid.shape)
    for contour in every:
        corners = np.column_stack([contour.corners, np.full(len(contour.corners), contour.k)])
        low = np.minimum(low, np.ceil(corners.min(axis=0) - 0.5).astype(int))
        high = np.maximum(high, np.floor(corners.max(axis=0) + 0.5).astype(int) + 1)
    moved = {
        n: [replace(one, k=one.k - int(low[2]), corners=one.corners - low[:2]) for one in some]
        for n, some in contours.items()
    }
    return grid.box(low.tolist(), high.tolist()), moved


def _beyond(contours: Mapping[str, Sequence[_Contour]], grid: Grid, name: str) -> list[Notice]:
    """Return a notice for each structure whose contours reach beyond the slices that they lie on."""
    notices = []
    for structure, some in contours.items():
        reach = [
            np.concatenate([-0.5 - one.corners, one.corners - np.array(grid.shape[:2]) + 0.5]).max() for one in some
        ]
        if max(reach, default=0.0) > BEYOND_VOXELS:
            text = f"contours of {structure} in {name} reach up to {max(reach):.1f} voxels beyond the scan"
            notices.append(Notice("labels.beyond_scan", f"{text}; the voxels there are left out", structure))
    return notices


def _check_slices(contours: Mapping[str, Sequence[_Contour]], grid: Grid, name: str) -> None:
    """Refuse contours that lie on no slice of the grid.

    Args:
        contours: contours by the names of their structures.
        grid: grid of the scan.
        name: name of the file, for messages.
    """
    count = grid.shape[2]
    tolerance = min(MAX_PLANE_TOLERANCE, PLANE_TOLERANCE + ROUNDED_MM / grid.spacing_mm[2])
    faults = {}
    for structure, some in contours.items():
        outside = sorted({one.k for one in some if not 0 <= one.k < count})
        between = sorted({one.k for one in some if 0 <= one.k < count and one.off_slice > tolerance})
        texts = [f"on slices {_listed(outside)} outside of the scan"] if outside else []
        texts += [f"off the planes of slices {_listed(between)}"] if between else []
        if texts:
            faults[structure] = " and ".join(texts)
    if faults:
        found = "; ".join(f"{structure} has contours {text}" for structure, text in faults.items())
        fitting = [structure for structure in contours if structure not in faults]
        advice = f"; or read the others alone: --segments {' '.join(map(repr, fitting))}" if fitting else ""
        raise InputError(
            "geometry.not_on_slices",
            f"in {name}, {found} (the scan has slices 0 to {count - 1}); expected contours on the slices of the scan "
            f"that it was drawn on{advice}",
        )


def _listed(slices: Sequence[int]) -> str:
    """Return slice numbers in words, runs shortened: "3 to 7, 9"."""
    runs: list[list[int]] = []
    for k in slices:
        if runs and k == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], k]
        else:
            runs.append([k])
    shown = [" to ".join(map(str, run)) for run in runs]
    return ", ".join(shown[:6] + (["..."] if len(shown) > 6 else []))


def _filled(contours: Sequence[_Contour], grid: Grid) -> Iterator[tuple[int, NDArray[np.bool_], bool]]:
    """Yield for each slice its number, the enclosed voxels (I, J), and whether contours overlap partially."""
    shape, pixel_mm = grid.shape[:2], grid.spacing_mm[:2]
    for k in sorted({contour.k for contour in contours}):
        here = [contour for contour in contours if contour.k == k]
        corners = [contour.corners for contour in here]
        if len(here) == 1 or any(contour.is_xor for contour in here):
            yield k, enclosed_by_odd(corners, shape), False
        else:
            yield k, *enclosed(corners, shape, pixel_mm)
