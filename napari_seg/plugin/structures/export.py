"""Labels layers to files of any format, each read back before it gets its name."""

from __future__ import annotations

from pathlib import Path

from napari.layers import Labels

from napari_seg.cohort.discover import PROGRAM
from napari_seg.formats.kinds import LABEL_FORMATS, FormatName, write_as
from napari_seg.plugin.job import SAVING
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.structures.records import write_record
from napari_seg.version import __version__


def obstacle(layer: Labels | None, kind: FormatName) -> str:
    """Why a layer can't be written in a format, for a person; "" where it can."""
    if layer is None:
        return "There are no labels to save."
    if LABEL_FORMATS[kind].needs_dicom and LayerInfo.require(layer).scan.format != "dicom":
        return "Only labels of a DICOM scan can become DICOM: they refer to its images."
    return ""


def suggested_name(layer: Labels, kind: FormatName) -> str:
    """What a file of a layer may be called."""
    safe = "".join(c if c.isalnum() or c in " -_.," else "_" for c in layer.name)
    return LABEL_FORMATS[kind].file_name(safe.strip() or "labels")


def free_path(folder: Path, layer: Labels, kind: FormatName) -> Path:
    """Return a path in a folder for a file of a layer that replaces no other file."""
    name, ending = suggested_name(layer, kind), LABEL_FORMATS[kind].endings[0]
    stem, number, path = name.removesuffix(ending), 1, folder / name
    while path.exists():
        number += 1
        path = folder / f"{stem} ({number}){ending}"
    return path


def is_of_scan(layer: Labels, path: Path) -> bool:
    """Whether a path is one of the scan's own files, which nothing may replace."""
    return path.resolve() in {file.resolve() for file in LayerInfo.require(layer).scan.files}


def export(snapshot: Snapshot, path: Path, kind: FormatName) -> str:
    """Writes labels, says what was checked; takes a while, so not in the main thread.

    Beside NIfTI, which has no room for them, a record keeps the names and colours.

    Args:
        snapshot: of a layer that knows where it lies.
        path: ends as files of the kind do.
        kind: of the file.

    Raises:
        NapariSegError: it can't be written, or does not read back as what was meant.
    """
    info = snapshot.info
    segmentation = snapshot.segmentation()
    made_by = info.algorithm
    is_touched = state_of(snapshot.layer).painted or info.source is not None
    written = SAVING.run(
        write_as,
        kind,
        segmentation,
        path.absolute(),
        scan=info.scan.absolute(),
        algorithm=made_by or (PROGRAM, __version__),
        origin="MANUAL" if made_by is None else "SEMIAUTOMATIC" if is_touched else "AUTOMATIC",
    )
    if kind == "nifti":
        write_record(segmentation, path, made_by)
    found = sum(count > 0 for count in segmentation.voxel_counts().values())
    structures = f"{found} structure{'s' * (found != 1)}"
    is_unknown = any(notice.code == "geometry.no_orientation" for notice in segmentation.notices)
    unknown = " Left and right are not known." if is_unknown else ""
    return f"Saved {written[0].name} ({structures}). Read back: {LABEL_FORMATS[kind].verified}.{unknown}"
