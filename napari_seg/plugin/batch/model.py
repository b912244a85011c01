"""What the Batch tab does, without Qt: a folder of scans in, a folder of results out, and a table that fills."""

from __future__ import annotations

import csv
import queue
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from psygnal import Signal

from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.runner import CaseResult, run_cohort
from napari_seg.errors import Cancelled
from napari_seg.formats import nifti_ending
from napari_seg.plugin.job import NETWORKS
from napari_seg.plugin.layer_info import frame_of
from napari_seg.plugin.layers import image_layers, layer_of
from napari_seg.plugin.messages import words_of
from napari_seg.plugin.segment.model import STAGES, Progress, alone
from napari_seg.plugin.session import Message, Session, message_of
from napari_seg.plugin.study.label_files import label_layers, read_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari.layers import Layer
    from numpy.typing import NDArray

    from napari_seg.bundles.spec import Bundle
    from napari_seg.cohort.results import Format
    from napari_seg.errors import Notice
    from napari_seg.formats import Scan
    from napari_seg.inference.segment import Options
    from napari_seg.volume import Volume


@dataclass(frozen=True)
class Row:
    """One scan of the table.

    Attributes:
        name: of the scan.
        state: for a person.
        text: volumes, or why it failed.
        seconds: that it took; 0 while it is not done.
        scan: how to read it; None of what is no scan.
        result: what became of it; None while it is not done.
    """

    name: str
    state: Literal["waiting", "running", "done", "failed", "stopped"]
    text: str = ""
    seconds: float = 0.0
    scan: Scan | None = None
    result: CaseResult | None = None


class BatchRun:
    """One cohort, run in a thread of its own; the panel takes what happened from `events` in the main thread.

    Attributes:
        events: what happened, in order: ("cases", names and scans), ("case", number), ("result", (number, CaseResult));
            the number is None of what is no case.
        progress: of the scan under way.
        error: what ended it before its end.
        has_ended: whether it has, in whatever way.
    """

    def __init__(self, inputs: Path, output: Path, bundle: Bundle, options: Options, also: Sequence[Format]) -> None:
        self.inputs = inputs
        self.output = output
        self.bundle = bundle
        self.options = options
        self.also = tuple(also)
        self.events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.progress = Progress("Looking for scans")
        self.error: Exception | None = None
        self.has_ended = threading.Event()
        self._stop = threading.Event()
        self._number = 0

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks it to end at the next step; what is done stays."""
        self._stop.set()

    def execute(self) -> None:
        """Does the work; never raises."""
        try:
            cases, faults = find_cases([self.inputs])
            self.events.put(("cases", [(case.name, case.scan) for case in cases]))
            for path, fault in faults:
                result = CaseResult(path.name, "failed", fault.code, fault.message, str(path))
                self.events.put(("result", (None, result)))
            if cases:
                told: dict[str, Callable[..., None]] = {
                    "on_case": self._on_case,
                    "on_result": self._on_result,
                    "progress": self._report,
                }
                with alone(self._stop.is_set):
                    NETWORKS.run(
                        run_cohort,
                        cases,
                        self.output,
                        self.bundle,
                        told=told,  # these end it, never while it writes
                        options=self.options,
                        also=self.also,
                    )
        except Exception as error:
            self.error = error
        finally:
            self.has_ended.set()

    def begin(self) -> None:
        """Does the work in a thread of its own: Qt's few threads are for what takes seconds."""
        threading.Thread(target=self.execute, name="napari-seg batch").start()

    def _on_case(self, number: int, name: str) -> None:
        if self._stop.is_set():
            raise Cancelled()
        self._number = number
        self.progress = Progress(f"{name}: reading")
        self.events.put(("case", number))

    def _on_result(self, result: CaseResult) -> None:
        self.events.put(("result", (self._number, result)))
        if self._stop.is_set():
            raise Cancelled()

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._stop.is_set() and done < total:  # after the last window results are written
            raise Cancelled()
        self.progress = Progress(STAGES.get(stage, stage.capitalize()), done, total if total > 1 else 0)


