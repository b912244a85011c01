"""JSON record next to a label map: what the label map can't hold. Records are read and written only here.

A record has the name of its label map with the ending .json. It holds the program, the model or the fact that a person
made the labels, and the names and colours of the segments; a run over scans adds volumes, options and checksums.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_seg.errors import Notice, OutputError
from napari_seg.formats.atomic import atomic_write, not_written, set_aside
from napari_seg.formats.endings import NIFTI_ENDINGS, SEG_NRRD_ENDINGS, has_ending, may_be_dicom, nifti_ending
from napari_seg.version import __version__
from napari_seg.volume import MAX_LABEL, Segment, Segmentation, Volume, rounded_ml

logger = logging.getLogger(__name__)

PROGRAM = "napari-seg"

MAX_RECORD_BYTES = 1 << 24
"""Maximum size of a record; records have some kilobytes, so a larger file is from another program."""

MadeBy = tuple[str, str]
"""Name and version of a program or a model."""

UNKNOWN: MadeBy = (PROGRAM, "")
"""Origin of labels from a file without a record, so that they are not taken for a person's."""


def record_path(labels: Path) -> Path:
    """Return the path of the record of a label map."""
    return labels.with_name(f"{labels.name.removesuffix(nifti_ending(labels) or labels.suffix)}.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the content of a record of this program; None for a missing file or one of another program."""
    content = _content(path)
    return content if str(content.get("program", "")).startswith(PROGRAM) else None


def _content(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of any program; empty if it can't be read, is too large or no mapping."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_RECORD_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record of this program atomically.

    Args:
        path: path of the record.
        content: everything but the program and its version.

    Raises:
        OSError: the file could not be written.
    """
    record = {"program": f"{PROGRAM} {__version__}", **content}
    atomic_write(path, json.dumps(record, indent=2) + "\n")


def recorded_segments(labels: Path) -> tuple[Segment, ...]:
    """Return the segments in the JSON file next to a label map, of any program; none if it has no table of segments.

    Entries with numbers that are no labels, such as 0 for background, are left out.
    """
    try:
        found = [_segment(entry) for entry in _content(record_path(labels))["segments"]]
    # names are optional: the labels are read without them
    except (ValueError, KeyError, TypeError, OverflowError):
        return ()
    segments = tuple(one for one in found if 1 <= one.label <= MAX_LABEL)
    return segments if len({one.label for one in segments}) == len(segments) else ()


def _segment(entry: Mapping[str, Any]) -> Segment:
    red, green, blue = (int(value) for value in entry["color"])
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError
    name = str(entry["name"]).encode(errors="replace").decode()  # JSON can hold halves of characters
    return Segment(int(entry["label"]), name, (red, green, blue))


def made_by_in(labels: Path) -> MadeBy | None:
    """Return the program or model that made the labels of a file, by its record; None if a person did."""
    record = read_record(record_path(labels)) or {}
    maker = record.get("bundle") or record.get("algorithm")
    if isinstance(maker, dict):
        return str(maker.get("name", PROGRAM)), str(maker.get("version", ""))
    return None if record.get("by_hand") else UNKNOWN


def labels_record(segmentation: Segmentation, made_by: MadeBy | None) -> dict[str, Any]:
    """Return the content of the record of labels that were saved by a person.

    Args:
        segmentation: labels with the names and colours of their segments.
        made_by: program or model that made the labels; None if a person did.
    """
    segments = {"segments": _names(segmentation)}
    if made_by is None:
        return {"by_hand": True, **segments}
    return segments if made_by == UNKNOWN else {"bundle": {"name": made_by[0], "version": made_by[1]}, **segments}


def converted_record(segmentation: Segmentation, original: Path, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the record of labels that were read from a file and are written to another one.

    Args:
        segmentation: labels with the names and colours of their segments.
        original: file that they were read from; what its record states about the scan and the model stays.
        made_by: entries that state the origin of labels without a record; see `origin.record_entries`.
    """
    before = None if may_be_dicom(original) else read_record(record_path(original))  # DICOM has none
    return {**(made_by if before is None else _lasting(before)), "segments": _names(segmentation)}


def _names(segmentation: Segmentation) -> list[dict[str, Any]]:
    return [{"label": s.label, "name": s.name, "color": list(s.color)} for s in segmentation.segments]


@contextmanager
def new_record(labels: Path, content: Mapping[str, Any], *, original: Path | None = None) -> Iterator[None]:
    """Replace the record of labels together with the labels, which the block writes.

    The old record is removed when the labels get their name, and the new one is written then, so that no record lies
    next to labels that it does not describe; it stays if the block raises. Only NIfTI gets a record: .seg.nrrd, which
    holds names and colours, loses an old one, and other formats have none. A file of another program stays if it has no
    other names; a warning is logged that there is no record.

    Args:
        labels: file that the block writes.
        content: see `write_record`.
        original: file that the labels were read from; if both have one record, it stays if it has no other names.

    Raises:
        OutputError: `output.exists`, the record belongs to other labels; `output.not_written`; `output.disk_full`; or
            any `OutputError` of the block.
    """
    if not has_ending(labels, (*NIFTI_ENDINGS, *SEG_NRRD_ENDINGS)):
        yield
        return
    is_nifti = bool(nifti_ending(labels))
    record = record_path(labels)
    other = None if original is None or original.resolve() == labels.resolve() else record_path(original.absolute())
    is_shared = other is not None and other.resolve() == record.resolve()
    is_foreign = read_record(record) is None
    if record.exists() and (is_shared or is_foreign or not labels.exists()):
        stated = {segment.label: segment.name for segment in recorded_segments(labels)}
        names = {one["label"]: one["name"] for one in content["segments"]}
        if not (is_shared or is_foreign) or (is_nifti and stated and not names.items() <= stated.items()):
            text = f"{record} belongs to other labels than {labels.name} would hold"
            raise OutputError("output.exists", f"{text}; choose another folder or file name")
        if is_nifti and is_foreign:
            text = (
                f"{record} belongs to another program, so that the origin of {labels.name} is not recorded next to it"
            )
            logger.warning("%s", Notice("output.no_record", text))
        yield
        return
    try:
        with set_aside(record):
            yield
        if is_nifti:
            write_record(record, content)
    except OSError as error:
        raise not_written(str(record), error) from error


def write_labels_record(segmentation: Segmentation, labels: Path, made_by: MadeBy | None) -> None:
    """Write the record of labels that are in place; see `new_record` and `labels_record`.

    Raises:
        OutputError: as `new_record`.
    """
    with new_record(labels, labels_record(segmentation, made_by)):
        pass


def edited_record(segmentation: Segmentation, original: Path, edit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the record of labels that a program edited after they were made.

    What the record of the original states about the scan and the model stays; checksums and confidences do not, because
    they are those of the original.

    Args:
        segmentation: edited labels.
        original: file of the labels before; it may have no record.
        edit: what was done, appended to earlier entries of "edits".
    """
    before = read_record(record_path(original)) or {}
    volumes, voxels = segmentation.volumes_ml(), segmentation.voxel_counts()
    edits = before.get("edits")
    return {
        **_lasting(before),
        "edits": [*(edits if isinstance(edits, list) else []), dict(edit)],
        "segments": [
            {
                "label": s.label,
                "name": s.name,
                "color": list(s.color),
                "volume_ml": rounded_ml(volumes[s.label]),
                "voxels": voxels[s.label],
            }
            for s in segmentation.segments
        ],
    }


def _lasting(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record states about the scan and the model, which also holds for changed labels."""
    no_longer = ("program", "sha256", "overlay_sha256", "beside", "segments")
    return {key: value for key, value in record.items() if key not in no_longer}


def result_record(volume: Volume, segmentation: Segmentation, *, source: str, made_by: MadeBy) -> dict[str, Any]:
    """Return the content of the record of a result.

    Args:
        volume: scan.
        segmentation: its segmentation.
        source: path of the scan relative to the inputs, without private words.
        made_by: name and version of the model.
    """
    volumes, voxels, confidence = segmentation.volumes_ml(), segmentation.voxel_counts(), segmentation.confidence
    return {
        "source": source,
        "bundle": dict(zip(("name", "version"), made_by, strict=True)),
        "run": dict(segmentation.run),
        "modality": volume.modality,
        "shape": list(segmentation.grid.shape),
        "spacing_mm": [round(s, 6) for s in segmentation.grid.spacing_mm],
        "segments": [
            {
                "label": s.label,
                "name": s.name,
                "color": list(s.color),
                "volume_ml": rounded_ml(volumes[s.label]),
                "voxels": voxels[s.label],
                "confidence": round(confidence[s.label], 4) if s.label in confidence else None,
            }
            for s in segmentation.segments
        ],
        "notices": [{"code": notice.code, "message": notice.message} for notice in segmentation.notices],
    }
