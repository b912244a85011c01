"""Data classes that functions exchange: `Volume` with its `Source`, `Segment`, `Segmentation`."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, one_line
from napari_seg.geometry import Grid
from napari_seg.structure_names import find_names

Format = Literal["", "nifti", "itk", "image2d", "dicom"]
"""Format of a scan's files: "nifti" (pairs of .hdr and .img, too), "itk" (NRRD and MetaImage), "image2d" (2D images),
"dicom"; "" for a volume that was read from no file."""


@dataclass(frozen=True, slots=True)
class DicomInstance:
    """Identifiers of one image file of a DICOM series.

    Attributes:
        sop_class_uid: SOP class, such as CT Image Storage; "" if the file states none.
        sop_instance_uid: identifier of this image; "" if the file states none.
        frame_count: number of frames in the file.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame_count: int


@dataclass(frozen=True, eq=False)
class SolvedStack:
    """Geometry and identifiers of the slices of a DICOM series, solved once when the series is read.

    The slices of a tilted gantry lie on a straight grid that is larger in the plane than they are; each slice begins
    farther along the columns and rows of that grid than the one before.

    Attributes:
        instances: one for each file of the source.
        slices: for each slice in its order, number of its file in the source and number of its frame in that file.
        positions_mm: (K, 3) position of the first pixel of each slice, in DICOM's frame, LPS+.
        size: columns and rows of a slice.
        grid: straight grid over columns, rows and slices, in RAS+.
        begin: (2,) column and row of the grid at which the first slice begins.
        shift: (2,) columns and rows from the beginning of one slice to that of the next; 0 without a tilt.
        study_uid: identifier of the study; "" if the files state none.
        series_uid: identifier of the series; "" if the files state none.
        frame_of_reference_uid: identifier of the frame of reference; "" if the files state none, or different ones.
    """

    instances: tuple[DicomInstance, ...] = field(repr=False)
    slices: tuple[tuple[int, int], ...]
    positions_mm: NDArray[np.float64]
    size: tuple[int, int]
    grid: Grid
    begin: NDArray[np.float64]
    shift: NDArray[np.float64]
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    frame_of_reference_uid: str = field(repr=False)

    @property
    def frames(self) -> tuple[tuple[int, ...], ...]:
        """Return for each file the frames that are slices, ascending."""
        by_file: list[set[int]] = [set() for _ in self.instances]
        for file, frame in self.slices:
            by_file[file].add(frame)
        return tuple(tuple(sorted(frames)) for frames in by_file)

    @property
    def is_tilted(self) -> bool:
        """Return whether the gantry was tilted."""
        return bool(self.shift.any())

    def begins(self) -> NDArray[np.float64]:
        """Return (K, 2) the column and row of the grid at which each slice begins."""
        begins = self.begin + np.arange(len(self.slices))[:, None] * self.shift
        return np.maximum(begins.round(6), 0)  # slightly below a whole pixel is that pixel


@dataclass(frozen=True, eq=False)
class DicomStack:
    """Slices of a volume in the files of a DICOM series, as results that refer to these images need them.

    Attributes:
        frames: for each file of the source, the frames that are slices of the volume, counted from 0.
        solved: their geometry and identifiers; None if only the frames are known.
    """

    frames: tuple[tuple[int, ...], ...] = ()
    solved: SolvedStack | None = None


@dataclass(frozen=True)
class Source:
    """Files that a volume was read from; small, so that it can be passed between processes.

    Attributes:
        format: format of the files.
        files: files of this volume, in the order of its slices.
        stack: slices in the files of a DICOM series; None for other formats, or if only the files are known.
        volume: number of the volume that was chosen among several in these files, counted from 0; None if none was.
    """

    format: Format = ""
    files: tuple[Path, ...] = ()
    stack: DicomStack | None = field(default=None, compare=False)
    volume: int | None = None

    def absolute(self) -> Source:
        """Return the same files by their absolute paths."""
        return replace(self, files=tuple(file.absolute() for file in self.files))


NO_SOURCE = Source()
"""Source of what was read from no file, or from files that nobody recorded."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities on a grid, and where they came from.

    Attributes:
        array: (C, I, J, K), in the type of the file unless rescaling requires another; not to be modified.
        grid: grid of (I, J, K) in the patient.
        name: name of the scan for people; never a patient's name or identifier.
        modality: DICOM modality, such as "MR" or "CT"; "" if unknown.
        source: files that it was read from.
        notices: warnings about the file.
        channel_names: names of the channels, such as ("T1", "FLAIR"); empty if unknown.

    Raises:
        InputError: `geometry.shape`, the array does not fit the grid; `channels.count`, nor do the names.
    """

    array: NDArray
    grid: Grid
    name: str = ""
    modality: str = ""
    source: Source = NO_SOURCE
    notices: tuple[Notice, ...] = ()
    channel_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.grid.shape:
            raise InputError(
                "geometry.shape", f"found an array of shape {self.array.shape}; expected (C, {_shape(self.grid)})"
            )
        if self.channel_names and len(self.channel_names) != len(self.array):
            text = f"found {len(self.array)} channels and {len(self.channel_names)} names; expected a name for each"
            raise InputError("channels.count", text)


