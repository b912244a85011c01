"""Record next to a NIfTI file of labels: names and colours of the structures, and the program that made them."""

from __future__ import annotations

import json
from pathlib import Path

from napari_seg.cohort.discover import PROGRAM, read_record
from napari_seg.formats.atomic import verified_write
from napari_seg.formats.endings import nifti_ending
from napari_seg.version import __version__
from napari_seg.volume import Segmentation

MadeBy = tuple[str, str]
"""Name and version of a program or a model."""

UNKNOWN: MadeBy = (PROGRAM, "")
"""Origin of labels from a file without a record, so that they are not taken for a person's."""


def made_by_in(path: Path) -> MadeBy | None:
    """Return the program that made the labels of a file, by the record next to it; None if a person did."""
    record = read_record(record_of(path)) or {}
    bundle = record.get("bundle")
    if isinstance(bundle, dict):
        return str(bundle.get("name", PROGRAM)), str(bundle.get("version", ""))
    return None if record.get("by_hand") else UNKNOWN


def write_record(segmentation: Segmentation, path: Path, made_by: MadeBy | None) -> None:
    """Write the record where `read_label_map` finds it; an existing file of another program is kept.

    Args:
        segmentation: labels with the names and colours.
        path: NIfTI file of the labels.
        made_by: program that made the labels; None if a person did.

    Raises:
        OutputError: `output.not_written`.
    """
    record = record_of(path)
    if record.exists() and read_record(record) is None:
        return
    segments = [{"label": s.label, "name": s.name, "color": list(s.color)} for s in segmentation.segments]
    maker = {"by_hand": True} if made_by is None else {"bundle": dict(zip(("name", "version"), made_by, strict=True))}
    text = json.dumps({"program": f"{PROGRAM} {__version__}", **maker, "segments": segments}, indent=2)
    with verified_write(record, ".json") as hidden:
        hidden.write_text(text + "\n", encoding="utf-8")


def record_of(path: Path) -> Path:
    """Return the path of the record of a NIfTI file."""
    return path.with_name(f"{path.name.removesuffix(nifti_ending(path))}.json")
