"""Segmentation files as labels layers: the open scan to which each belongs, and the grid on which it is shown.

A DICOM segmentation that belongs to an open scan lies on the grid of that scan. One that was opened first lies on its
own grid until the scan comes. Segments that share voxels become several layers: a label map holds one label a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_seg.errors import InputError, Notice
from napari_seg.formats.endings import SEG_NRRD_ENDINGS, has_ending, may_be_dicom, nifti_ending
from napari_seg.geometry import is_same_lattice, resample
from napari_seg.plugin.layer_info import LayerInfo, placement_of, volume_of
from napari_seg.plugin.layers import LayerTuple, labels_layer, layer_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.structures.records import made_by_in, record_of
from napari_seg.volume import NO_SOURCE, Segmentation, Volume

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer
    from numpy.typing import NDArray

    from napari_seg.formats.find import Skipped
    from napari_seg.plugin.labels_state import Snapshot


@dataclass(frozen=True)
class LabelMaps:
    """What a file of labels holds.

    Attributes:
        path: the file.
        maps: one label map, or several where segments share voxels.
        scan: the open scan to which they belong; None where none does.
        notices: doubts.
    """

    path: Path
    maps: tuple[Segmentation, ...]
    scan: Volume | None
    notices: tuple[Notice, ...] = ()


def holds_labels(path: Path) -> bool:
    """Return whether a file holds labels or contours, as far as its header or the record next to it tells."""
    from napari_seg.cohort.discover import is_result, read_record

    if nifti_ending(path):
        record = read_record(record_of(path))
        return is_result(path) or (record is not None and "segments" in record)
    return has_ending(path, SEG_NRRD_ENDINGS) or kind_of(path) in ("SEG", "RTSTRUCT")


def are_labels(skipped: Skipped) -> bool:
    """Return whether something that is no scan holds labels or contours."""
    return skipped.code == "skip.not_intensities" and holds_labels(skipped.files[0])


def kind_of(path: Path) -> str:
    """Return what a file of labels is called: SEG, RTSTRUCT, or its ending."""
    from napari_seg.formats.label_maps import dicom_modality

    ending = next((one for one in SEG_NRRD_ENDINGS if has_ending(path, (one,))), nifti_ending(path))
    return ending or dicom_modality(path) or path.suffix


def scan_index(path: Path, scans: Sequence[Sequence[Path]]) -> int | None:
    """Return which of some scans a DICOM segmentation or contours belong to: the one that it refers to comes first.

    Args:
        path: the file; None is returned of one that is no DICOM segmentation.
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
    """Read a file of labels onto the open scan to which it belongs; takes a while, so not in the main thread.

    Args:
        path: label map of any format, DICOM segmentation or contours.
        scans: the open scans, the selected one first.

    Raises:
        InputError: the file can't be read; `labels.needs_grid`, contours without their scan;
            `geometry.other_frame_of_reference`, contours of another scan.
    """
    from napari_seg.formats.label_maps import named, on_grid, read_label_maps

    kind = kind_of(path)
    number = scan_index(path, [scan.source.files for scan in scans]) if kind in ("SEG", "RTSTRUCT") else None
    scan = scans[number] if number is not None else None
    if kind == "RTSTRUCT" and scan is None and scans:
        scan = scans[0]  # reading it says whether it may be another one's
    notices: tuple[Notice, ...] = ()
    try:
        maps = read_label_maps(path, scan.grid if scan else None, images=scan.source.files if scan else ())
    except InputError as error:
        if error.code != "geometry.other_grid" or scan is None:
            raise
        maps = read_label_maps(path)
        text = f"{path.name} lies on other voxels than {scan.name}: see Resample in the Structures tab"
        notices, scan = (Notice("geometry.other_grid", text),), None
    if kind not in ("SEG", "RTSTRUCT") and len(maps) == 1:
        for one in scans:
            try:
                maps, scan = [on_grid(maps[0], one.grid, path)], one
                break
            except InputError:
                continue
    notices = (*notices, *(notice for one in maps for notice in one.notices))
    return LabelMaps(path, tuple(named(one) for one in maps), scan, tuple(dict.fromkeys(notices)))


def label_layers(read: LabelMaps, name: str, frame: NDArray | None) -> list[LayerTuple]:
    """Return the layer tuples of a file of labels, numbered where there are several.

    Args:
        read: what the file holds.
        name: name of the layers.
        frame: the viewer's frame.
    """
    answer = []
    for number, one in enumerate(read.maps, 1):
        shown = labels_layer(
            one,
            place(one.grid, frame),
            name if len(read.maps) == 1 else f"{name} ({number} of {len(read.maps)})",
            scan=read.scan.source if read.scan else NO_SOURCE,
            algorithm=made_by_in(read.path),
            source=read.path,
        )
        answer.append(shown)
    return answer


def waits_for(labels: Labels, scan: Image) -> bool:
    """Return whether labels were opened before the scan to which they belong."""
    info, volume = LayerInfo.of(labels), volume_of(scan)
    if info is None or info.source is None or info.scan.files or volume is None:
        return False
    return scan_index(info.source, [volume.source.files]) is not None


def has_grid_of(labels: Labels, scan: Image) -> bool:
    """Return whether labels lie on the voxels of a scan."""
    volume = volume_of(scan)
    return volume is not None and placement_of(labels).native.matches(volume.grid)


def can_move(labels: Labels, scan: Image) -> bool:
    """Return whether labels keep every voxel on the grid of a scan."""
    from napari_seg.plugin.labels_state import Snapshot

    volume, source = volume_of(scan), placement_of(labels).native
    assert volume is not None
    if not is_same_lattice(source, volume.grid):
        return False
    found = Snapshot.of(labels).segmentation().array
    there = resample(found, source, volume.grid, order=0, outside=0)
    return np.count_nonzero(there) == np.count_nonzero(found)


def on_scan(snapshot: Snapshot, scan: Image) -> Layer:
    """Return a layer with the same labels on the grid of a scan, by the nearest voxel; what is unsaved stays so.

    Args:
        snapshot: the labels.
        scan: the scan.

    Raises:
        InputError: `geometry.other_frame_of_reference`, positions of the two can't be compared.
        OutputError: as of `segmentation_of`.
    """
    from napari_seg.formats.dicom.reference import check_frame_of_reference
    from napari_seg.plugin.labels_state import state_of

    volume, info = volume_of(scan), snapshot.info
    assert volume is not None
    first = info.source or next(iter(info.scan.files), None)
    if (
        first is not None
        and kind_of(first) not in SEG_NRRD_ENDINGS
        and may_be_dicom(first)
        and volume.source.format == "dicom"
    ):
        check_frame_of_reference(first, volume.source.files)
    found = snapshot.segmentation()
    array = resample(found.array, found.grid, volume.grid, order=0, outside=0)
    moved = replace(found, array=array, grid=volume.grid, confidence_maps=None)
    layer = layer_of(
        labels_layer(
            moved,
            placement_of(scan).for_new_layer(),
            str(snapshot.settings["name"]),
            scan=volume.source,
            algorithm=info.algorithm,
            source=info.source,
        )
    )
    old, table = state_of(snapshot.layer), state_of(layer)
    table.edits, table.saved, table.painted, table.hidden = old.edits, old.saved, old.painted, set(old.hidden)
    return layer