@dataclass(frozen=True)
class Term:
    """Code of a terminology, such as ("10200004", "SCT", "Liver") of SNOMED CT.

    Attributes:
        value: code.
        scheme: DICOM's abbreviation of the terminology: SCT, DCM, FMA, ...
        meaning: meaning in words.
    """

    value: str
    scheme: str
    meaning: str


def name_of_segment(name: str) -> str:
    """Return the name of a structure without control characters, such as the escape codes of a terminal."""
    return name if name.isprintable() else one_line(name, len(name)) or "_"


@dataclass(frozen=True)
class Segment:
    """Named structure of a label map.

    Attributes:
        label: value in the label map, above 0.
        name: name, such as "left anterior hippocampus"; spaces replace its control characters.
        color: red, green, blue, each 0 to 255.
        plausible_ml: plausible range of the volume in ml; None if unknown.
        in_one_piece: whether the structure is connected, unlike kidneys or lesions.
        category: category, such as anatomical structure; None if unknown.
        kind: type, such as liver; None if unknown.
        modifier: modifier of the type, such as left; None if there is none or it is unknown.
    """

    label: int
    name: str
    color: tuple[int, int, int]
    plausible_ml: tuple[float, float] | None = None
    in_one_piece: bool = False
    category: Term | None = None
    kind: Term | None = None
    modifier: Term | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", name_of_segment(self.name))


@dataclass(frozen=True, eq=False)
class ConfidenceMaps:
    """Confidence of a network in the label of each voxel, on the segmentation's grid.

    Where classes meet it follows from the logits at the voxel; elsewhere it is interpolated from the network's voxels.

    Attributes:
        confidence: (I, J, K) uint8, the winner's softmax probability, 255 for 1; 255 too in the
            air around the body, 0 outside the regions that a localiser gave.
        entropy: (I, J, K) uint8, of the softmax probabilities, 255 where all classes are equally likely.
    """

    confidence: NDArray[np.uint8]
    entropy: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Label map on a grid, and the table of its segments.

    Attributes:
        array: (I, J, K), unsigned integers, 0 is background.
        grid: where the array lies; a result lies on the grid of the scan it was made from.
        segments: every structure that was looked for, found or not, by ascending label.
        confidence: label -> mean probability of the segment's own voxels; a segment without voxels is absent.
        notices: doubts about the scan or the result.
        confidence_maps: confidence in every voxel's label; None if it was not required.
        run: how the network was run, plain values for the record of a result.

    Raises:
        InputError: `geometry.shape`, the array does not fit the grid; `labels.type`, it is not unsigned.
    """

    array: NDArray[np.unsignedinteger]
    grid: Grid
    segments: tuple[Segment, ...]
    confidence: Mapping[int, float] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    confidence_maps: ConfidenceMaps | None = None
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise InputError(
                "geometry.shape", f"found a label map of shape {self.array.shape}; expected ({_shape(self.grid)})"
            )
        if self.array.dtype.kind != "u":
            raise InputError("labels.type", f"found a label map of type {self.array.dtype}; expected unsigned integers")
        object.__setattr__(self, "confidence", MappingProxyType(dict(self.confidence)))
        object.__setattr__(self, "run", MappingProxyType(dict(self.run)))

    def __reduce__(self) -> tuple:
        maps = self.confidence_maps
        fields = (self.array, self.grid, self.segments, dict(self.confidence), self.notices, maps, dict(self.run))
        return type(self), fields

    def voxel_counts(self) -> dict[int, int]:
        """Return label -> number of voxels for every segment of the table; 0 for an empty segment."""
        return dict(self._voxel_counts)

    @cached_property
    def _voxel_counts(self) -> dict[int, int]:
        count = max(int(self.array.max()), *(s.label for s in self.segments), 0) + 1
        counts = np.zeros(count, np.int64)
        for part in _parts(self.array):
            counts += np.bincount(part, minlength=count)
        return {s.label: int(counts[s.label]) for s in self.segments}

    def volumes_ml(self) -> dict[int, float]:
        """Return label -> volume in ml for every segment of the table; 0 for an empty segment."""
        return {label: count * self.grid.voxel_ml for label, count in self.voxel_counts().items()}

    def centroids_mm(self) -> dict[int, NDArray[np.float64]]:
        """Return label -> centroid (3,) in mm, RAS+; an empty segment is absent."""
        found = [label for label, count in self.voxel_counts().items() if count]
        count = max(found, default=0) + 1
        means = []
        for axis in range(3):
            planes = np.moveaxis(self.array, axis, 0)
            counts = np.array([np.bincount(plane.ravel(), minlength=count)[found] for plane in planes])
            means.append(np.arange(len(planes)) @ counts / counts.sum(axis=0))
        return dict(zip(found, self.grid.to_world(np.transpose(means)), strict=True))


Origin = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]
"""DICOM's terms for the origin of labels: a program, a program and a person, a person."""


