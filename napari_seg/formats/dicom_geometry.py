"""Where the frames of a DICOM series lie, and whether together they are a volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats.dicom_series import Header, Tags, image_type
from napari_seg.geometry import SHEAR_TOLERANCE, Grid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ORIENTATION_TOLERANCE = 1e-3
"""Difference between direction cosines, or relative one between pixel spacings, that a series may have in itself."""

SAME_PLACE_PIXELS = 0.01
"""Slices nearer to each other than this part of a pixel lie at one place."""

MISPLACED_SLICES = 0.05
"""How far, in slice spacings, a slice may lie from its place on the regular grid: positions rounded to 0.1 mm pass."""

MISPLACED_PIXELS = 0.1
"""The same sideways, in pixels."""

MOST_TILT = 0.708
"""Sine of the steepest tilt that is believed, 45 degrees; scanners reach 30."""

_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: where it lies (in DICOM's own frame, LPS+, mm), and what turns its stored values into true ones.

    Attributes:
        path: the file that holds it.
        index: its place in that file; 0 in a file of one frame.
        identity: what two copies of it share.
        turn: instance number and place in the file, by which frames at one position are told apart.
        rows: number of rows (J).
        columns: number of columns (I).
        position: (3,) the centre of the first pixel.
        orientation: (2, 3) unit vectors along which the column index and the row index grow.
        spacing_mm: (2,) between columns, between rows.
        image_type: DICOM's ImageType or FrameType, in full.
        slope: true value = stored value * slope + intercept.
        intercept: see slope.
    """

    path: Path
    index: int
    identity: tuple
    turn: tuple[int, int]
    rows: int
    columns: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    image_type: tuple[str, ...]
    slope: float
    intercept: float

    @property
    def label(self) -> str:
        """What a message calls it."""
        return self.path.name if self.index == 0 else f"{self.path.name}[{self.index}]"


