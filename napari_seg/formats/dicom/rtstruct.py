"""Read the contours of RT structure sets (PS3.3 A.19) as label maps; `contours` decides which voxels they enclose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, without_private_text
from napari_seg.formats.dicom.contours import enclosed, enclosed_by_odd
from napari_seg.formats.dicom.headers import quiet_pydicom
from napari_seg.formats.dicom.objects import object_label, read_object
from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.structure_names import find_names
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
    """Read the contours of a structure set as a label map, labels in the order of its ROI numbers.

    A voxel belongs to a structure if its centre lies inside the structure's contours on its slice, see
    `contours.enclosed`; for contours of the type CLOSEDPLANAR_XOR, inside an odd number of them.

    Args:
        path: the file.
        grid: grid of the scan that it was drawn on.
        only: names of the required structures; all if empty.
        extend: enlarge the grid by whole voxels where contours reach beyond it.

    Raises:
        InputError: `file.*`, such as two structures with one number; `geometry.not_on_slices`, contours lie between the
            slices of the grid, or outside of it; `labels.overlap`, structures share voxels; `labels.unknown`, it lacks
            a required structure.
    """
    dataset = read_object(path)
    file_name = object_label(dataset, path)
    text = f"{file_name} is not a usable RT structure set ({{kind}})"
    with quiet_pydicom(), without_private_text(InputError, "file.bad_header", text):
        described = [(int(roi.ROINumber), str(roi.get("ROIName") or "")) for roi in dataset.StructureSetROISequence]
        names = dict(described)
        only = find_names(only, [name for _, name in described], file_name)
        structures = list(_structures(dataset, names, only, grid))
        drawn = {int(item.ReferencedROINumber) for item in _items(dataset) if item.get("ContourSequence")}
    for number, name in described:
        if name != (other := names[number]) and (not only or {name, other} & set(only)):
            text = (
                f"{file_name} gives {name} and {other} the number {number}, so that their contours can't be told apart"
            )
            raise InputError("file.bad_header", f"{text}; expected a number of its own for each; export it again")
    text = f"in {file_name} has no closed contour, only points or open lines; no voxel is inside"
    notices = [Notice("labels.not_closed", f"{one.name} {text}", one.name) for one in structures if one.is_open]
    if not only and (missing := sorted(drawn - names.keys())):
        text = f"{file_name} holds contours of structures {_listed(missing)} that it does not describe"
        notices.append(Notice("labels.undescribed", f"{text}; they are left out"))
    if extend:
        grid, structures = _extended(grid, structures)
    else:
        notices += _beyond(structures, grid, file_name)
    _check_slices(structures, grid, file_name)
    array = np.zeros(grid.shape, smallest_label_type(len(names)))
    for structure in structures:
        notices += _fill(array, structure, grid, file_name)
    segments = tuple(Segment(one.label, one.name, one.color) for one in structures)
    return Segmentation(array, grid, segments, notices=tuple(notices))


@dataclass(frozen=True, eq=False)
class _Contour:
    """A closed contour.

    Attributes:
        k: index of the slice that is nearest to it.
        off_slice: distance from that slice, in slice spacings.
        corners: (N, 2) corners, as fractional indices I and J.
        is_xor: whether a voxel is enclosed if it lies inside an odd number of contours of this type.
    """

    k: int
    off_slice: float
    corners: NDArray[np.float64]
    is_xor: bool


@dataclass(frozen=True, eq=False)
class _Structure:
    """A structure with its closed contours.

    Attributes:
        label: its place among all structures of the file in the order of their numbers, counted from 1.
        name: its name.
        color: red, green, blue, each 0 to 255.
        contours: its closed contours.
        is_open: whether it has contours, but no closed one.
    """

    label: int
    name: str
    color: tuple[int, int, int]
    contours: tuple[_Contour, ...]
    is_open: bool


def _structures(dataset: Dataset, names: Mapping[int, str], only: Sequence[str], grid: Grid) -> Iterator[_Structure]:
    """Yield the structures of some names in the order of their numbers; all if there are no names.

    Args:
        dataset: the structure set.
        names: names of all structures by number.
        only: names of the required structures.
        grid: grid of the scan.
    """
    items: dict[int, list[Dataset]] = {}
    for item in _items(dataset):  # some programs write several items of one structure
        items.setdefault(int(item.ReferencedROINumber), []).append(item)
    for label, number in enumerate(sorted(names), start=1):
        if only and names[number] not in only:
            continue
        own = items.get(number, [])
        contours = tuple(contour for item in own for contour in _contours(item, grid))
        color = next((color for item in own if (color := _color(item))), distinct_color(label))
        is_open = not contours and any(item.get("ContourSequence") for item in own)
        yield _Structure(label, names[number] or f"structure {number}", color, contours, is_open)


def _items(dataset: Dataset) -> Sequence[Dataset]:
    """Return the items of the contours of structures."""
    return dataset.get("ROIContourSequence") or ()


def _contours(item: Dataset, grid: Grid) -> list[_Contour]:
    """Return the closed contours in an item of ROIContourSequence; points and open lines are marks."""
    found = []
    for contour in item.get("ContourSequence") or ():
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


def _color(item: Dataset) -> tuple[int, int, int] | None:
    """Return the display colour of an item of ROIContourSequence; None if it has none."""
    color = [int(value) for value in item.get("ROIDisplayColor") or ()]
    return (color[0], color[1], color[2]) if len(color) == 3 else None


def _extended(grid: Grid, structures: Sequence[_Structure]) -> tuple[Grid, list[_Structure]]:
    """Return the grid enlarged by whole voxels until it holds all contours, and the structures in its indices."""
    low, high = np.zeros(3, int), np.array(grid.shape)
    for contour in (contour for structure in structures for contour in structure.contours):
        corners = np.column_stack([contour.corners, np.full(len(contour.corners), contour.k)])
        low = np.minimum(low, np.ceil(corners.min(axis=0) - 0.5).astype(int))
        high = np.maximum(high, np.floor(corners.max(axis=0) + 0.5).astype(int) + 1)

    def moved(contour: _Contour) -> _Contour:
        return replace(contour, k=contour.k - int(low[2]), corners=contour.corners - low[:2])

    extended = [replace(one, contours=tuple(map(moved, one.contours))) for one in structures]
    return grid.box(low.tolist(), high.tolist()), extended


def _beyond(structures: Sequence[_Structure], grid: Grid, file_name: str) -> list[Notice]:
    """Return a notice for each structure whose contours reach beyond the slices that they lie on."""
    notices = []
    last = np.array(grid.shape[:2]) - 0.5
    for structure in structures:
        reach = max((np.maximum(-0.5 - c.corners, c.corners - last).max() for c in structure.contours), default=0.0)
        if reach > BEYOND_VOXELS:
            text = f"contours of {structure.name} in {file_name} reach up to {reach:.1f} voxels beyond the scan"
            notices.append(Notice("labels.beyond_scan", f"{text}; the voxels there are left out", structure.name))
    return notices


def _check_slices(structures: Sequence[_Structure], grid: Grid, file_name: str) -> None:
    """Refuse contours that lie on no slice of the grid."""
    count = grid.shape[2]
    tolerance = min(MAX_PLANE_TOLERANCE, PLANE_TOLERANCE + ROUNDED_MM / grid.spacing_mm[2])
    faults = {}
    for structure in structures:
        outside = sorted({c.k for c in structure.contours if not 0 <= c.k < count})
        between = sorted({c.k for c in structure.contours if 0 <= c.k < count and c.off_slice > tolerance})
        texts = [f"on slices {_listed(outside)} outside of the scan"] if outside else []
        texts += [f"off the planes of slices {_listed(between)}"] if between else []
        if texts:
            faults[structure.name] = " and ".join(texts)
    if faults:
        found = "; ".join(f"{name} has contours {text}" for name, text in faults.items())
        valid = [structure.name for structure in structures if structure.name not in faults]
        advice = f"; or read the others alone: --segments {' '.join(map(repr, valid))}" if valid else ""
        raise InputError(
            "geometry.not_on_slices",
            f"in {file_name}, {found} (the scan has slices 0 to {count - 1}); expected contours on the slices of the "
            f"scan that it was drawn on{advice}",
        )


def _fill(array: NDArray, structure: _Structure, grid: Grid, file_name: str) -> list[Notice]:
    """Write the label of a structure into the voxels (I, J, K) that it encloses, and return doubts about it."""
    notices, crossing, count = [], [], 0
    for k, inside, is_overlapping in _filled(structure.contours, grid):
        if is_overlapping:
            crossing.append(k)
        if overlap := int(np.count_nonzero(array[..., k][inside])):
            raise InputError(
                "labels.overlap",
                f"{structure.name} shares {overlap} voxels with other structures of {file_name}, and a label map holds "
                "one label a voxel; name the structures to read",
            )
        array[..., k][inside] = structure.label
        count += int(np.count_nonzero(inside))
    if structure.contours and not count:
        text = f"the contours of {structure.name} in {file_name} enclose the centre of no voxel; it has 0 voxels"
        notices.append(Notice("labels.no_voxels", text, structure.name))
    if crossing:
        text = f"contours of {structure.name} in {file_name} overlap on slices {_listed(crossing)}"
        text = f"{text}; all voxels inside any of them count as inside"
        notices.append(Notice("labels.contours_overlap", text, structure.name))
    drawn = sorted({contour.k for contour in structure.contours})
    if len(drawn) > 1 and np.median(np.diff(drawn)) >= 2:
        text = f"{structure.name} in {file_name} has contours on {len(drawn)} of the slices {drawn[0]} to {drawn[-1]}"
        text = f"{text}, mostly without neighbours; the slices between them are empty; to fill them, use edit with"
        notices.append(Notice("labels.slices_skipped", f"{text} --fill-between", structure.name))
    return notices


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
