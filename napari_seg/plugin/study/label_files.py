"""Files of labels as layers: the open scan that each file belongs to, and the grid that it is shown on.

A DICOM segmentation of an open scan is shown on the grid of that scan. A segmentation that is opened before its scan is
shown on its own grid until the scan is opened. Segments that share voxels become several layers, because a label map
holds one label per voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.errors import InputError, Notice
from napari_seg.formats.endings import SEG_NRRD_ENDINGS, has_ending, may_be_dicom, nifti_ending
from napari_seg.formats.record import made_by_in, record_path
from napari_seg.plugin.layer_info import LayerInfo, volume_of
from napari_seg.plugin.layers import LayerTuple, labels_layer
from napari_seg.plugin.placement import place
from napari_seg.volume import NO_SOURCE, Segmentation, Volume

if TYPE_CHECKING:
    from napari.layers import Image, Labels
    from numpy.typing import NDArray

    from napari_seg.formats.find import Skipped


@dataclass(frozen=True)
class LabelMaps:
    """Label maps of a file.

    Attributes:
        path: file that was read.
        maps: one label map, or several if segments share voxels.
        scan: open scan that the labels belong to; None if there is none.
        notices: doubts about the labels.
    """

    path: Path
    maps: tuple[Segmentation, ...]
    scan: Volume | None
    notices: tuple[Notice, ...] = ()


def holds_labels(path: Path) -> bool:
    """Return whether a file holds labels or contours, by its header or the record next to it."""
    from napari_seg.cohort.naming import is_result
    from napari_seg.formats.nifti import header_segments
    from napari_seg.formats.record import read_record

    if nifti_ending(path):
        record = read_record(record_path(path))
        if is_result(path) or (record is not None and "segments" in record):
            return True
        try:
            return bool(header_segments(path)[0])
        except InputError:  # reading the file as a scan reports it
            return False
    return has_ending(path, SEG_NRRD_ENDINGS) or kind_of(path) in ("SEG", "RTSTRUCT")


def are_labels(skipped: Skipped) -> bool:
    """Return whether files that are no scan hold labels or contours."""
    return skipped.code == "skip.not_intensities" and holds_labels(skipped.files[0])


def kind_of(path: Path) -> str:
    """Return the kind of a file of labels: SEG, RTSTRUCT, or the ending of its name."""
    from napari_seg.formats.label_maps import dicom_modality

    ending = next((one for one in SEG_NRRD_ENDINGS if has_ending(path, (one,))), nifti_ending(path))
    return ending or dicom_modality(path) or path.suffix


def scan_index(path: Path, scans: Sequence[Sequence[Path]]) -> int | None:
    """Return the index of the scan that a DICOM segmentation or contours belong to; None if there is none.

    A scan that the file refers to is preferred to one in the same frame of reference.

    Args:
        path: file of the segmentation; None is returned for a file of another kind.
        scans: files of each scan.
    """
    from napari_seg.formats.dicom.reference import references_of, relation_to_scan

    try:
        own = references_of(path)
    except InputError:
        return None
    candidates = []
    for number, files in enumerate(scans):
        try:
            other = references_of(files[0]) if files and may_be_dicom(files[0]) else None
        except InputError:
            continue
        if other is not None and (own.series & other.series or own.frames.keys() & other.frames):
            candidates.append((not own.series & other.series, number))
    for _, number in sorted(candidates):
        if relation_to_scan(path, scans[number]).relation in ("same_frame", "referenced"):
            return number
    return None


def read_labels(path: Path, scans: Sequence[Volume]) -> LabelMaps:
    """Read a file of labels on the grid of the open scan it belongs to; slow, call outside the main thread.

    Args:
        path: label map of any format, DICOM segmentation or contours.
        scans: open scans, the selected one first.

    Raises:
        InputError: the file cannot be read; `labels.needs_grid`, contours without their scan;
            `geometry.other_frame_of_reference`, contours of another scan.
    """
    from napari_seg.formats.label_maps import on_grid, read_label_maps, with_all_segments_named

    kind = kind_of(path)
    number = scan_index(path, [scan.source.files for scan in scans]) if kind in ("SEG", "RTSTRUCT") else None
    scan = scans[number] if number is not None else None
    if kind == "RTSTRUCT" and scan is None and scans:
        scan = scans[0]  # reading raises an error if the contours belong to another scan
    notices: tuple[Notice, ...] = ()
    try:
        maps = read_label_maps(path, scan.grid if scan else None, images=scan.source.files if scan else ())
    except InputError as error:
        if error.code != "geometry.other_grid" or scan is None:
            raise
        maps = read_label_maps(path)
        text = f"the grid of {path.name} differs from that of {scan.name}: see Resample in the Structures tab"
        notices, scan = (Notice("geometry.other_grid", text),), None
    if kind not in ("SEG", "RTSTRUCT") and len(maps) == 1:
        for one in scans:
            try:
                maps, scan = [on_grid(maps[0], one.grid, path)], one
                break
            except InputError:
                continue
    notices = (*notices, *(notice for one in maps for notice in one.notices))
    return LabelMaps(path, tuple(with_all_segments_named(one) for one in maps), scan, tuple(dict.fromkeys(notices)))


def label_layers(read: LabelMaps, name: str, frame: NDArray | None, *, is_result: bool = False) -> list[LayerTuple]:
    """Return the layer tuples of a file of labels, numbered if there are several.

    Args:
        read: label maps of the file.
        name: name of the layers.
        frame: frame of the viewer.
        is_result: whether the file is the result of a run, which nobody has changed since.
    """
    layers = []
    for number, one in enumerate(read.maps, 1):
        shown = labels_layer(
            one,
            place(one.grid, frame),
            name if len(read.maps) == 1 else f"{name} ({number} of {len(read.maps)})",
            scan=read.scan.source if read.scan else NO_SOURCE,
            algorithm=made_by_in(read.path),
            source=read.path,
            is_result=is_result,
            notices=read.scan.notices if read.scan else (),
        )
        layers.append(shown)
    return layers


def waits_for(labels: Labels, scan: Image) -> bool:
    """Return whether a scan is the one that labels belong to, which were opened before it."""
    info, volume = LayerInfo.of(labels), volume_of(scan)
    if info is None or info.source is None or info.scan.files or volume is None:
        return False
    return scan_index(info.source, [volume.source.files]) is not None
