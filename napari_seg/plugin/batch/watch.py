"""Look at a folder of results: its cases, and who works on them, as its manifest knows them. Without Qt.

A look reads what has changed since the look before it. It writes nothing, and works while any process runs the cases.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.thumbnails import is_below
from napari_seg.cohort.report.write import REPORT
from napari_seg.cohort.rows import CaseRow, RunnerRow
from napari_seg.cohort.runners import RunnerWatch, machine
from napari_seg.cohort.status import RunnerStatus, RunStatus, status_of
from napari_seg.errors import CohortError, Notice, one_line, printable
from napari_seg.plugin.messages import gui_text_of

RowState = Literal["waiting", "running", "stopped", "done", "failed", "skipped"]

_MAX_TITLE = 200

MAX_ROWS = 1000
"""Rows that one look reads, so that the first ones show soon."""

_FEW_STRUCTURES = 20
"""Structures of a scan that are all listed, found or not."""


@dataclass(frozen=True)
class Row:
    """One case of the table.

    Attributes:
        number: number of the case in the manifest.
        name: name of the case.
        state: progress of the case; "stopped" if the process that ran it was killed.
        text: volumes of the structures, the stage, or the reason of a failure.
        seconds: duration; 0 before the end.
        source: public path of the scan.
        notices: warnings about the scan or the result.
        labels: file of the label map; None unless done.
        labels_mark: size and time of modification in ns of that file as the run wrote it.
        fingerprint: digest of sizes, times and single blocks of the scan's files; "" before its start.
        input_sha256: digest of the scan's files; "" before its end.
    """

    number: int
    name: str
    state: RowState
    text: str = ""
    seconds: float = 0.0
    source: str = ""
    notices: tuple[str, ...] = ()
    labels: Path | None = None
    labels_mark: tuple[int, int] = (0, 0)
    fingerprint: str = ""
    input_sha256: str = ""

    @property
    def title(self) -> str:
        """Name on one line, for a person."""
        return one_line(self.name, _MAX_TITLE)


@dataclass(frozen=True)
class Look:
    """What one look at a folder has found.

    Attributes:
        folder: the folder of results.
        created: time at which its manifest was created, which identifies it; "" without a manifest.
        rows: cases that are new or have changed since the look before.
        status: state of the run; None without a manifest.
        at_work: processes that run cases of the folder.
        lost: a process that was killed while it ran cases, if no other has continued since; None otherwise.
        has_report: whether the folder has a report.
        marks: number -> mark of each case, which differs after every change.
        is_partial: whether there are more rows, which the next look finds.
        removed: numbers of cases that the manifest does not have any more.
    """

    folder: Path
    created: str = ""
    rows: tuple[Row, ...] = ()
    status: RunStatus | None = None
    at_work: tuple[RunnerRow, ...] = ()
    lost: RunnerRow | None = None
    has_report: bool = False
    marks: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    is_partial: bool = False
    removed: tuple[int, ...] = ()


def look(folder: Path, before: Look | None = None) -> Look:
    """Look at a folder of results; may be slow, call outside the main thread.

    Args:
        folder: the folder, which may be missing.
        before: the look before; its rows are not read again unless they have changed.

    Raises:
        CohortError: `cohort.manifest`, the manifest is damaged or from a later version; `cohort.manifest_locked`.
        OutputError: `output.not_written`, the drive can't be read.
    """
    try:
        manifest = Manifest.open(folder, read_only=True)
    except CohortError as error:
        if error.code != "cohort.no_manifest":
            raise
        return Look(folder)
    with manifest:
        created, status = manifest.meta("created") or "", status_of(manifest)
        at_work = tuple(one.row for one in status.runners if _is_at_work(folder, one))
        alive = {row.id for row in at_work}
        marks = {number: (*mark, mark[-1] in alive) for number, mark in manifest.marks().items()}
        known = before.marks if before is not None and (before.folder, before.created) == (folder, created) else {}
        removed = tuple(number for number in known if number not in marks)
        changed = [number for number, mark in marks.items() if known.get(number) != mark]
        for number in changed[MAX_ROWS:]:  # for the next look
            marks[number] = known.get(number, ())
        is_partial, changed = len(changed) > MAX_ROWS, changed[:MAX_ROWS]
        rows = tuple(row_of(row, folder, row.runner in alive) for row in manifest.rows_of(changed))
    unended = [one.row for one in status.runners if one.row.ended is None and not at_work]
    lost = unended[-1] if unended else None
    return Look(folder, created, rows, status, at_work, lost, (folder / REPORT).is_file(), marks, is_partial, removed)


def is_here(runner: RunnerRow) -> bool:
    """Return whether a runner is, or was, this process."""
    return (runner.machine, runner.pid) == (machine(), os.getpid())


def _is_at_work(folder: Path, runner: RunnerStatus) -> bool:
    """Return whether a runner works; this process may have lost a run and go on without it."""
    return runner.is_alive and (not is_here(runner.row) or RunnerWatch(folder).is_alive(runner.row) is True)


def row_of(row: CaseRow, folder: Path, is_run: bool = False) -> Row:
    """Return a case of a manifest as a row of the table.

    Args:
        row: the case.
        folder: the folder of results.
        is_run: whether a process runs the case now.
    """
    claimed: RowState = "running" if is_run else "stopped"
    state: RowState = claimed if row.state == "running" or row.state == "moving" else row.state
    labels = row.outputs.get("labels") if state == "done" else None
    if labels is not None and not is_below(labels.path):  # a stranger made the manifest
        labels = None
    return Row(
        number=row.id,
        name=row.name,
        state=state,
        text=printable(_text(row, state)),
        seconds=row.seconds if state in ("done", "failed") else 0.0,
        source=row.source,
        notices=tuple(printable(gui_text_of(notice)) for notice in row.notices) if state == "done" else (),
        labels=None if labels is None else folder / labels.path,
        labels_mark=(0, 0) if labels is None else (labels.bytes, labels.mtime_ns),
        fingerprint=row.fingerprint,
        input_sha256=row.input_sha256,
    )


def _text(row: CaseRow, state: RowState) -> str:
    """Return what the table shows of a case besides its name."""
    if state == "done":
        return volumes_text(row.volumes_ml)
    if state in ("failed", "skipped"):
        return gui_text_of(Notice(row.code, row.message))
    if state == "running":
        return f"{row.stage} …" if row.stage else "waits for a free worker"
    return "interrupted" if state == "stopped" else ""


def volumes_text(volumes_ml: dict[str, float]) -> str:
    """Return the volumes of structures in words; of many structures, those that were found."""
    listed = volumes_ml
    if len(volumes_ml) > _FEW_STRUCTURES:
        listed = {name: ml for name, ml in volumes_ml.items() if ml}
    texts = [f"{name} {ml:.2f} ml" for name, ml in listed.items()]
    absent = len(volumes_ml) - len(listed)
    return ", ".join(texts + [f"{absent} others not found"] * bool(absent))
