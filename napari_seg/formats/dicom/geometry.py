"""Solve the geometry of a DICOM series: the order of its slices and the regular grid that they fill.

A series that holds several volumes at the same positions, or images of several kinds, needs a chosen volume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats.dicom.frames import Frame, millimetres
from napari_seg.formats.dicom.headers import Header
from napari_seg.formats.dicom.kinds import is_one_stack, names_of_kinds
from napari_seg.formats.dicom.volumes import sort_into_volumes
from napari_seg.geometry import RAS_FROM_LPS, SHEAR_TOLERANCE, Grid
from napari_seg.volume import DicomInstance, DicomStack, SolvedStack, Source

SAME_POSITION_PIXELS = 0.01
"""Maximum distance of slices at one position, in pixels."""

MISPLACED_SLICES = 0.05
"""Maximum distance of a slice from its place on the regular grid along the normal, in slice spacings.

Positions that are rounded to 0.1 mm pass.
"""

MISPLACED_PIXELS = 0.1
"""Maximum distance of a slice from its place on the regular grid within the plane, in pixels."""

MAX_TILT = 0.708
"""Sine of the maximum plausible tilt, 45 degrees; scanners reach 30."""


def arrange(
    frames: Sequence[Frame], name: str, volume: int | None = None, *, tilted: bool = False, one_slice: bool = False
) -> tuple[list[Frame], SolvedStack]:
    """Return the frames of one volume in the order of their positions, and the stack that they form.

    The slice axis grows along the cross product of the column and row axes, whatever the order of the files. The
    spacing of slices comes from the first and the last position, and only that of a single slice from SliceThickness.

    Args:
        frames: frames of one series.
        name: name of the series, for messages.
        volume: number of the volume, counted from 0, in a series that holds several; None if there must be one.
        tilted: whether the gantry may be tilted.
        one_slice: whether there may be a single slice, of a stated thickness.

    Raises:
        InputError: `geometry.*` or `series.*`, they do not fill a regular grid; the message says why and where.
        ChoiceNeeded: there are several volumes and none was chosen, or the gantry was tilted.
    """
    frames = _one_volume(frames, name, volume)
    first = frames[0]
    normal = np.cross(*first.orientation)
    positions = np.array([frame.position for frame in frames])
    if len(frames) == 1:
        if not one_slice or not first.thickness_mm:
            expected = "its SliceThickness, which it does not state; export it again" if one_slice else "a volume"
            way = "" if one_slice else "; give the whole folder, or choose a model of 2D images"
            raise InputError("geometry.single_slice", f"{name} has one slice, {first.label}; expected {expected}{way}")
        step = first.thickness_mm * normal
    else:
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
    sine = float(np.linalg.norm(step - (step @ normal) * normal) / np.linalg.norm(step))
    is_tilted = sine > SHEAR_TOLERANCE
    text = (
        f"the slices of {name} are stacked {np.degrees(np.arcsin(sine)):.1f} degrees off their normal (a tilted "
        "gantry); expected a straight stack; up to 45 degrees --resample-tilt shifts them onto a straight grid"
    )
    if sine > MAX_TILT:
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
    grid = Grid((int(columns), int(rows), len(frames)), RAS_FROM_LPS @ affine)
    return frames, _solved(frames, grid, begin, shift)


def source_of(frames: Sequence[Frame], stack: SolvedStack) -> Source:
    """Return the files of a stack, in the order of its slices, together with the stack."""
    return Source("dicom", tuple(_headers(frames)), DicomStack(stack.frames, stack))


def _headers(frames: Sequence[Frame]) -> dict[Path, Header]:
    """Return the header of each file, in the order of the slices."""
    return {frame.header.path: frame.header for frame in frames}


def _solved(frames: Sequence[Frame], grid: Grid, begin: NDArray[np.float64], shift: NDArray[np.float64]) -> SolvedStack:
    """Return the stack of frames with the identifiers that results refer to."""
    headers = _headers(frames)
    files = {path: n for n, path in enumerate(headers)}
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    stated = [{str(header.tags.get(keyword) or "") for header in headers.values()} for keyword in keywords]
    study, series, frame_of_reference = (uids.pop() if len(uids) == 1 else "" for uids in stated)
    return SolvedStack(
        instances=tuple(_instance(header) for header in headers.values()),
        slices=tuple((files[frame.header.path], frame.index) for frame in frames),
        positions_mm=np.array([frame.position for frame in frames]),
        size=(frames[0].columns, frames[0].rows),
        grid=grid,
        begin=begin,
        shift=shift,
        study_uid=study,
        series_uid=series,
        frame_of_reference_uid=frame_of_reference,
    )


def _instance(header: Header) -> DicomInstance:
    """Return the identifiers of a file."""
    tags = header.tags
    return DicomInstance(
        sop_class_uid=str(tags.get("SOPClassUID") or ""),
        sop_instance_uid=str(tags.get("SOPInstanceUID") or ""),
        frame_count=max(int(tags.get("NumberOfFrames") or 1), 1),
    )


def _one_volume(frames: Sequence[Frame], name: str, volume: int | None) -> list[Frame]:
    """Return the frames of the only or the chosen volume, in the order of their positions."""
    kinds: list[list[Frame]] = []
    for frame in frames:
        kind = frame.kind
        same = next((members for members in kinds if not kind.difference(members[0].kind)), None)
        if same is None:
            kinds.append([frame])
        else:
            same.append(frame)
    fault = _mixed(kinds, name) if len(kinds) > 1 else None
    differences = {members[0].kind.difference(frames[0].kind) for members in kinds[1:]}
    shown = {frame.image_type[2:] for frame in frames}  # whether slices of one stack are derived is no matter
    if (
        differences == {"image_type"}
        and len(shown) == 1
        and is_one_stack([frame.position for frame in frames], frames[0].orientation)
    ):
        kinds, fault = [list(frames)], None
    if fault is not None and min(len(members) for members in kinds) < 2:
        raise fault
    found, texts = [], []
    for members, kind_name in zip(kinds, names_of_kinds([members[0].kind for members in kinds]), strict=True):
        volumes, text = _volumes(members, f"{name} {kind_name}".rstrip())
        found += volumes
        texts.append(f"{kind_name} ({text})" if kind_name and text else kind_name or text)
    if volume is None and len(found) > 1:
        what = "; ".join(texts)
        code = fault.code if fault is not None else "series.4d"
        text = f"{name} holds {len(found)} volumes, which differ in {what}"
        if fault is None:
            text = f"{name} holds {len(found)} complete stacks at the same {len(found[0])} positions: {what}"
        text = f"{text}; expected one; choose one with --volume, 0 to {len(found) - 1}"
        raise ChoiceNeeded(code, text, "volume", len(found))
    if volume is not None and not 0 <= volume < len(found):
        raise InputError(
            "data.no_such_volume",
            f"{name} holds {len(found)} volumes; found --volume {volume}, expected 0 to {len(found) - 1}",
        )
    return found[volume or 0]


def _mixed(kinds: Sequence[Sequence[Frame]], name: str) -> InputError:
    """Return the error for slices of different kinds."""
    first, other = kinds[0][0], kinds[1][0]
    difference = other.kind.difference(first.kind)
    if difference == "orientation":
        text = f"the slices of {name} do not lie parallel: {first.label} and {other.label} have different orientations"
        return InputError("geometry.mixed_orientation", f"{text}; expected one; separate them")
    if difference == "size":
        text = f"the slices of {name} differ in size: {first.label} has {first.columns} x {first.rows} pixels"
        return InputError("series.mixed_size", f"{text}, {other.label} {other.columns} x {other.rows}; separate them")
    if difference == "spacing":
        text = f"the slices of {name} differ in pixel spacing: {first.label} has {millimetres(first.spacing_mm)}"
        return InputError(
            "series.mixed_spacing", f"{text}, {other.label} {millimetres(other.spacing_mm)}; separate them"
        )
    text = f"{name} mixes images of different kinds: {first.label} is {'/'.join(first.image_type)}"
    text = f"{text}, {other.label} {'/'.join(other.image_type)}; expected one kind; separate them"
    return InputError("series.mixed_image_type", text)


def _volumes(frames: Sequence[Frame], name: str) -> tuple[list[list[Frame]], str]:
    """Return the volumes among frames of one kind, each in the order of positions, and their differences as text."""
    normal = np.cross(*frames[0].orientation)
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    gaps = np.diff([frame.position @ normal for frame in frames])
    numbers = np.concatenate([[0], np.cumsum(gaps > SAME_POSITION_PIXELS * frames[0].spacing_mm.min())])
    counts = Counter(numbers.tolist())
    count = max(counts.values())
    if count == 1:
        return [frames], ""
    if len(counts) == 1 or set(counts.values()) != {count}:
        crowded = max(counts, key=lambda number: counts[number])
        labels = [frame.label for frame, number in zip(frames, numbers, strict=True) if number == crowded]
        more = ", ..." if len(labels) > 4 else ""
        raise InputError(
            "geometry.duplicate_position",
            f"{name} has {len(labels)} slices at one position: {', '.join(labels[:4])}{more}; expected one; leave out "
            "the others",
        )
    positions = [frames[n : n + count] for n in range(0, len(frames), count)]
    attributes = [[frame.attributes for frame in several] for several in positions]
    instances = [[frame.number for frame in several] for several in positions]
    orders, text = sort_into_volumes(attributes, instances, name)
    return [[several[order[v]] for several, order in zip(positions, orders, strict=True)] for v in range(count)], text


def _check_even(
    frames: Sequence[Frame],
    positions: NDArray[np.float64],
    step: NDArray[np.float64],
    normal: NDArray[np.float64],
    name: str,
) -> None:
    """Refuse slices that do not lie evenly on a straight line.

    Args:
        frames: frames in the order of their positions.
        positions: (K, 3) positions in mm.
        step: (3,) mean distance from one slice to the next in mm.
        normal: (3,) normal of the slices.
        name: name of the series, for messages.
    """
    ideal = positions[0] + np.arange(len(frames))[:, None] * step
    along = (positions - ideal) @ normal
    sideways = np.linalg.norm(positions - ideal - along[:, None] * normal, axis=1)
    if sideways.max() > MISPLACED_PIXELS * frames[0].spacing_mm.min():
        worst = frames[int(sideways.argmax())]
        raise InputError(
            "geometry.shear",
            f"{worst.label} in {name} lies {sideways.max():.3g} mm off the straight line of its neighbours; "
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
    """Return distances as text, such as "5, 5 and 10"; of many, the most frequent ones only."""
    texts = [f"{gap:.4g}" for gap in gaps]
    if len(texts) > 6:
        texts = [text for text, _ in Counter(texts).most_common(4)]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
