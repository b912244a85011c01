"""Results of a batch: as layers next to their scans, and as one table of volumes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.scan_files import is_same
from napari_seg.formats.endings import nifti_ending
from napari_seg.plugin.batch.watch import Row
from napari_seg.plugin.layer_info import frame_of
from napari_seg.plugin.layers import image_layers, layer_of
from napari_seg.plugin.messages import gui_text_of
from napari_seg.plugin.study.label_files import label_layers, read_labels
from napari_seg.plugin.study.model import Loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.layers import Layer
    from numpy.typing import NDArray

    from napari_seg.bundles.spec import Bundle
    from napari_seg.cohort.case import Case
    from napari_seg.errors import Notice
    from napari_seg.volume import Volume


def find_scan(row: Row, inputs: Path, cases: Sequence[Case]) -> tuple[Case | None, str]:
    """Return the case with the scan of a row, or None and the reason why its scan is unknown; it may read files.

    Args:
        row: row of a scan.
        inputs: folder of scans.
        cases: cases of that folder.
    """
    # names depend on the model and on the layout of the results; sources on the folder of scans
    case = next((one for one in cases if one.key == row.name), None)
    case = case or next((one for one in cases if one.source == row.source), None)
    if case is None:
        return None, f"The scan {row.title} was not found below {inputs}."
    if row.fingerprint and not is_same(case.scan, row.fingerprint, row.input_sha256):
        return None, f"The scan {row.title} below {inputs} is another one, or was changed since it was segmented."
    return case, ""


def read_row(
    row: Row, case: Case | None, reason: str, scans: Sequence[Volume], frame: NDArray | None, bundle: Bundle | None
) -> Loaded:
    """Return the layers of a scan and of its result, and warnings; slow, call outside the main thread.

    Args:
        row: row of a scan; if it failed, the scan alone is returned.
        case: the case with the scan; None if it is unknown, so that the labels alone are returned.
        reason: why it is unknown.
        scans: open scans, which are not read again.
        frame: frame of the viewer.
        bundle: the chosen model, for a case without one.

    Raises:
        NapariSegError: the scan or its result can't be read.
    """
    layers: list[Layer] = []
    warnings: tuple[str, ...] = ()
    if case is None:
        warnings = (f"{reason} Only the labels are opened." if row.labels is not None else reason,)
    else:
        files = set(case.scan.files)  # a series is sorted by slice, a found scan by name
        volume = next((one for one in scans if set(one.source.files) == files), None)
        if volume is None:
            model = case.bundle or bundle
            channels = model.in_channels if model is not None and model.in_channels > 1 else None
            volume = case.scan.read(channels=channels, one_slice=True)
            layers, warnings = [layer_of(one) for one in image_layers(volume, frame)], _texts_of(volume.notices)
            frame = frame_of(layers)
        scans = [volume]
    if row.labels is not None:
        found = read_labels(row.labels, scans)
        name = row.labels.name.removesuffix(nifti_ending(row.labels))
        status = row.labels.stat()
        is_result = (status.st_size, status.st_mtime_ns) == row.labels_mark
        layers += [layer_of(one) for one in label_layers(found, name, frame, is_result=is_result)]
        warnings += _texts_of(found.notices)
    return layers, warnings


def write_table(output: Path, rows: Sequence[Row], path: Path) -> None:
    """Write one table (CSV) of all scans: state, duration, and the volume of each structure in ml.

    Args:
        output: folder of results.
        rows: rows whose states are shown.
        path: file of the table; an existing file is replaced.

    Raises:
        OutputError: `output.not_written`, `output.disk_full`.
        CohortError: `cohort.no_manifest`, `cohort.manifest`.
    """
    from napari_seg.formats.atomic import verified_write
    from napari_seg.formats.csv_cells import text_cell
    from napari_seg.volume import rounded_ml

    states = {row.name: row.state for row in list(rows)}
    with Manifest.open(output, read_only=True) as manifest:
        structures = list(dict.fromkeys(name for row in manifest.rows(("done",)) for name in row.volumes_ml))
        with verified_write(path, ".csv") as hidden, hidden.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            columns = (text_cell(f"{name} (ml)") for name in structures)
            table.writerow(["scan", "state", "seconds", *columns, "code", "remarks"])
            for row in manifest.rows():
                volumes = [row.volumes_ml.get(name) if row.state == "done" else None for name in structures]
                remarks = "; ".join([*filter(None, [row.message]), *(one.message for one in row.notices)])
                table.writerow(
                    [
                        text_cell(row.name),
                        states.get(row.name, row.state),
                        f"{row.seconds:.1f}" if row.seconds else "",
                        *("" if ml is None else rounded_ml(ml) for ml in volumes),
                        row.code,
                        text_cell(remarks),
                    ]
                )


def _texts_of(notices: Sequence[Notice]) -> tuple[str, ...]:
    return tuple(gui_text_of(notice) for notice in notices)
