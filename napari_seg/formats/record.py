"""JSON record next to a label map: what the label map can't hold. Records are read and written only here.

A record has the name of its label map with the ending .json. It holds the program, the model or the fact that a person
made the labels, and the names and colours of the segments; a run over scans adds volumes, options and checksums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_seg.formats.atomic import atomic_write, not_written
from napari_seg.formats.endings import nifti_ending
from napari_seg.version import __version__
from napari_seg.volume import Segment, Segmentation, Volume

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
    try:
        if not path.is_file() or path.stat().st_size > MAX_RECORD_BYTES:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and str(record.get("program", "")).startswith(PROGRAM) else None


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
    """Return the segments in the JSON file next to a label map, of any program; none if it has no table of segments."""
    try:
        entries = json.loads(record_path(labels).read_text(encoding="utf-8"))["segments"]
        return tuple(Segment(int(e["label"]), str(e["name"]), tuple(e["color"])) for e in entries)
    # names are optional: the labels are read without them
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def made_by_in(labels: Path) -> MadeBy | None:
    """Return the program or model that made the labels of a file, by its record; None if a person did."""
    record = read_record(record_path(labels)) or {}
    bundle = record.get("bundle")
    if isinstance(bundle, dict):
        return str(bundle.get("name", PROGRAM)), str(bundle.get("version", ""))
    return None if record.get("by_hand") else UNKNOWN


def write_labels_record(segmentation: Segmentation, labels: Path, made_by: MadeBy | None) -> None:
    """Write the record of labels that were saved by a person; an existing file of another program is kept.

    Args:
        segmentation: labels with the names and colours of their segments.
        labels: NIfTI file of the labels.
        made_by: program or model that made the labels; None if a person did.

    Raises:
        OutputError: `output.not_written`; `output.disk_full`.
    """
    path = record_path(labels)
    if path.exists() and read_record(path) is None:
        return
    segments = [{"label": s.label, "name": s.name, "color": list(s.color)} for s in segmentation.segments]
    maker = {"by_hand": True} if made_by is None else {"bundle": dict(zip(("name", "version"), made_by, strict=True))}
    try:
        write_record(path, {**maker, "segments": segments})
    except OSError as error:
        raise not_written(str(path), error) from error


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
    no_longer = ("program", "sha256", "overlay_sha256", "beside", "segments")
    kept = {key: value for key, value in before.items() if key not in no_longer}
    volumes, voxels = segmentation.volumes_ml(), segmentation.voxel_counts()
    edits = before.get("edits")
    return {
        **kept,
        "edits": [*(edits if isinstance(edits, list) else []), dict(edit)],
        "segments": [
            {
                "label": s.label,
                "name": s.name,
                "color": list(s.color),
                "volume_ml": round(volumes[s.label], 4),
                "voxels": voxels[s.label],
            }
            for s in segmentation.segments
        ],
    }


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
                "volume_ml": round(volumes[s.label], 4),
                "voxels": voxels[s.label],
                "confidence": round(confidence[s.label], 4) if s.label in confidence else None,
            }
            for s in segmentation.segments
        ],
        "notices": [{"code": notice.code, "message": notice.message} for notice in segmentation.notices],
    }
