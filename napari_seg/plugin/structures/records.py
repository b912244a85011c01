"""What NIfTI has no room for, in a record beside it: names and colours of structures, and who made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cohort.discover import PROGRAM, read_record
from napari_seg.formats.atomic import unproven
from napari_seg.formats.endings import nifti_ending
from napari_seg.version import __version__
from napari_seg.volume import Segmentation

if TYPE_CHECKING:
    from napari_seg.plugin.labels_state import Snapshot

MadeBy = tuple[str, str]
"""Name and version of a model."""

SOMEBODY: MadeBy = (PROGRAM, "")
"""Of labels from a file that does not tell: nobody may say that a person made them."""


def made_by_of(snapshot: Snapshot) -> MadeBy | None:
    """What made labels; None: a person drew them here."""
    return snapshot.info.algorithm


def made_by_in(path: Path) -> MadeBy | None:
    """What made the labels of a file, by the record beside it; None: a person."""
    record = read_record(record_of(path)) or {}
    bundle = record.get("bundle")
    if isinstance(bundle, dict):
        return str(bundle.get("name", PROGRAM)), str(bundle.get("version", ""))
    return None if record.get("by_hand") else SOMEBODY


def write_record(segmentation: Segmentation, path: Path, made_by: MadeBy | None) -> None:
    """Writes it where `read_label_map` finds it; a file of another program that is in the way stays.

    Args:
        segmentation: whose names and colours.
        path: of the NIfTI file.
        made_by: what made it; None: a person.

    Raises:
        OutputError: `output.not_written`.
    """
    record = record_of(path)
    if record.exists() and read_record(record) is None:
        return
    segments = [{"label": s.label, "name": s.name, "color": list(s.color)} for s in segmentation.segments]
    maker = {"by_hand": True} if made_by is None else {"bundle": dict(zip(("name", "version"), made_by, strict=True))}
    text = json.dumps({"program": f"{PROGRAM} {__version__}", **maker, "segments": segments}, indent=2)
    with unproven(record, ".json") as hidden:
        hidden.write_text(text + "\n", encoding="utf-8")


def record_of(path: Path) -> Path:
    """Where the record of a NIfTI file lies."""
    return path.with_name(f"{path.name.removesuffix(nifti_ending(path))}.json")