def frames_of(header: Header) -> list[Frame]:
    """The frames that one file holds: one, or as many as its functional groups describe.

    Raises:
        InputError: `series.multiframe`, several frames without functional groups for each; `geometry.incomplete`,
            no usable position, orientation or pixel spacing; `file.bad_header`.
    """
    path, tags = header.path, header.tags
    per_frame = tags.get("PerFrameFunctionalGroupsSequence")
    count = int(tags.get("NumberOfFrames") or 1)
    if not per_frame:
        if count > 1:
            raise InputError(
                "series.multiframe",
                f"{path.name} holds {count} frames and does not say where each lies; export it as NIfTI",
            )
        return [_frame(path, tags, 0, lambda group, keyword: tags.get(keyword))]
    if len(per_frame) != count:
        raise InputError("series.multiframe", f"{path.name} holds {count} frames and describes {len(per_frame)}")
    shared = (tags.get("SharedFunctionalGroupsSequence") or [None])[0]

    def lookup_for(own: Dataset) -> Callable[[str, str], Any]:
        def lookup(group: str, keyword: str) -> Any:
            for groups in (own, shared):
                if groups is not None and groups.get(group):
                    return groups[group][0].get(keyword)
            return tags.get(keyword)

        return lookup

    return [_frame(path, tags, index, lookup_for(own)) for index, own in enumerate(per_frame)]


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames in the order in which they lie, and the straight grid that they fill.

    Attributes:
        frames: of one volume.
        grid: over columns, rows and slices, in RAS+. It spans all slices of a tilted gantry, and so is larger in the
            plane than they are.
        begin: (2,) column and row of the grid at which the first slice begins.
        shift: (2,) columns and rows by which each slice lies farther than the one before; 0 unless the gantry was
            tilted.
    """

    frames: list[Frame]
    grid: Grid
    begin: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def is_tilted(self) -> bool:
        return bool(self.shift.any())

    def begins(self) -> NDArray[np.float64]:
        """(K, 2) column and row of the grid at which each slice begins."""
        begins = self.begin + np.arange(len(self.frames))[:, None] * self.shift
        return np.maximum(begins.round(6), 0)  # a hair below a whole pixel is that pixel


def arrange(frames: Sequence[Frame], name: str, volume: int | None = None, *, tilted: bool = False) -> Stack:
    """The frames in the order in which they lie, and the grid that they fill.

    The slice axis grows along the cross product of the column and row axes, whatever the files' order was. Its
    spacing comes from the first and the last position, never from SliceThickness.

    Args:
        frames: of one series.
        name: of the series.
        volume: which of several stacks at the same positions, counted from 0 in the order of their instance numbers;
            None: there must be one.
        tilted: whether the stack may lean, as under a tilted gantry.

    Raises:
        InputError: `geometry.*` or `series.*`, they do not fill a regular grid; which rule is broken, and where.
    """
    _check_alike(frames, name)
    first = frames[0]
    normal = np.cross(*first.orientation)
    frames = _one_stack(sorted(frames, key=lambda frame: float(frame.position @ normal)), normal, name, volume)
    if len(frames) == 1:
        raise InputError(
            "geometry.single_slice", f"{name} has one slice, {first.label}; expected a volume; give the whole folder"
        )
    positions = np.array([frame.position for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    sine = float(np.linalg.norm(step - (step @ normal) * normal) / np.linalg.norm(step))
    is_tilted = sine > SHEAR_TOLERANCE
    text = (
        f"the slices of {name} are stacked {np.degrees(np.arcsin(sine)):.1f} degrees off their normal (a tilted "
        "gantry); expected a straight stack; up to 45 degrees --resample-tilt shifts them onto a straight grid"
    )
    if sine > MOST_TILT:
        raise InputError("geometry.shear", text)
    _check_even(frames, positions, step, normal, name)
    if is_tilted and not tilted:
        raise ChoiceNeeded("geometry.shear", text, "resample_tilt")
    affine = np.eye(4)
    affine[:3, :2] = (first.orientation * first.spacing_mm[:, None]).T
    affine[:3, 2] = (step @ normal) * normal if is_tilted else step
    shift = first.orientation @ step / first.spacing_mm if is_tilted else np.zeros(2)
    farthest = shift * (len(frames) - 1)
    begin = np.ceil(np.maximum(-farthest, 0))
    affine[:3, 3] = positions[0] - affine[:3, :2] @ begin
    columns, rows = np.add((first.columns, first.rows), begin + np.ceil(np.maximum(farthest, 0)))
    return Stack(frames, Grid((int(columns), int(rows), len(frames)), _RAS_FROM_LPS @ affine), begin, shift)


def _frame(path: Path, tags: Tags, index: int, lookup: Callable[[str, str], Any]) -> Frame:
    position = _numbers(lookup("PlanePositionSequence", "ImagePositionPatient"), 3)
    cosines = _numbers(lookup("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    between_rows_columns = _numbers(lookup("PixelMeasuresSequence", "PixelSpacing"), 2)
    for value, what in ((position, "position"), (cosines, "orientation"), (between_rows_columns, "pixel spacing")):
        if value is None:
            raise InputError("geometry.incomplete", f"{path.name} gives no usable {what}; leave it out or re-export it")
    assert position is not None
    assert cosines is not None
    assert between_rows_columns is not None
    orientation = cosines.reshape(2, 3)
    lengths = np.linalg.norm(orientation, axis=1)
    if np.abs(lengths - 1).max() > ORIENTATION_TOLERANCE or between_rows_columns.min() <= 0:
        raise InputError(
            "geometry.incomplete",
            f"{path.name} has direction vectors of length {lengths[0]:.4g} and {lengths[1]:.4g} (expected 1) and pixel "
            f"spacing {_mm(between_rows_columns)} (expected above 0); re-export it",
        )
    kinds = (lookup(f"{modality}FrameTypeSequence", "FrameType") for modality in ("MRImage", "CTImage", "PET"))
    frame_type = next((tuple(kind) for kind in kinds if kind), None)
    slope = _number(lookup("PixelValueTransformationSequence", "RescaleSlope"), missing=1.0)
    intercept = _number(lookup("PixelValueTransformationSequence", "RescaleIntercept"), missing=0.0)
    if not slope or not np.isfinite([slope, intercept]).all():
        raise InputError("file.bad_header", f"{path.name} rescales its values by {slope} and {intercept}; re-export it")
    return Frame(
        path=path,
        index=index,
        identity=(str(tags.get("SOPInstanceUID") or path), index, tags.get("InstanceNumber"), tuple(position)),
        turn=(int(tags.get("InstanceNumber") or 0), index),
        rows=int(tags.get("Rows") or 0),
        columns=int(tags.get("Columns") or 0),
        position=position,
        orientation=orientation / lengths[:, None],
        spacing_mm=between_rows_columns[::-1],
        image_type=frame_type or image_type(tags),
        slope=slope,
        intercept=intercept,
    )


def _number(value: Any, missing: float) -> float:
    return missing if value is None else float(value)


def _numbers(values: Any, count: int) -> NDArray[np.float64] | None:
    try:
        numbers = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _check_alike(frames: Sequence[Frame], name: str) -> None:
    first = frames[0]
    for other in frames:
        if np.abs(other.orientation - first.orientation).max() > ORIENTATION_TOLERANCE:
            raise InputError(
                "geometry.mixed_orientation",
                f"the slices of {name} do not lie parallel: {first.label} and {other.label} have different "
                "orientations; expected one; separate them",
            )
        if (other.rows, other.columns) != (first.rows, first.columns):
            raise InputError(
                "series.mixed_size",
                f"the slices of {name} differ in size: {first.label} has {first.columns} x {first.rows} pixels, "
                f"{other.label} {other.columns} x {other.rows}; separate them",
            )
        if np.abs(other.spacing_mm / first.spacing_mm - 1).max() > ORIENTATION_TOLERANCE:
            raise InputError(
                "series.mixed_spacing",
                f"the slices of {name} differ in pixel spacing: {first.label} has {_mm(first.spacing_mm)}, "
                f"{other.label} {_mm(other.spacing_mm)}; separate them",
            )
        if other.image_type != first.image_type:
            raise InputError(
                "series.mixed_image_type",
                f"{name} mixes images of different kinds: {first.label} is {'/'.join(first.image_type)}, {other.label} "
                f"{'/'.join(other.image_type)}; expected one kind; separate them",
            )


def _one_stack(frames: list[Frame], normal: NDArray[np.float64], name: str, volume: int | None) -> list[Frame]:
    """The frames (sorted) of the one volume, or of the one that is wanted; no two may lie at one place."""
    gaps = np.diff([frame.position @ normal for frame in frames])
    place = np.concatenate([[0], np.cumsum(gaps > SAME_PLACE_PIXELS * frames[0].spacing_mm.min())])
    counts = Counter(place.tolist())
    most = max(counts.values())
    complete = len(counts) > 1 and set(counts.values()) == {most}
    if volume is not None and (most == 1 or complete) and not 0 <= volume < most:
        raise InputError(
            "data.no_such_volume",
            f"{name} holds {most} volumes; found --volume {volume}, expected 0 to {most - 1}",
        )
    if most == 1:
        return frames
    if complete:
        places = [frames[n : n + most] for n in range(0, len(frames), most)]
        if any(len({frame.turn for frame in several}) < most for several in places):
            raise InputError(
                "series.4d",
                f"{name} holds {most} volumes whose slices have equal instance numbers, so nobody knows which belong "
                "together; separate them",
            )
        if volume is None:
            raise ChoiceNeeded(
                "series.4d",
                f"{name} holds {most} complete stacks at the same {len(counts)} positions (times, echoes or "
                f"directions); expected one; choose one with --volume, 0 to {most - 1}",
                "volume",
                most,
            )
        return [sorted(several, key=lambda frame: frame.turn)[volume] for several in places]
    shared = max(counts, key=lambda p: counts[p])
    labels = [frame.label for frame, p in zip(frames, place, strict=True) if p == shared]
    raise InputError(
        "geometry.duplicate_position",
        f"{name} has {len(labels)} slices at one position: {', '.join(labels[:4])}{', ...' if len(labels) > 4 else ''}"
        "; expected one; leave out the others",
    )


def _check_even(
    frames: Sequence[Frame],
    positions: NDArray[np.float64],
    step: NDArray[np.float64],
    normal: NDArray[np.float64],
    name: str,
) -> None:
    ideal = positions[0] + np.arange(len(frames))[:, None] * step
    along = (positions - ideal) @ normal
    sideways = np.linalg.norm(positions - ideal - along[:, None] * normal, axis=1)
    if sideways.max() > MISPLACED_PIXELS * frames[0].spacing_mm.min():
        worst = frames[int(sideways.argmax())]
        raise InputError(
            "geometry.shear",
            f"{worst.label} in {name} lies {sideways.max():.3g} mm beside the straight line of its neighbours; "
            "expected a straight stack; re-export the series",
        )
    if np.abs(along).max() <= MISPLACED_SLICES * (step @ normal):
        return
    gaps = np.diff(positions @ normal)
    pitch = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
    places = np.rint(gaps / pitch).astype(int)
    found = f"slices lie {_distances(gaps)} mm apart in {name}"
    if np.abs(gaps / pitch - places).max() <= 2 * MISPLACED_SLICES:
        wide = np.flatnonzero(places > 1)
        where = "; ".join(
            f"{places[n] - 1} missing between {frames[n].label} and {frames[n + 1].label}" for n in wide[:3]
        )
        more = "; ..." if len(wide) > 3 else ""
        raise InputError("geometry.missing_slice", f"{found} ({where}{more}); expected even spacing; re-export it")
    n = int(np.abs(gaps - np.median(gaps)).argmax())
    raise InputError(
        "geometry.uneven_spacing",
        f"{found} ({gaps[n]:.4g} mm between {frames[n].label} and {frames[n + 1].label}); expected even spacing; "
        "resample it on an even grid first",
    )


def _distances(gaps: NDArray[np.float64]) -> str:
    """Such as "5, 5 and 10", or the different ones only where there are many."""
    texts = [f"{gap:.4g}" for gap in gaps]
    if len(texts) > 6:
        texts = [text for text, _ in Counter(texts).most_common(4)]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _mm(spacing: NDArray[np.float64]) -> str:
    return f"{spacing[0]:.4g} x {spacing[1]:.4g} mm"
