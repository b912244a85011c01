"""State of the Batch tab, without Qt: a folder of scans, a folder of results, its cases, and who works on them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from psygnal import Signal

from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.report.write import REPORT
from napari_seg.cohort.settings import RunSettings
from napari_seg.errors import CohortError, one_line
from napari_seg.plugin.batch.results import find_scan, read_row, write_table
from napari_seg.plugin.batch.run import BatchChoices, BatchRun
from napari_seg.plugin.batch.watch import Look, Row, is_here, look
from napari_seg.plugin.job import Job
from napari_seg.plugin.messages import Message, gui_text_of, message_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.study.model import Loaded
from napari_seg.progress import describe_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_seg.bundles.spec import Bundle
    from napari_seg.cohort.case import Case
    from napari_seg.cohort.outcome import CaseResult
    from napari_seg.cohort.rows import RunnerRow
    from napari_seg.formats.kinds import FormatName
    from napari_seg.inference.options import SegmentOptions
    from napari_seg.volume import Volume

_SHOWN_RUNNING = 3
"""Running cases that are named above the table."""


class BatchModel:
    """State of the Batch tab of one viewer.

    The table shows the manifest of the folder of results, whoever runs the cases: this window, another process, or
    nobody.

    Attributes:
        changed: emitted after every change that the tab shows.
        rows_changed: emitted with the first and the last index of the rows that are new or have changed; before that,
            (-1, -1) if rows are dropped.
        session: receives messages.
        inputs: folder of scans.
        output: folder of results.
        also: formats to write in addition to NIfTI.
        workers: scans that are segmented at once; 0 for a number that keeps this computer busy.
        rows: one row for each case of the folder of results.
        run: the run of this window; None if there is none.
        refusal: reason why results of an earlier run were not mixed with new ones; "" if there is none.
    """

    changed = Signal()
    rows_changed = Signal(int, int)

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs: Path | None = None
        self.output: Path | None = None
        self._output_is_chosen = False
        self.also: set[FormatName] = set()
        self.workers = 0
        self.rows: list[Row] = []
        self.run: BatchRun | None = None
        self.refusal = ""
        self._look: Look | None = None
        self._looking: Job | None = None
        self._fault: Exception | None = None
        """Reason why the manifest can't be read."""
        self._ended_run: BatchRun | None = None
        """Run that has ended and is reported after the next look."""
        self._places: dict[int, int] = {}
        self._refused: dict[str, str] = {}
        """Name of a case whose earlier result was not replaced -> reason."""
        self._cases: list[Case] | None = None
        """Cases of the folder of scans, once they were looked for."""

    # choices

    def choose_inputs(self, folder: Path) -> None:
        """Set the folder of scans, and next to it the folder of results unless the user chose one."""
        self.inputs, self._cases = folder, None
        if not self._output_is_chosen:
            self._set_output(folder.parent / f"{folder.name or 'scans'}_segmented")
        self.changed.emit()

    def choose_output(self, folder: Path) -> None:
        """Set the folder of results, and show what it has."""
        self._output_is_chosen = True
        self._set_output(folder)
        self.changed.emit()

    def _set_output(self, folder: Path) -> None:
        self.output, self.refusal = folder, ""
        self._forget()
        self.look()

    def _forget(self) -> None:
        """Drop the rows and what is known of the manifest."""
        if self._looking is not None:
            self._looking.abandon()
        self._look = self._looking = self._fault = None
        self.rows, self._places, self._refused = [], {}, {}
        self.rows_changed.emit(-1, -1)

    def obstacle(self, bundle: Bundle | None) -> str:
        """Return the reason why Run is disabled, for a person; "" if it is enabled.

        Args:
            bundle: the bundle to run; None if there is none that may run.
        """
        if self.run is not None:
            return "A batch is running."
        if self.inputs is None or self.output is None:
            return "Choose a folder of scans."
        if self.others:
            return f"{_who(self.others[0])} works in this folder of results. Wait for it, or stop it where it runs."
        if bundle is None:
            return "Choose a trusted model in the Segment tab."
        return ""

    # the run of this window

    def start(self, bundle: Bundle, options: SegmentOptions, *, redo: bool = False) -> None:
        """Run a bundle over the scans of the chosen folder in a job; finished cases of an earlier run are kept.

        Args:
            bundle: the bundle.
            options: options of `segment`.
            redo: replace results of earlier runs that were made otherwise; without it, they end the run.
        """
        assert self.inputs is not None
        assert self.output is not None
        settings = RunSettings(options, also=tuple(sorted(self.also)))
        choices = BatchChoices(self.inputs, self.output, bundle, settings, self.workers or None, redo)
        self.refusal, self._fault = "", None
        if self._refused:
            self._forget()
        run = self.run = BatchRun(choices, self._on_result)
        run.job = self.session.jobs.start(run, on_error=partial(setattr, run, "error"), on_end=self._on_end)
        self.session.show_messages()
        self.changed.emit()

    def stop(self) -> None:
        """Let the running scans finish and start no others; the second time, end at once. Finished results stay."""
        if self.run is not None:
            self.run.request_stop()
            self.changed.emit()

    def _on_result(self, result: CaseResult) -> None:
        if result.code == "output.exists":  # the manifest keeps the earlier result
            self._refused[result.name] = gui_text_of(result)

    def _on_end(self) -> None:
        """Look once more, and then report the end."""
        self._ended_run = self.run
        if self._looking is not None:
            self._looking.abandon()
            self._looking = None
        self.look()

    def _report_end(self, run: BatchRun) -> None:
        """Report the number of scans that are done, that failed and that were not run."""
        self.run = self._ended_run = None
        self._cases = run.cases
        for place, row in enumerate(self.rows):
            if row.name in self._refused:
                self.rows[place] = self._with_refusal(row)
                self.rows_changed.emit(place, place)
        failed, not_run = run.counts["failed"], run.total - run.ended
        counts = f"{run.counts['done']} done" + f" ({run.earlier} by an earlier run)" * bool(run.earlier)
        counts += f", {failed} failed" + f", {run.counts['skipped']} skipped" * bool(run.counts["skipped"])
        counts += f", {not_run} not started or stopped: Continue runs them" * bool(not_run)
        if isinstance(run.error, CohortError) and run.error.code == "cohort.changed":
            self.refusal = gui_text_of(run.error)
        elif self._refused:
            self.refusal = next(iter(self._refused.values()))
        if run.error is not None:
            messages = [] if self.refusal else [message_of(run.error)]
            messages += [Message("info", f"{counts}.")] * bool(run.ended)
            self.session.show_messages(*messages, lasting=True)
        elif not run.total:
            text = "Stopped before the first scan." if run.is_stopping else "There is no scan in this folder."
            self.session.show_messages(Message("warning", text))
        else:
            kind: Literal["info", "warning"] = "warning" if failed else "info"
            messages = [Message(kind, f"{counts}. The results are in {run.choices.output}.")]
            if run.report_fault is not None:
                messages.append(Message("warning", f"There is no report: {gui_text_of(run.report_fault)}"))
            self.session.show_messages(*messages, lasting=True)

    # what the folder of results has

    def look(self) -> None:
        """Look at the folder of results in a job, unless a look is going on; call it about once a second."""
        if self.output is None or self._looking is not None:
            return
        work = partial(look, self.output, self._look)
        self._looking = self.session.jobs.start(
            lambda _: work(), on_result=self._on_look, on_error=self._on_fault, on_end=self._on_looked
        )

    def _on_look(self, found: Look) -> None:
        before, self._look, self._fault = self._look, found, None
        is_known = before is not None and before.created == found.created
        if (self.rows and not is_known) or found.removed:
            self.rows = [row for row in self.rows if row.number not in found.removed] if is_known else []
            self._places = {row.number: place for place, row in enumerate(self.rows)}
            self.rows_changed.emit(-1, -1)
        places = []
        for row in found.rows:
            place = self._places.setdefault(row.number, len(self.rows))
            if place == len(self.rows):
                self.rows.append(row)
            self.rows[place] = self._with_refusal(row)
            places.append(place)
        if places:
            self.rows_changed.emit(min(places), max(places))
        gone = before.at_work if before is not None and self.run is None else ()
        if gone and not self.others:
            self._report_end_of(gone[0])

    def _with_refusal(self, row: Row) -> Row:
        if row.state == "done" and row.name in self._refused:
            return replace(row, state="failed", text=self._refused[row.name])
        return row

    def _on_fault(self, error: Exception) -> None:
        self._fault = error

    def _on_looked(self) -> None:
        self._looking = None
        if self._look is not None and self._look.is_partial and self._fault is None:
            self.look()
        elif self._ended_run is not None:
            self._report_end(self._ended_run)
        self.changed.emit()

    @property
    def others(self) -> tuple[RunnerRow, ...]:
        """Other processes that run cases in the folder of results."""
        if self._look is None or self.run is not None:
            return ()
        return self._look.at_work

    def _report_end_of(self, runner: RunnerRow) -> None:
        """Report the end of a run of another process; `status` keeps saying that one was killed."""
        if self._look is not None and self._look.lost is None:
            kind: Literal["info", "warning"] = "warning" if self.count("failed") else "info"
            text = f"{_who(runner)} has ended: {self._counts()}."
            self.session.show_messages(Message(kind, text), lasting=True)

    def count(self, *states: str) -> int:
        """Return the number of cases in these states of the manifest."""
        status = None if self._look is None else self._look.status
        return 0 if status is None else sum(status.counts[state] for state in states)

    @property
    def left(self) -> int:
        """Number of cases of the manifest that have not ended."""
        return self.count("waiting", "running", "moving")

    @property
    def run_title(self) -> str:
        """What Run does in the folder of results, for its button."""
        if self.left:
            return "Continue"
        return "Retry failed" if self.count("failed") else "Run all"

    @property
    def report(self) -> Path | None:
        """The report of the run; None if there is none."""
        return self._look.folder / REPORT if self._look is not None and self._look.has_report else None

    @property
    def is_running(self) -> bool:
        """Return whether this window runs cases."""
        return self.run is not None and not self.session.is_closed

    @property
    def is_at_work(self) -> bool:
        """Return whether any process runs cases in the folder of results."""
        return self.run is not None or bool(self.others)

    @property
    def progress(self) -> tuple[int, int]:
        """Number of cases that have ended, and of all cases."""
        if self.run is not None:
            return self.run.ended, self.run.total
        return self.count("done", "failed", "skipped"), self.count("done", "failed", "skipped") + self.left

    @property
    def status(self) -> str:
        """What goes on, or what has ended, in a few lines for a person; "" if the folder has no run."""
        if self._fault is not None and self.run is None:
            return message_of(self._fault).text
        if self.run is not None:
            return self._status_of_run(self.run)
        if self._look is None or self._look.status is None:
            return ""
        if others := self.others:
            lines = [f"{_who(one)} works here since {_clock(one.started)}." for one in others]
            running = [f"{row.title}: {row.text}" for row in self.rows if row.state == "running"]
            return "\n".join([*lines, f"{self._counts()}{self._pace(self.left)}", *_some(running)])
        if (lost := self._look.lost) is not None and self.left:
            ended = f"{_who(lost)} was killed or has crashed. Finished scans are kept; Continue runs the others."
            return f"{ended}\n{self._counts()}"
        return self._counts()

    def _status_of_run(self, run: BatchRun) -> str:
        assert run.job is not None
        if not run.total or self._ended_run is not None:
            return str(run.job.progress)
        failed = f", {run.counts['failed']} failed" if run.counts["failed"] else ""
        first = f"{run.ended} of {run.total} scans{failed}"
        running = _some([f"{name}: {progress}" for name, progress in run.running.items()])
        if run.stop.count > 1:
            return "\n".join([first, "Stopping now …"])
        if run.ended == run.total or (run.is_stopping and not running):
            return "\n".join([first, "Writing the report …"])
        if run.is_stopping:
            number = len(run.running)
            them = "the running scan finishes" if number == 1 else f"{number} running scans finish"
            return "\n".join([first, f"Stopping: {them} first. Stop now ends at once.", *running])
        return "\n".join([first + self._pace(run.total - run.ended), *running])

    def _counts(self) -> str:
        failed, skipped = self.count("failed"), self.count("skipped")
        text = f"{self.count('done')} of {self.progress[1]} scans done"
        text += f", {failed} failed" * bool(failed) + f", {skipped} skipped" * bool(skipped)
        return text + (f", {self.left} left" if self.left and not self.is_at_work else "")

    def _pace(self, left: int) -> str:
        """Return a further line with the rate and the estimated time left; "" while they are unknown."""
        status = None if self._look is None else self._look.status
        rate = None if status is None else status.per_minute
        if not rate or not left:
            return ""
        return f"\n{rate:.3g} a minute, about {describe_seconds(round(60 * left / rate))} left"

    # results

    def read(self, row: Row, scans: Sequence[Volume], frame: NDArray | None, bundle: Bundle | None = None) -> Loaded:
        """Return the layers of a scan and of its result, and warnings; slow, call outside the main thread.

        The manifest does not know the place of a scan: it is found again by its name below the folder of scans.

        Args:
            row: row of a scan; if it failed, the scan alone is returned.
            scans: open scans, which are not read again.
            frame: frame of the viewer.
            bundle: the chosen model, whose channels decide which images are one case; None if there is none.

        Raises:
            NapariSegError: the scan or its result can't be read.
        """
        case, reason = self._find(row, bundle)
        return read_row(row, case, reason, scans, frame, bundle)

    def scan_hint(self, row: Row) -> str:
        """Return what a double-click opens, for a person."""
        if row.state in ("waiting", "running", "stopped", "failed"):
            return "Double-click to open the scan." if self.inputs is not None else _NO_INPUTS
        if row.labels is None:
            return ""
        if self.inputs is None:
            return f"Double-click to open the labels. {_NO_INPUTS}"
        return "Double-click to open the scan with its result."

    def _find(self, row: Row, bundle: Bundle | None) -> tuple[Case | None, str]:
        """Return the case of a row, or None and the reason why its scan is unknown."""
        inputs = self.inputs
        if inputs is None:
            return None, _NO_INPUTS
        if self._cases is None:
            self._cases, _ = find_cases([inputs], () if bundle is None else bundle.channel_names)
        return find_scan(row, inputs, self._cases)

    def write_table(self, path: Path) -> None:
        """Write one table (CSV) of all scans: state, duration, and the volume of each structure in ml.

        Args:
            path: file of the table; an existing file is replaced.

        Raises:
            OutputError: `output.not_written`, `output.disk_full`.
            CohortError: `cohort.no_manifest`, `cohort.manifest`.
        """
        assert self.output is not None
        write_table(self.output, self.rows, path)


_NO_INPUTS = "The folder of the scans is not chosen (“Scans…”)."


def _who(runner: RunnerRow) -> str:
    """Return a name of a process for a person."""
    if is_here(runner):
        return "Another window of this napari"
    return f"Process {runner.pid} on {one_line(runner.host, 80)}"


def _clock(seconds: float) -> str:
    """Return a time of this day as hours and minutes, and of another day with the date."""
    then = time.localtime(seconds)
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M" if is_today else "%d %B, %H:%M", then)


def _some(running: list[str]) -> list[str]:
    """Return the first of some lines, and the number of the others."""
    more = len(running) - _SHOWN_RUNNING
    return running[:_SHOWN_RUNNING] + [f"and {more} more"] * (more > 0)