@dataclass(frozen=True)
class LabelOrigin:
    """Origin of labels, as far as it is known.

    Attributes:
        origin: part of a person in the labels; None if unknown.
        algorithm: name and version of the program or model; None if there is none or it is unknown.
        is_model: whether the algorithm is a trained model.
    """

    origin: Origin | None = None
    algorithm: tuple[str, str] | None = None
    is_model: bool = False


BY_NAPARI_SEG = LabelOrigin("AUTOMATIC", ("napari-seg", ""), is_model=True)
"""Origin of the labels that this program makes with a model that is not named."""

MAX_LABEL = 65535
"""Maximum value of a label."""


def as_labels(array: NDArray, name: str) -> NDArray[np.unsignedinteger]:
    """Return an array of whole numbers in the smallest type for labels.

    Args:
        array: array of any shape and type.
        name: name of its file in messages.

    Raises:
        InputError: `labels.type`, the array has values that are no labels.
    """
    expected = "expected labels, whole numbers from 0 up; give the label map"
    highest = array.max()
    if (lowest := array.min()) < 0:
        text = f"{name} holds values from {lowest:g} to {highest:g}, as a scan"
        raise InputError("labels.type", f"{text}; {expected}")
    for plane in () if array.dtype.kind in "iub" else array:  # rint copies to up to 8 bytes per voxel
        if (fractions := plane[plane != np.rint(plane)]).size:
            text = f"{name} holds fractional values such as {fractions[0]:.4g}, as a scan or a map of probabilities"
            raise InputError("labels.type", f"{text}; {expected}")
    if highest > MAX_LABEL:
        raise InputError("labels.type", f"{name} holds the value {highest}; expected labels up to {MAX_LABEL}")
    return array.astype(smallest_label_type(int(highest)), copy=False)


def rounded_ml(ml: float) -> float:
    """Return a volume in ml with four decimals, or with six significant digits if it is below 1 ml."""
    return round(ml, 4) if abs(ml) >= 1 else float(f"{ml:.6g}")


def labels_in(array: NDArray[np.unsignedinteger]) -> list[int]:
    """Return the labels in an array (I, J, K), including 0, in ascending order, without sorting a copy."""
    highest = int(array.max(initial=0))
    is_present = np.zeros(highest + 1, bool)
    for part in _parts(array):
        is_present |= np.bincount(part, minlength=highest + 1) > 0
    return np.flatnonzero(is_present).tolist()


def _parts(array: NDArray) -> Iterator[NDArray]:
    """Yield about 100,000 voxels at a time: bincount copies to 8 bytes per voxel and has a bin for each lower label."""
    step = max(1, (1 << 17) * len(array) // max(array.size, 1))
    for first in range(0, len(array), step):
        yield array[first : first + step].ravel()


def select_segments(segments: Sequence[Segment], only: Sequence[str], name: str) -> tuple[Segment, ...]:
    """Return the segments with some names; all segments if no names are given.

    Args:
        segments: segments of a file.
        only: names of the segments to select, in any case and with any separators between words.
        name: name of the file in messages.

    Raises:
        InputError: `labels.unknown`, the file has no segment of one of these names.
    """
    chosen = find_names(only, [segment.name for segment in segments], name)
    return tuple(segment for segment in segments if not only or segment.name in chosen)


def smallest_label_type(highest_label: int) -> np.dtype:
    """Return the smallest unsigned type for labels up to this value."""
    return np.min_scalar_type(highest_label)


def _shape(grid: Grid) -> str:
    return ", ".join(str(n) for n in grid.shape)


MIN_COLOR_DISTANCE = 90.0
"""Minimum Euclidean distance in RGB (0 to 255) between two colours that are easy to distinguish."""


def distinct_color(label: int) -> tuple[int, int, int]:
    """Return a colour that differs from those of lower labels; hues are a golden angle apart."""
    red, green, blue = colorsys.hsv_to_rgb((0.13 + 0.618034 * label) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def distinct_from(
    colors: Sequence[tuple[int, int, int]], preferred: Sequence[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """Return preferred colours, with those that are too similar to other colours replaced.

    Args:
        colors: other colours.
        preferred: preferred colours.
    """
    candidates = [*preferred, (255, 255, 0), (0, 255, 120), (255, 255, 255), *map(distinct_color, range(1, 25))]
    chosen: list[tuple[int, int, int]] = []

    def distance(color: tuple[int, int, int]) -> float:
        return float(np.linalg.norm(np.array([*colors, *chosen, (0, 0, 0)]) - color, axis=1).min())

    for color in preferred:
        chosen.append(color if distance(color) >= MIN_COLOR_DISTANCE else max(candidates, key=distance))
    return chosen


_MODALITIES = {"MR": "MR", "MRI": "MR", "CT": "CT", "PT": "PT", "PET": "PT", "US": "US"}


def modality_code(name: str) -> str:
    """DICOM's letters for what series and bundles call their modality; "" for what is not known."""
    return _MODALITIES.get(name.upper(), "")
