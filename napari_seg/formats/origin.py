"""Origin of labels in a file: what a DICOM object states itself, and for other formats the record next to the file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from napari_seg.errors import InputError, without_private_text
from napari_seg.formats.dicom.headers import file_label, quiet_pydicom
from napari_seg.formats.dicom.objects import object_label, read_object
from napari_seg.formats.endings import may_be_dicom
from napari_seg.formats.in_worker import read_in_worker
from napari_seg.formats.record import PROGRAM, read_record, record_path
from napari_seg.volume import LabelOrigin, Origin

_AI = ("123110", "DCM")
"""Code of the family of algorithms "Artificial Intelligence" (PS3.16, CID 7162)."""


def origin_of(path: Path, only: Sequence[str] = ()) -> LabelOrigin:
    """Return the origin of the labels in a file, as far as it is known.

    A record states the model. Only labels with the digest that it states are surely as the model made them; others may
    have been edited.

    Args:
        path: label map of any format, DICOM segmentation or contours.
        only: names of the segments to consider; all if empty. If they differ in the part of a person, it is unknown.

    Raises:
        InputError: `file.*`, the file can't be read.
    """
    if may_be_dicom(path):
        return read_in_worker(partial(_stated, only=tuple(only)), [path], name=file_label(path))
    record = read_record(record_path(path)) or {}
    edits, model = record.get("edits"), record.get("bundle") or record.get("algorithm")
    if isinstance(model, dict):
        name, version = (str(model.get(key, "")) for key in ("name", "version"))
        is_as_made = bool(record.get("sha256")) and record["sha256"] == sha256_of_file(path)
        return LabelOrigin("AUTOMATIC" if is_as_made else "SEMIAUTOMATIC", (name, version), "bundle" in record)
    if not record.get("by_hand"):
        return LabelOrigin()
    return LabelOrigin("SEMIAUTOMATIC", (PROGRAM, "")) if edits else LabelOrigin("MANUAL")


def record_entries(made_by: LabelOrigin) -> dict[str, Any]:
    """Return the entries of a record that state an origin."""
    if made_by.origin == "MANUAL":
        return {"by_hand": True}
    if made_by.algorithm is None:
        return {}
    name, version = made_by.algorithm
    return {"bundle" if made_by.is_model else "algorithm": {"name": name, "version": version}}


def sha256_of_file(path: Path) -> str:
    """Return the digest of a file.

    Raises:
        InputError: `file.unreadable`.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError("file.unreadable", f"{path.name} can't be opened: {error.strerror}") from error


def _stated(files: Sequence[Path], only: Sequence[str]) -> LabelOrigin:
    """Return what a DICOM segmentation or an RT structure set states (PS3.3 C.8.20.2 and C.8.8.5)."""
    (path,) = files
    if not path.is_file():
        return LabelOrigin()
    dataset = read_object(path, stop_before_pixels=True)
    text = f"{object_label(dataset, path)} has a DICOM header that can't be read ({{kind}})"
    origins, names, versions, are_models = set[str](), set[str](), set[str](), set[bool]()
    with quiet_pydicom(), without_private_text(InputError, "file.bad_header", text):
        for item in dataset.get("SegmentSequence") or ():
            if str(item.get("SegmentLabel")) in only or (not only and int(item.SegmentNumber)):
                name, version, is_model = _algorithm(item)
                origins.add(str(item.get("SegmentAlgorithmType")))
                names.add(name)
                versions.add(version)
                are_models.add(is_model)
        for item in dataset.get("StructureSetROISequence") or ():
            if not only or str(item.get("ROIName")) in only:
                origins.add(str(item.get("ROIGenerationAlgorithm")))
                names.add(str(item.get("ROIGenerationDescription") or ""))
    known: tuple[Origin, ...] = ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL")
    origin = next((one for one in known if origins == {one}), None)
    names, versions = names - {"", "unknown"}, versions - {"", "unknown"}
    if origin is None or origin == "MANUAL" or not names:
        return LabelOrigin(origin)
    version = versions.pop() if len(names) == len(versions) == 1 else ""
    return LabelOrigin(origin, (", ".join(sorted(names)), version), are_models == {True})


def _algorithm(item: Any) -> tuple[str, str, bool]:
    """Return the name and the version of the algorithm of a segment, and whether it is a model."""
    stated = (item.get("SegmentationAlgorithmIdentificationSequence") or [{}])[0]
    family = (stated.get("AlgorithmFamilyCodeSequence") or [{}])[0]
    name = str(item.get("SegmentAlgorithmName") or stated.get("AlgorithmName") or "")
    is_model = (family.get("CodeValue"), family.get("CodingSchemeDesignator")) == _AI
    return name, str(stated.get("AlgorithmVersion") or ""), is_model
