"""State of the Batch tab, without Qt: run a model over a folder of scans, and list the results."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from psygnal import Signal

from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.outcome import CaseResult
from napari_seg.cohort.runner import Stop
from napari_seg.cohort.settings import RunSettings
from napari_seg.formats.endings import nifti_ending
from napari_seg.plugin.job import Job, JobProgress
from napari_seg.plugin.layer_info import frame_of
from napari_seg.plugin.layers import image_layers, layer_of
from napari_seg.plugin.messages import Message, gui_text_of, message_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.study.label_files import label_layers, read_labels
from napari_seg.plugin.study.model import Loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.layers import Layer
    from numpy.typing import NDArray

    from napari_seg.bundles.spec import Bundle
    from napari_seg.errors import Notice
    from napari_seg.formats.channels import ChannelSet
    from napari_seg.formats.kinds import FormatName
    from napari_seg.formats.scan import Scan
    from napari_seg.inference.options import SegmentOptions
    from napari_seg.volume import Volume


@dataclass(frozen=True)
class Row:
    """One scan of the table.

    Attributes:
        name: name of the scan.
        state: progress of the scan.
        text: volumes of the structures, or the reason of a failure.
        seconds: duration; 0 before the end.
        scan: the scan, or the images that are its channels; None for a file that is not a scan.
        result: result of the run; None before the end.
        channels: channels that the model expects; None for one.
    """

    name: str
    state: Literal["waiting", "running", "done", "failed", "stopped"]
    text: str = ""
    seconds: float = 0.0
    scan: Scan | ChannelSet | None = None
    result: CaseResult | None = None
    channels: int | None = None


class _JobStop(Stop):
    """Stop of a run that is requested, at once, when its job is stopped."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    @property
    def count(self) -> int:
        """Requests so far."""
        return 2 if self._job.is_stopping else self._count


class _View:
    """Hands what happens in a run to the model, in the main thread."""

    def __init__(self, model: BatchModel, job: Job) -> None:
        self._model = model
        self._job = job
        self._names: dict[int, str] = {}

    def on_start(self, total: int, done_before: int) -> None:
        """Do nothing: the rows are there."""

    def on_case_start(self, number: int, name: str) -> None:
        """Mark a row as running."""
        self._names[number] = name
        self._job.post(self._model._on_case_start, name)

    def on_progress(self, number: int, stage: str, done: int, total: int) -> None:
        """Show the progress of one of the running cases."""
        words = f"{self._names[number]}: {stage}"
        self._job.progress = JobProgress(words, done, total) if total > 1 else JobProgress(words)

    def on_plan(self, number: int, text: str) -> None:
        """Do nothing: a table has no room for it."""

    def on_result(self, result: CaseResult) -> None:
        """Fill a row."""
        self._job.post(self._model._add_result, result)


