"""Labels layers to files of any format, each read back before it gets its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from napari.layers import Labels

from napari_seg.plugin.layers import is_dicom, segmentation_of
from napari_seg.plugin.placement import METADATA_KEY

if TYPE_CHECKING:
    from napari_seg.formats.label_maps import DicomKind

KindName = Literal["nifti", "seg", "rtstruct", "nrrd", "csv"]


@dataclass(frozen=True)
class Kind:
    """A format that labels can be written in.

    Attributes:
        title: for a menu.
        endings: of file names, the usual one first.
        checked: what is checked after writing, for a person.
        dicom: what a DICOM file of it is; None of others.
    """

    title: str
    endings: tuple[str, ...]
    checked: str
    dicom: DicomKind | None = None


KINDS: dict[KindName, Kind] = {
    "nifti": Kind("NIfTI", (".nii.gz", ".nii"), "every voxel and the affine are as on the screen"),
    "seg": Kind("DICOM segmentation (SEG)", (".dcm",), "every voxel lies where it was drawn", "seg"),
    "rtstruct": Kind("DICOM contours (RTSTRUCT)", (".dcm",), "the contours enclose the voxels", "rtstruct"),
    "nrrd": Kind("3D Slicer (.seg.nrrd)", (".seg.nrrd",), "every voxel, name and colour is as on the screen"),
    "csv": Kind("Table of volumes (.csv)", (".csv",), "every row is as in the table"),
}


def obstacle(layer: Labels | None, kind: KindName) -> str:
    """Why a layer can't be written in a format, for a person; "" where it can."""
    if layer is None:
        return "There are no labels to save."
    if KINDS[kind].dicom is not None and not is_dicom(layer.metadata[METADATA_KEY].get("files", ())):
        return "Only labels of a DICOM scan can become DICOM: they refer to its images."
    return ""


def suggested_name(layer: Labels, kind: KindName) -> str:
    """What a file of a layer may be called."""
    safe = "".join(c if c.isalnum() or c in " -_.," else "_" for c in layer.name)
    return f"{safe.strip() or 'labels'}{KINDS[kind].endings[0]}"


def with_ending(path: Path, kind: KindName) -> Path:
    """A path that ends as files of the format do; the usual ending is added where it does not."""
    endings = KINDS[kind].endings
    return path if path.name.lower().endswith(endings) else path.with_name(path.name + endings[0])


def export(layer: Labels, path: Path, kind: KindName) -> str:
    """Writes a labels layer and says what was checked; takes a while, so not in the main thread.

    Args:
        layer: one that knows where it lies.
        path: the usual ending is added where it has none.
        kind: of the file.

    Raises:
        NapariSegError: it can't be written, or does not read back as what was meant.
    """
    from napari_seg.formats.label_maps import write_label_map

    _, settings, _ = layer.as_layer_data_tuple()
    known = layer.metadata[METADATA_KEY]
    segmentation = segmentation_of(np.asarray(layer.data), settings)
    table = known.get("table")
    edited = table is not None and table.edited
    name, version = known.get("algorithm") or ("napari-seg", "")
    written = write_label_map(
        segmentation,
        with_ending(path, kind),
        images=known.get("files", ()),
        dicom=KINDS[kind].dicom or "seg",
        algorithm=(f"{name}, corrected by hand" if edited else name, version),
    )
    if table is not None and kind != "csv":
        table.saved = True
    found = sum(count > 0 for count in segmentation.voxel_counts().values())
    structures = f"{found} structure{'s' * (found != 1)}"
    return f"Saved {written[0].name} ({structures}). Read back: {KINDS[kind].checked}."
