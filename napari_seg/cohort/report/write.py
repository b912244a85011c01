"""Write the report of a run: report.html and its tables."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from urllib.parse import quote

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.facts import gather
from napari_seg.cohort.report.page import TITLE, write_page
from napari_seg.cohort.report.tables import (
    CASE_COLUMNS,
    CASES_CSV,
    CASES_JSON,
    LONG_COLUMNS,
    VOLUMES_LONG,
    VOLUMES_WIDE,
    WIDE_COLUMNS,
    write_tables,
)
from napari_seg.cohort.runners import unfinished_folder
from napari_seg.formats.atomic import atomic_file, make_output_folder, not_written, refuse_other_files

REPORT = "report.html"

_SIGNS = {
    REPORT: f"<title>{TITLE} ",
    CASES_CSV: ",".join(CASE_COLUMNS[:5]),
    CASES_JSON: '{"program": "napari-seg ',
    VOLUMES_LONG: ",".join(LONG_COLUMNS[:5]),
    VOLUMES_WIDE: ",".join(WIDE_COLUMNS),
}
"""File -> text at its beginning by which a file of an earlier report is recognised."""

REPORT_FILES = tuple(_SIGNS)
"""Names of all files of a report."""


def write_report(manifest: Manifest, output: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write report.html and its tables; those of an earlier report are replaced.

    Args:
        manifest: manifest of the run.
        output: folder to write into; that of the manifest if left out.
        overwrite: replace files of other programs too.

    Returns:
        Path of report.html.

    Raises:
        OutputError: `output.exists`, a file of another program has the name of one of these; `output.folder`,
            `output.not_written`, `output.disk_full`.
        CohortError: `cohort.manifest`, the manifest is damaged.
    """
    results = manifest.path.parent
    folder = output or results
    make_output_folder(folder)
    if not overwrite:
        refuse_other_files(folder, _SIGNS, "a report of a run")
    try:
        # a copy, because a run that goes on would change the cases between the tables and the page
        with manifest.copy() as copy, unfinished_folder(folder) as unfinished:
            facts = gather(copy)
            write_tables(copy.rows(), facts, folder, unfinished)
            with (
                atomic_file(folder / REPORT, folder=unfinished) as hidden,
                open(hidden, "w", encoding="utf-8", newline="\n") as file,
            ):
                write_page(file, copy.rows(), facts, results, _address(results, folder))
    except OSError as error:
        raise not_written(str(folder / REPORT), error) from error
    return folder / REPORT


def _address(results: Path, folder: Path) -> str:
    """Return the address of the output folder relative to the page; "" if it is the same folder."""
    if results.resolve() == folder.resolve():
        return ""
    try:
        relative = PurePath(os.path.relpath(results.resolve(), folder.resolve()))
    except ValueError:  # another drive
        return f"{results.resolve().as_uri()}/"
    return f"{quote(relative.as_posix())}/"
