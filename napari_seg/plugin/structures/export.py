"""Export of labels layers to files, and what a layer needs for each format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from napari.layers import Image, Labels, Layer

from napari_seg.errors import OutputError, counted
from napari_seg.formats.kinds import LABEL_FORMATS, FormatName, write_as
from napari_seg.formats.record import PROGRAM, UNKNOWN, labels_record, new_record
from napari_seg.plugin.job import SAVING_WORKER
from napari_seg.plugin.labels_on_scan import UNKNOWN_SCAN
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, infos_of
from napari_seg.version import __version__
from napari_seg.volume import LabelOrigin, Origin, Segmentation, Source


def obstacle(layer: Labels | None, format_name: FormatName) -> str:
    """Return the reason, as text, why a layer cannot be written in a format; "" if it can."""
    if layer is None:
        return "There are no labels to save."
    info = LayerInfo.require(layer)
    if LABEL_FORMATS[format_name].needs_dicom and info.scan.format != "dicom":
        if info.scan_mark is not None:
            return UNKNOWN_SCAN
        return "Only labels of a DICOM scan can be saved as DICOM, because they refer to its images."
    return ""


def suggested_name(layer: Labels, format_name: FormatName) -> str:
    """Return a file name for a layer."""
    safe = "".join(c if c.isalnum() or c in " -_.," else "_" for c in layer.name)
    return LABEL_FORMATS[format_name].file_name(safe.strip() or "labels")


def free_path(folder: Path, layer: Labels, format_name: FormatName) -> Path:
    """Return a path for the file of a layer in a folder; no such file exists yet."""
    name, ending = suggested_name(layer, format_name), LABEL_FORMATS[format_name].endings[0]
    stem, number, path = name.removesuffix(ending), 1, folder / name
    while path.exists():
        number += 1
        path = folder / f"{stem} ({number}){ending}"
    return path


def check_is_no_scan(path: Path, layers: Iterable[Layer]) -> None:
    """Raise if a path is a file of an open scan, which labels must not replace.

    Args:
        path: file to write.
        layers: layers of the viewer, and those that are saved.

    Raises:
        OutputError: `output.exists`.
    """
    layers = list(layers)
    files = [file for info in infos_of(layers) for file in info.scan.files]
    files += [Path(layer.source.path) for layer in layers if isinstance(layer, Image) and layer.source.path]
    if path.resolve() in {file.resolve() for file in files}:
        raise OutputError("output.exists", f"{path.name} is a file of an open scan; choose another name")


def write_file(
    format_name: FormatName,
    segmentation: Segmentation,
    path: Path,
    *,
    scan: Source,
    made_by: tuple[str, str] | None,
    origin: Origin = "MANUAL",
) -> list[Path]:
    """Write labels, and for NIfTI, which holds no names and colours, a record next to the file.

    Args:
        format_name: format of the file.
        segmentation: labels.
        path: file to write, with an ending of the format.
        scan: source of the scan; DICOM formats refer to its images.
        made_by: name and version of the program that made the labels; None if a person did.
        origin: part of a person in the labels; used by DICOM formats.

    Returns:
        The paths of the written files, without that of the record.

    Raises:
        OutputError: the file cannot be written, or differs from the labels when it is read back; `output.exists`, the
            file that would be the record belongs to other labels.
    """
    stated = LabelOrigin(origin, made_by or (PROGRAM, __version__), is_model=made_by not in (None, UNKNOWN))
    with new_record(path, labels_record(segmentation, made_by)):
        return write_as(format_name, segmentation, path, scan=scan, made_by=stated)


def export(snapshot: Snapshot, path: Path, format_name: FormatName) -> str:
    """Write labels as `write_file` and return a text that says what was verified; slow, call outside the main thread.

    Args:
        snapshot: labels of a layer that has an info.
        path: file to write, with an ending of the format.
        format_name: format of the file.

    Raises:
        NapariSegError: the file cannot be written, or differs from the labels when it is read back.
    """
    info, segmentation = snapshot.info, snapshot.segmentation()
    may_be_edited = state_of(snapshot.layer).painted or info.source is not None
    written = SAVING_WORKER.run(
        write_file,
        format_name,
        segmentation,
        path.absolute(),
        scan=info.scan.absolute(),
        made_by=info.algorithm,
        origin="MANUAL" if info.algorithm is None else "SEMIAUTOMATIC" if may_be_edited else "AUTOMATIC",
    )
    count = sum(voxels > 0 for voxels in segmentation.voxel_counts().values())
    structures = counted(count, "structure")
    doubt = "" if info.is_oriented else " Left and right are unknown."
    return f"Saved {written[0].name} ({structures}). Read back: {LABEL_FORMATS[format_name].verified}.{doubt}"
