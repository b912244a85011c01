"""Volumes of segments as a CSV or JSON table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

from napari_seg.errors import OutputError
from napari_seg.formats.atomic import verified_write
from napari_seg.formats.csv_cells import text_cell
from napari_seg.formats.endings import has_ending
from napari_seg.volume import Segmentation, rounded_ml

_COLUMNS = ("label", "name", "voxels", "volume_ml")


def write_volume_table(segmentation: Segmentation, path: Path) -> None:
    """Write label, name, number of voxels and volume in ml of each segment; read the file back before it gets its name.

    In CSV a name that a spreadsheet would run as a formula begins with an apostrophe.

    Args:
        segmentation: labels with their segments.
        path: file to write; ends in .csv or .json.

    Raises:
        OutputError: `output.not_written`; `output.not_equal`.
    """
    is_json = has_ending(path, (".json",))
    counts, volumes = segmentation.voxel_counts(), segmentation.volumes_ml()
    name_of: Callable[[str], str] = str if is_json else text_cell
    rows = [
        {
            "label": s.label,
            "name": name_of(s.name),
            "voxels": counts[s.label],
            "volume_ml": rounded_ml(volumes[s.label]),
        }
        for s in segmentation.segments
    ]
    with verified_write(path, path.suffix) as hidden:
        with hidden.open("w", encoding="utf-8", newline="") as file:
            if is_json:
                json.dump(rows, file, indent=2)
            else:
                table = csv.DictWriter(file, _COLUMNS)
                table.writeheader()
                table.writerows(rows)
        with hidden.open(encoding="utf-8", newline="") as file:
            found = json.load(file) if is_json else list(csv.DictReader(file))
        expected, actual = ([[str(row[key]) for key in _COLUMNS] for row in one] for one in (rows, found))
        if actual != expected:
            raise OutputError("output.not_equal", f"{path.name} differs when it is read back; try another disk")