class BatchModel:
    """State of the Batch tab of one viewer.

    Attributes:
        changed: emitted after every change that the tab shows.
        session: receives messages.
        inputs: folder of scans.
        output: folder of results.
        also: formats to write in addition to NIfTI.
        rows: one row for each scan.
        job: the running batch; None if there is none.
    """

    changed = Signal()

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs: Path | None = None
        self.output: Path | None = None
        self._output_is_chosen = False
        self.also: set[FormatName] = set()
        self.rows: list[Row] = []
        self.job: Job | None = None
        self._error: Exception | None = None
        self._numbers: dict[str, int] = {}

    def choose_inputs(self, folder: Path) -> None:
        """Set the folder of scans, and next to it the folder of results unless the user chose one."""
        self.inputs = folder
        if not self._output_is_chosen:
            self.output = folder.parent / f"{folder.name or 'scans'}_segmented"
        self.changed.emit()

    def choose_output(self, folder: Path) -> None:
        """Set the folder of results."""
        self.output, self._output_is_chosen = folder, True
        self.changed.emit()

    def obstacle(self, bundle: Bundle | None) -> str:
        """Return the reason why Run is disabled, for a person; "" if it is enabled.

        Args:
            bundle: the bundle to run; None if there is none that may run.
        """
        if self.job is not None:
            return "A batch is running."
        if self.inputs is None or self.output is None:
            return "Choose a folder of scans."
        if bundle is None:
            return "Choose a trusted model in the Segment tab."
        return ""

    def start(self, bundle: Bundle, options: SegmentOptions) -> None:
        """Run a bundle over the scans of the chosen folder in a job."""
        inputs, output = self.inputs, self.output
        assert inputs is not None
        assert output is not None
        self.rows = []
        self._error = None
        work = partial(self._run, inputs, output, bundle, options, tuple(sorted(self.also)))
        self.job = self.session.jobs.start(work, on_error=self._on_error, on_end=self._on_end)
        self.session.show_messages()
        self.changed.emit()

    def stop(self) -> None:
        """Ask the batch to end at its next step; finished results stay."""
        if self.job is not None:
            self.job.stop()
            self.changed.emit()

    def _run(
        self,
        inputs: Path,
        output: Path,
        bundle: Bundle,
        options: SegmentOptions,
        also: tuple[FormatName, ...],
        job: Job,
    ) -> None:
        """Find the scans and run the bundle on each in worker processes; in the thread of the job."""
        job.progress = JobProgress("Looking for scans")
        cohort = Cohort([inputs], output, bundle, settings=RunSettings(options, also=also))
        cohort.stop = _JobStop(job)
        cohort.view = _View(self, job)
        channels = bundle.in_channels if bundle.in_channels > 1 else None
        rows = [Row(case.name, "waiting", scan=case.scan, channels=channels) for case in cohort.cases]
        job.post(self._on_cases, rows)
        if not rows and not cohort.excluded:
            return
        for _ in cohort:
            job.check()

    def _on_cases(self, rows: list[Row]) -> None:
        self.rows = rows
        self.changed.emit()

    def _on_case_start(self, name: str) -> None:
        number = self._number_of(name)
        if number is not None:
            self.rows[number] = replace(self.rows[number], state="running")
            self.changed.emit()

    def _number_of(self, name: str) -> int | None:
        """Return the number of the row of a case; None for an input that could not be searched."""
        if len(self._numbers) != len(self.rows):
            self._numbers = {row.name: number for number, row in enumerate(self.rows)}
        return self._numbers.get(name)

    def _on_error(self, error: Exception) -> None:
        self._error = error

    def _on_end(self) -> None:
        """Report the number of scans that are done, that failed and that were not run."""
        self.job = None
        not_run = [n for n, row in enumerate(self.rows) if row.state in ("waiting", "running")]
        for n in not_run:
            self.rows[n] = replace(self.rows[n], state="stopped")
        done, failed = (sum(row.state == state for row in self.rows) for state in ("done", "failed"))
        counts = f"{done} done, {failed} failed" + (f", {len(not_run)} not started or stopped" if not_run else "")
        if self._error is not None:
            self.session.show_messages(message_of(self._error), Message("info", counts), lasting=True)
        elif not self.rows:
            self.session.show_messages(Message("warning", "There is no scan in this folder."))
        else:
            kind: Literal["info", "warning"] = "warning" if failed else "info"
            self.session.show_messages(Message(kind, f"{counts}. The results are in {self.output}."), lasting=True)
        self.changed.emit()

    def _add_result(self, result: CaseResult) -> None:
        number = self._number_of(result.name)
        is_done = result.status == "done"
        volumes = ", ".join(f"{name} {ml:.2f} ml" for name, ml in result.volumes_ml.items())
        text = volumes if is_done else gui_text_of(result)
        state: Literal["done", "failed"] = "done" if is_done else "failed"
        if number is None:
            self.rows.append(Row(result.name, state, text, result.seconds, None, result))
        else:
            row = self.rows[number]
            self.rows[number] = replace(row, state=state, text=text, seconds=result.seconds, result=result)
        self.changed.emit()

    # results

    @staticmethod
    def read(row: Row, scans: Sequence[Volume], frame: NDArray | None) -> Loaded:
        """Return the layers of a scan and of its result, and warnings; slow, call outside the main thread.

        Args:
            row: row of a scan; if it failed, the scan alone is returned.
            scans: open scans, which are not read again.
            frame: frame of the viewer.

        Raises:
            NapariSegError: the scan or its result can't be read.
        """
        assert row.scan is not None
        layers: list[Layer] = []
        warnings: tuple[str, ...] = ()
        files = set(row.scan.files)  # a series is sorted by slice, a found scan by name
        volume = next((one for one in scans if set(one.source.files) == files), None)
        if volume is None:
            volume = row.scan.read(channels=row.channels, one_slice=True)
            layers, warnings = [layer_of(one) for one in image_layers(volume, frame)], _texts_of(volume.notices)
            frame = frame_of(layers)
        labels = None if row.result is None else row.result.labels
        if labels is not None:
            found = read_labels(labels, [volume])
            name = labels.name.removesuffix(nifti_ending(labels))
            layers += [layer_of(one) for one in label_layers(found, name, frame)]
            warnings += _texts_of(found.notices)
        return layers, warnings

    def write_table(self, path: Path) -> None:
        """Write one table (CSV) of all scans: state, duration, and the volume of each structure in ml.

        Args:
            path: file of the table; an existing file is replaced.

        Raises:
            OutputError: `output.not_written`, `output.disk_full`.
        """
        from napari_seg.formats.atomic import verified_write

        results = [row.result for row in self.rows if row.result is not None]
        structures = list(dict.fromkeys(name for result in results for name in result.volumes_ml))
        with verified_write(path, ".csv") as hidden, hidden.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["scan", "state", "seconds", *(f"{name} (ml)" for name in structures), "code", "remarks"])
            for row in self.rows:
                result = row.result or CaseResult(row.name, "failed")
                volumes = [result.volumes_ml.get(name) for name in structures]
                remarks = "; ".join([*filter(None, [result.message]), *(one.message for one in result.notices)])
                table.writerow(
                    [
                        row.name,
                        row.state,
                        f"{row.seconds:.1f}" if row.seconds else "",
                        *("" if ml is None else f"{ml:.4f}" for ml in volumes),
                        result.code,
                        remarks,
                    ]
                )


def _texts_of(notices: Sequence[Notice]) -> tuple[str, ...]:
    return tuple(gui_text_of(notice) for notice in notices)
