"""Table of the formats in which labels can be written: names, file names, writers, and what each writer needs.

The command line, the results of a run, the plugin's menus and its manifest derive from this table. Importing it is
cheap, because each writer imports the module of its format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from napari_seg.errors import OutputError
from napari_seg.formats.endings import NIFTI_ENDINGS, SEG_NRRD_ENDINGS, SURFACE_ENDINGS, has_ending

if TYPE_CHECKING:
    from napari_seg.volume import LabelOrigin, Segmentation, Source

FormatName = Literal["nifti", "seg", "labelmap", "rtstruct", "nrrd", "stl", "obj", "csv", "json"]
DicomFormat = Literal["seg", "labelmap", "rtstruct"]


class Writer(Protocol):
    """Function that writes labels, reads them back and compares them before the file gets its name."""

    def __call__(self, segmentation: Segmentation, path: Path, scan: Source, made_by: LabelOrigin) -> list[Path]:
        """Return the paths of the written files; see `write_label_map`."""
        ...


@dataclass(frozen=True)
class LabelFormat:
    """Format in which labels can be written.

    Attributes:
        title: title in a menu.
        short_title: title next to a checkbox.
        description: description in the help of the command line.
        endings: endings of file names, the usual one first.
        suffix: part of a suggested file name between the name of the scan and the ending.
        verified: result of reading the file back, in words that complete "Read back: ...".
        write: function that writes a file.
        needs_dicom: whether the file refers to the images of a DICOM series.
        bytes_per_voxel: memory for writing and reading back, measured with three large structures; 0 if it is small.
        in_runs: whether a run over scans offers it in addition to NIfTI.
        in_menus: whether the plugin offers it for the selected labels.
    """

    title: str
    short_title: str
    description: str
    endings: tuple[str, ...]
    suffix: str
    verified: str
    write: Writer
    needs_dicom: bool = False
    bytes_per_voxel: int = 0
    in_runs: bool = False
    in_menus: bool = False

    def file_name(self, stem: str) -> str:
        """Return the file name of the labels of a scan or layer with some name."""
        return f"{stem}{self.suffix}{self.endings[0]}"

    def with_ending(self, path: Path) -> Path:
        """Return a path with an ending of this format: the same path, or the usual ending appended."""
        return path if has_ending(path, self.endings) else path.with_name(path.name + self.endings[0])


def _write_nifti(segmentation: Segmentation, path: Path, scan: Source, made_by: LabelOrigin) -> list[Path]:
    from napari_seg.formats.nifti import write_nifti

    write_nifti(segmentation, path)
    return [path]


def _write_nrrd(segmentation: Segmentation, path: Path, scan: Source, made_by: LabelOrigin) -> list[Path]:
    from napari_seg.formats.nrrd import write_seg_nrrd

    write_seg_nrrd(segmentation, path)
    return [path]


def _write_seg(segmentation: Segmentation, path: Path, scan: Source, made_by: LabelOrigin) -> list[Path]:
    from napari_seg.formats.dicom.seg_write import write_dicom_seg

    write_dicom_seg(segmentation, scan, path, kind="binary", made_by=made_by)
    return [path]


def _write_labelmap(segmentation: Segmentation, path: Path, scan: Source, made_by: LabelOrigin) -> list[Path]:
    from napari_seg.formats.dicom.seg_write import write_dicom_seg

    write_dicom_seg(segmentation, scan, path, kind="labelmap", made_by=made_by)
    return [path]


def _write_rtstruct(segmentation: Segmentation, path: Path, scan: Source, made_by: LabelOrigin) -> list[Path]:
    from napari_seg.formats.dicom.rtstruct_write import write_rtstruct

    write_rtstruct(segmentation, scan, path, made_by=made_by)
    return [path]


def _write_surfaces(segmentation: Segmentation, path: Path, scan: Source, made_by: LabelOrigin) -> list[Path]:
    from napari_seg.formats.surface import write_surfaces

    return write_surfaces(segmentation, path)


def _write_volumes(segmentation: Segmentation, path: Path, scan: Source, made_by: LabelOrigin) -> list[Path]:
    from napari_seg.formats.volume_table import write_volume_table

    write_volume_table(segmentation, path)
    return [path]


LABEL_FORMATS: dict[FormatName, LabelFormat] = {
    "nifti": LabelFormat(
        title="NIfTI",
        short_title="NIfTI",
        description="NIfTI label map",
        endings=NIFTI_ENDINGS,
        suffix="_seg",
        verified="every voxel and the affine are as on the screen",
        write=_write_nifti,
        in_menus=True,
    ),
    "seg": LabelFormat(
        title="DICOM segmentation (SEG)",
        short_title="SEG",
        description="DICOM segmentation, binary",
        endings=(".dcm",),
        suffix="_seg",
        verified="every voxel lies where it was drawn",
        write=_write_seg,
        needs_dicom=True,
        bytes_per_voxel=8,
        in_runs=True,
        in_menus=True,
    ),
    "labelmap": LabelFormat(
        title="DICOM label map segmentation",
        short_title="label map",
        description="DICOM label map segmentation, which keeps the label values",
        endings=(".dcm",),
        suffix="_labelmap",
        verified="every voxel lies where it was drawn",
        write=_write_labelmap,
        needs_dicom=True,
        bytes_per_voxel=13,
        in_runs=True,
    ),
    "rtstruct": LabelFormat(
        title="DICOM contours (RTSTRUCT)",
        short_title="RTSTRUCT",
        description="DICOM contours",
        endings=(".dcm",),
        suffix="_contours",
        verified="the contours enclose the voxels",
        write=_write_rtstruct,
        needs_dicom=True,
        bytes_per_voxel=32,
        in_runs=True,
        in_menus=True,
    ),
    "nrrd": LabelFormat(
        title="3D Slicer (.seg.nrrd)",
        short_title="NRRD",
        description="3D Slicer's segmentation",
        endings=SEG_NRRD_ENDINGS[:1],
        suffix="",
        verified="every voxel, name and colour is as on the screen",
        write=_write_nrrd,
        bytes_per_voxel=8,
        in_runs=True,
        in_menus=True,
    ),
    "stl": LabelFormat(
        title="Surfaces (.stl)",
        short_title="STL",
        description="surfaces, one file per segment",
        endings=SURFACE_ENDINGS[:1],
        suffix="",
        verified="",
        write=_write_surfaces,
    ),
    "obj": LabelFormat(
        title="Surfaces (.obj)",
        short_title="OBJ",
        description="surfaces, one file per segment",
        endings=SURFACE_ENDINGS[1:],
        suffix="",
        verified="",
        write=_write_surfaces,
    ),
    "csv": LabelFormat(
        title="Table of volumes (.csv)",
        short_title="CSV",
        description="table of volumes",
        endings=(".csv",),
        suffix="_volumes",
        verified="every row is as in the table",
        write=_write_volumes,
        in_menus=True,
    ),
    "json": LabelFormat(
        title="Table of volumes (.json)",
        short_title="JSON",
        description="table of volumes",
        endings=(".json",),
        suffix="_volumes",
        verified="every row is as in the table",
        write=_write_volumes,
    ),
}

RUN_FORMATS: tuple[FormatName, ...] = tuple(name for name, one in LABEL_FORMATS.items() if one.in_runs)
"""Names of the formats that a run over scans offers in addition to NIfTI."""

DICOM_FORMATS: tuple[FormatName, ...] = tuple(name for name, one in LABEL_FORMATS.items() if one.needs_dicom)
"""Names of the formats that refer to the images of a DICOM series."""

MENU_FORMATS: tuple[FormatName, ...] = tuple(name for name, one in LABEL_FORMATS.items() if one.in_menus)
"""Names of the formats that the plugin offers for the selected labels."""


def write_label_map(
    segmentation: Segmentation,
    path: Path,
    *,
    scan: Source | None = None,
    dicom: DicomFormat = "seg",
    made_by: LabelOrigin | None = None,
) -> list[Path]:
    """Write labels in the format given by the ending of a path; return the paths of the written files.

    The files are read back and compared before they get their names.

    Args:
        segmentation: labels with their segments.
        path: file to write; surfaces become one file per segment with this stem.
        scan: source of the scan that was segmented; DICOM formats need one that is DICOM.
        dicom: format of a .dcm file.
        made_by: origin of the labels, which DICOM formats state; None: a model of this program.

    Raises:
        OutputError: `output.format`, no format has this ending; `output.no_dicom`, the scan is not DICOM;
            `output.unknown_origin`, it is a DICOM segmentation, and the origin is not known; `output.not_written`;
            `output.not_equal`; `output.no_segments`.
    """
    return write_as(format_of(path, dicom), segmentation, path, scan=scan, made_by=made_by)


def format_of(path: Path, dicom: DicomFormat = "seg") -> FormatName:
    """Return the name of the format that the ending of a path gives.

    Args:
        path: file to write.
        dicom: format of a .dcm file.

    Raises:
        OutputError: `output.format`, no format has this ending.
    """
    matching = [name for name, one in LABEL_FORMATS.items() if has_ending(path, one.endings)]
    if not matching:
        endings = ", ".join(dict.fromkeys(ending for one in LABEL_FORMATS.values() for ending in one.endings))
        raise OutputError("output.format", f"{path.name} ends in none of {endings}; add one of these endings")
    return dicom if dicom in matching else matching[0]


def write_as(
    name: FormatName,
    segmentation: Segmentation,
    path: Path,
    *,
    scan: Source | None = None,
    made_by: LabelOrigin | None = None,
) -> list[Path]:
    """Write labels in a format of the table; return the paths of the written files.

    Args:
        name: name of the format.
        segmentation: see `write_label_map`.
        path: file to write, with an ending of this format.
        scan: see `write_label_map`.
        made_by: see `write_label_map`.

    Raises:
        OutputError: as `write_label_map`.
    """
    from napari_seg.volume import BY_NAPARI_SEG, NO_SOURCE

    return LABEL_FORMATS[name].write(segmentation, path, scan or NO_SOURCE, made_by or BY_NAPARI_SEG)


def check_memory_for(shape: Sequence[int], names: Iterable[FormatName]) -> None:
    """Raise if writing labels in some formats, and reading them back, takes more memory than is allowed.

    Args:
        shape: (I, J, K).
        names: names of the formats.

    Raises:
        EnvironmentFault: `environment.memory`.
    """
    from napari_seg.memory import check_fits

    for name in names:
        check_fits(prod(shape) * LABEL_FORMATS[name].bytes_per_voxel, f"writing {name}")
