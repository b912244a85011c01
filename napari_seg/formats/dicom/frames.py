"""Read the frames of DICOM files with their positions: plain images, enhanced objects, nuclear medicine, mosaics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, without_private_text
from napari_seg.formats.dicom.headers import Header, image_type, quiet_pydicom
from napari_seg.formats.dicom.kinds import ORIENTATION_TOLERANCE, Kind
from napari_seg.formats.dicom.mosaic import mosaic_of
from napari_seg.formats.dicom.volumes import DIMENSION, VOLUME_ATTRIBUTES, Value, value_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_VECTORS = (
    "SliceVector",
    "EnergyWindowVector",
    "PhaseVector",
    "RRIntervalVector",
    "TimeSlotVector",
    "TimeSliceVector",
    "RotationVector",
    "AngularViewVector",
)
"""Vectors of nuclear medicine: for each frame its slice, and other indices that may distinguish volumes."""


RESCALING = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
"""Keywords of slope and intercept, and the values that change nothing, for files that do not state them."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: its geometry in DICOM's frame, LPS+, and how its stored values are rescaled.

    Attributes:
        header: header of the file that holds it.
        label: name for messages.
        index: number of the frame in the file, counted from 0.
        identity: key that copies of one frame have in common.
        number: instance number and number of the frame in the file.
        attributes: attributes that may distinguish it from other slices at its position, by keyword.
        rows: number of rows (J).
        columns: number of columns (I).
        position: (3,) centre of the first pixel, in mm.
        orientation: (2, 3) unit vectors along which the column index and the row index grow.
        spacing_mm: (2,) between columns, between rows.
        image_type: all values of DICOM's ImageType or FrameType.
        slope: rescale slope: value = stored value * slope + intercept.
        intercept: rescale intercept.
        assumed: keywords of slope and intercept if the file does not state them, so that 1 and 0 were assumed.
        tile: first row and column of the slice in a stored frame that is a mosaic; None if the slice is the frame.
        thickness_mm: thickness of the slice; 0 if the file states none above 0.
    """

    header: Header
    label: str
    index: int
    identity: tuple
    number: tuple[int, int]
    attributes: Mapping[str, Value]
    rows: int
    columns: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    image_type: tuple[str, ...]
    slope: float
    intercept: float
    assumed: tuple[str, ...] = ()
    tile: tuple[int, int] | None = None
    thickness_mm: float = 0.0

    @property
    def kind(self) -> Kind:
        """Return the properties that the slices of one volume share."""
        row_mm, column_mm = self.spacing_mm[::-1].tolist()
        cosines = tuple(self.orientation.ravel().tolist())
        return Kind(cosines, self.rows, self.columns, (row_mm, column_mm), self.image_type)


def frames_of(header: Header) -> list[Frame]:
    """Return the frames of one file: one, or as many as its functional groups, slice vector or tiles.

    Raises:
        InputError: `series.multiframe`, several frames without positions; `geometry.incomplete`, no usable position,
            orientation or pixel spacing; `series.mosaic`, no description of how a mosaic is tiled;
            `file.bad_header`.
    """
    text = f"{header.label} has a DICOM header that can't be read ({{kind}})"
    with quiet_pydicom(), without_private_text(InputError, "file.bad_header", text):
        return _frames_of(header)


def _frames_of(header: Header) -> list[Frame]:
    """Return the frames of one file by the kind of its object."""
    tags = header.tags
    count = int(tags.get("NumberOfFrames") or 1)
    if tags.get("PerFrameFunctionalGroupsSequence"):
        return _enhanced_frames(header, count)
    if tags.get("DetectorInformationSequence") and not tags.get("ImagePositionPatient"):
        return _nuclear_frames(header, count)
    if count > 1:
        raise InputError(
            "series.multiframe",
            f"{header.label} holds {count} frames and does not say where each lies; export it as NIfTI",
        )
    frame = _frame(header, 0, lambda group, keyword: tags.get(keyword), _attributes(tags.get))
    return _tiles(header, frame) if "MOSAIC" in frame.image_type else [frame]


def _tiles(header: Header, stored: Frame) -> list[Frame]:
    """Return the slices of a mosaic, row by row.

    The position of a mosaic is that of its own corner, as if the first slice were enlarged around its centre to the
    size of the mosaic: the first pixel of that slice lies half the difference of the sizes farther along rows and
    columns.
    """
    mosaic = mosaic_of(header)
    cross = np.cross(*stored.orientation)
    cosine = float(cross @ mosaic.normal)
    per_side = mosaic.tiles_per_side
    if stored.rows % per_side or stored.columns % per_side or abs(abs(cosine) - 1) > ORIENTATION_TOLERANCE:
        raise InputError(
            "series.mosaic",
            f"{header.label} is a mosaic of {mosaic.slices} slices in {stored.rows} rows of {stored.columns} pixels, "
            f"stacked at a cosine of {cosine:.4g} to its normal; expected {per_side} x {per_side} equal tiles and a "
            "cosine of 1; export it unmosaicked",
        )
    rows, columns = stored.rows // per_side, stored.columns // per_side
    margin = np.array([stored.columns - columns, stored.rows - rows]) * stored.spacing_mm / 2
    first, step = stored.position + margin @ stored.orientation, np.sign(cosine) * mosaic.step_mm * cross
    return [
        replace(
            stored,
            label=f"slice {n} of {stored.label}",
            identity=(*stored.identity, n),
            rows=rows,
            columns=columns,
            position=first + n * step,
            tile=(n // per_side * rows, n % per_side * columns),
        )
        for n in range(mosaic.slices)
    ]


def _sequences(path: Path, *keywords: str) -> Dataset:
    """Read some attributes of a file that `Header` does not keep."""
    import pydicom

    return pydicom.dcmread(path, specific_tags=list(keywords), stop_before_pixels=True, force=True)


def _enhanced_frames(header: Header, count: int) -> list[Frame]:
    """Return the frames of an enhanced object, each with its own and the shared functional groups."""
    tags = header.tags
    keywords = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence")
    dataset = _sequences(header.path, *keywords)
    shared, per_frame, dimensions = (list(dataset.get(keyword) or ()) for keyword in keywords)
    if len(per_frame) != count:
        raise InputError("series.multiframe", f"{header.label} holds {count} frames and describes {len(per_frame)}")

    def lookup_for(own: Dataset) -> Callable[[str, str], Any]:
        def lookup(group: str, keyword: str) -> Any:
            for groups in (own, *shared[:1]):
                if groups.get(group):
                    return groups[group][0].get(keyword)
            return tags.get(keyword)

        return lookup

    frames = []
    for index, own in enumerate(per_frame):
        lookup = lookup_for(own)
        attributes = _attributes(tags.get) | _attributes_of_groups((own, *shared[:1]))
        indices = value_of(lookup("FrameContentSequence", "DimensionIndexValues"))
        if len(indices) == len(dimensions) or not dimensions:
            attributes |= {f"{DIMENSION}{n:02d}": (value,) for n, value in enumerate(indices, start=1)}
        frames.append(_frame(header, index, lookup, attributes))
    return frames


def _nuclear_frames(header: Header, count: int) -> list[Frame]:
    """Return reconstructed slices of nuclear medicine (PS3.3 C.8.4.15) from a first position, a step and vectors."""
    tags = header.tags
    dataset = _sequences(header.path, "DetectorInformationSequence", *_VECTORS)
    detectors = dataset.DetectorInformationSequence
    step = tags.get("SpacingBetweenSlices")
    numbers = [int(value) for value in np.atleast_1d(dataset.get("SliceVector") or [])]
    if len(detectors) != 1 or not isinstance(step, (int, float)) or not step or len(numbers) != count:
        raise InputError(
            "geometry.incomplete",
            f"{header.label} has {len(detectors)} detectors, a SpacingBetweenSlices of {step} and slice numbers of "
            f"{len(numbers)} of its {count} frames; expected one detector, a spacing and a number of each frame; "
            "re-export it",
        )
    vectors = {keyword: np.atleast_1d(dataset.get(keyword) or []) for keyword in _VECTORS if keyword != "SliceVector"}
    attributes = [
        _attributes(tags.get)
        | {name: value_of(int(vector[index])) for name, vector in vectors.items() if len(vector) == count}
        for index in range(count)
    ]

    def lookup(group: str, keyword: str) -> Any:
        return detectors[0].get(keyword) if keyword.startswith("Image") else tags.get(keyword)

    frames = []
    for index, (number, own) in enumerate(zip(numbers, attributes, strict=True)):
        first = _frame(header, index, lookup, own)
        # The sign of the step tells on which side of the first slice the others lie.
        position = first.position + (number - 1) * step * np.cross(*first.orientation)
        frames.append(replace(first, position=position))
    return frames


def _attributes_of_groups(groups: Sequence[Any]) -> dict[str, Value]:
    """Return the values of attributes that may distinguish volumes, from functional groups by priority."""
    values = {}
    for attribute in VOLUME_ATTRIBUTES:
        item: Any = next((group for group in groups if attribute.groups and group.get(attribute.groups[0])), None)
        for keyword in attribute.groups if item is not None else ():
            item = (item.get(keyword) or [{}])[0]
        if item and (value := value_of(item.get(attribute.name))):
            values[attribute.name] = value
    return values


def _attributes(get: Callable[[str], Any]) -> dict[str, Value]:
    """Return the values of attributes that may distinguish volumes, by name."""
    return {attribute.name: value for attribute in VOLUME_ATTRIBUTES if (value := value_of(get(attribute.name)))}


def _frame(header: Header, index: int, lookup: Callable[[str, str], Any], attributes: Mapping[str, Value]) -> Frame:
    """Return a frame.

    Args:
        header: header of the file.
        index: number of the frame in the file, counted from 0.
        lookup: returns an attribute by its functional group and keyword; None if it is missing.
        attributes: attributes that may distinguish it from other slices at its position.
    """
    tags, label = header.tags, header.label

    def numbers(group: str, keyword: str, count: int, meaning: str) -> NDArray[np.float64]:
        values = _numbers(lookup(group, keyword), count)
        if values is None:
            raise InputError("geometry.incomplete", f"{label} gives no usable {meaning}; leave it out or re-export it")
        return values

    position = numbers("PlanePositionSequence", "ImagePositionPatient", 3, "position")
    cosines = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6, "orientation")
    pixel_spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2, "pixel spacing")
    orientation = cosines.reshape(2, 3)
    lengths = np.linalg.norm(orientation, axis=1)
    if np.abs(lengths - 1).max() > ORIENTATION_TOLERANCE or pixel_spacing.min() <= 0:
        raise InputError(
            "geometry.incomplete",
            f"{label} has direction vectors of length {lengths[0]:.4g} and {lengths[1]:.4g} (expected 1) and pixel "
            f"spacing {millimetres(pixel_spacing)} (expected above 0); re-export it",
        )
    kinds = (lookup(f"{modality}FrameTypeSequence", "FrameType") for modality in ("MRImage", "CTImage", "PET"))
    frame_type = next((tuple(kind) for kind in kinds if kind), None)
    stated = {keyword: lookup("PixelValueTransformationSequence", keyword) for keyword in RESCALING}
    slope, intercept = (
        float(assumed if stated[keyword] is None else stated[keyword]) for keyword, assumed in RESCALING.items()
    )
    if not slope or not np.isfinite([slope, intercept]).all():
        raise InputError("file.bad_header", f"{label} rescales its values by {slope} and {intercept}; re-export it")
    thickness = _numbers([lookup("PixelMeasuresSequence", "SliceThickness")], 1)
    return Frame(
        header=header,
        label=label if index == 0 else f"{label}[{index}]",
        index=index,
        identity=(str(tags.get("SOPInstanceUID") or header.path), index, tags.get("InstanceNumber"), tuple(position)),
        number=(int(tags.get("InstanceNumber") or 0), index),
        attributes=attributes,
        rows=int(tags.get("Rows") or 0),
        columns=int(tags.get("Columns") or 0),
        position=position,
        orientation=orientation / lengths[:, None],
        spacing_mm=pixel_spacing[::-1],
        image_type=frame_type or image_type(tags),
        slope=slope,
        intercept=intercept,
        assumed=tuple(keyword for keyword, value in stated.items() if value is None),
        thickness_mm=0.0 if thickness is None else max(0.0, float(thickness[0])),
    )


def _numbers(values: Any, count: int) -> NDArray[np.float64] | None:
    """Return so many finite numbers; None for anything else."""
    try:
        numbers = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def millimetres(spacing: NDArray[np.float64]) -> str:
    """Return two lengths as text, such as "0.5 x 0.75 mm"."""
    return f"{spacing[0]:.4g} x {spacing[1]:.4g} mm"