class BatchModel:
    """The state of the Batch tab of one viewer.

    Attributes:
        changed: emitted whenever something the tab shows has changed.
        session: takes what is said.
        inputs: folder of scans.
        output: folder of results.
        also: formats that are wanted beside NIfTI.
        rows: one a scan.
        run: the run under way, if any.
    """

    changed = Signal()

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs: Path | None = None
        self.output: Path | None = None
        self._output_is_chosen = False
        self.also: set[Format] = set()
        self.rows: list[Row] = []
        self.run: BatchRun | None = None

    def choose_inputs(self, folder: Path) -> None:
        """Sets the folder of scans; results go to a folder beside it unless a person chose one."""
        self.inputs = folder
        if not self._output_is_chosen:
            self.output = folder.parent / f"{folder.name or 'scans'}_segmented"
        self.changed.emit()

    def choose_output(self, folder: Path) -> None:
        """Sets the folder of results."""
        self.output, self._output_is_chosen = folder, True
        self.changed.emit()

    def obstacle(self, bundle: Bundle | None) -> str:
        """Why Run is greyed, for a person; "" when it isn't."""
        if self.run is not None:
            return "A batch is under way."
        if self.inputs is None or self.output is None:
            return "Choose a folder of scans."
        if bundle is None or not bundle.trusted:
            return "Choose a model that may run in the Segment tab."
        return ""

    def start(self, bundle: Bundle, options: Options) -> BatchRun:
        """A run; call its `execute` in a thread, `look` now and then, and `finish` once it has ended."""
        assert self.inputs is not None
        assert self.output is not None
        self.rows = []
        self.run = BatchRun(self.inputs, self.output, bundle, options, sorted(self.also))
        self.session.say()
        self.changed.emit()
        return self.run

    def stop(self) -> None:
        """Asks the run to end at its next step; what is done stays."""
        if self.run is not None:
            self.run.stop()
            self.changed.emit()

    def close(self) -> None:
        """Ends a run at its next step."""
        self.stop()

    def look(self) -> None:
        """Takes what happened meanwhile."""
        run = self.run
        if run is None:
            return
        happened = False
        while True:
            try:
                kind, value = run.events.get_nowait()
            except queue.Empty:
                break
            happened = True
            if kind == "cases":
                self.rows = [Row(name, "waiting", scan=scan) for name, scan in value]
            elif kind == "case":
                self.rows[value] = replace(self.rows[value], state="running")
            else:
                self._take(*value)
        if happened:
            self.changed.emit()

    def finish(self) -> None:
        """Says what came of the run."""
        self.look()
        run, self.run = self.run, None
        if run is None:
            return
        left = [n for n, row in enumerate(self.rows) if row.state in ("waiting", "running")]
        for n in left:
            self.rows[n] = replace(self.rows[n], state="stopped")
        done, failed = (sum(row.state == state for row in self.rows) for state in ("done", "failed"))
        counts = f"{done} done, {failed} failed" + (f", {len(left)} not begun or stopped" if left else "")
        if run.error is not None and not isinstance(run.error, Cancelled):
            self.session.say(message_of(run.error), Message("info", counts), lasting=True)
        elif not self.rows:
            self.session.say(Message("warning", "There is no scan below that folder."))
        else:
            kind: Literal["info", "warning"] = "warning" if failed else "info"
            self.session.say(Message(kind, f"{counts}. Results lie in {run.output}."), lasting=True)
        self.changed.emit()

    def _take(self, number: int | None, result: CaseResult) -> None:
        is_done = result.status == "done"
        volumes = ", ".join(f"{name} {ml:.2f} ml" for name, ml in result.volumes_ml.items())
        scan = None if number is None else self.rows[number].scan
        text = volumes if is_done else words_of(result)
        row = Row(result.name, "done" if is_done else "failed", text, result.seconds, scan, result)
        if number is None:
            self.rows.append(row)
        else:
            self.rows[number] = row

    # results

    @staticmethod
    def read(row: Row, scans: Sequence[Volume], frame: NDArray | None) -> tuple[list[Layer], tuple[str, ...]]:
        """Return the layers of a scan and of its result, for `StudyModel.show`.

        Takes a while, so not in the main thread.

        Args:
            row: of a scan; one that failed is shown alone.
            scans: the open scans, which are not read once more.
            frame: the viewer's frame.

        Raises:
            NapariSegError: the scan or its result can't be read.
        """
        assert row.scan is not None
        layers: list[Layer] = []
        doubts: tuple[str, ...] = ()
        volume = next((one for one in scans if one.source.files == row.scan.files), None)
        if volume is None:
            volume = row.scan.read()
            layers, doubts = [layer_of(one) for one in image_layers(volume, frame)], _said(volume.notices)
            frame = frame_of(layers)
        labels = None if row.result is None else row.result.labels
        if labels is not None:
            found = read_labels(labels, [volume])
            name = labels.name.removesuffix(nifti_ending(labels))
            layers += [layer_of(one) for one in label_layers(found, name, frame)]
            doubts += _said(found.notices)
        return layers, doubts

    def write_table(self, path: Path) -> None:
        """Write one table (CSV) of all scans: what became of each, and the volume of each structure in ml.

        Args:
            path: a table that is there is replaced.

        Raises:
            OutputError: `output.not_written`, `output.disk_full`.
        """
        from napari_seg.formats.atomic import unproven

        results = [row.result for row in self.rows if row.result is not None]
        structures = list(dict.fromkeys(name for result in results for name in result.volumes_ml))
        with unproven(path, ".csv") as hidden, hidden.open("w", encoding="utf-8", newline="") as file:
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


def _said(notices: Sequence[Notice]) -> tuple[str, ...]:
    return tuple(words_of(notice) for notice in notices)
