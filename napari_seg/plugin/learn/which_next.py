"""Which case next: rank the results of a run in a job, and open the chosen one. Without Qt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.manifest import Manifest
from napari_seg.errors import counted
from napari_seg.inference.options import SegmentOptions
from napari_seg.plugin.batch.results import find_scan, read_row
from napari_seg.plugin.batch.watch import row_of
from napari_seg.plugin.job import Job
from napari_seg.plugin.learn.ranking import QueuedCase, rank_cases
from napari_seg.plugin.messages import Message
from napari_seg.worker import WorkerProcess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_seg.bundles.spec import Bundle
    from napari_seg.cohort.case import Case
    from napari_seg.plugin.learn.accepting import AcceptModel
    from napari_seg.plugin.segment.model import SegmentModel
    from napari_seg.plugin.session import Session
    from napari_seg.plugin.study.model import Loaded, StudyModel
    from napari_seg.volume import Volume


@dataclass(frozen=True)
class RankingChoices:
    """What is ranked.

    Attributes:
        results: output folder of a run.
        scans: folder of its scans; None if it is not known.
        bundle: the model to improve.
        accepted: training set of the accepted cases; None if there is none yet.
        options: where the network runs.
    """

    results: Path
    scans: Path | None
    bundle: Bundle
    accepted: Path | None
    options: SegmentOptions


class WhichNextModel:
    """The queue of cases to correct.

    Args:
        session: receives messages, and runs jobs.
        segmenting: the model to improve is the selected one.
        accepting: source of the training set; reports accepted cases.
        study: opens scans.

    Attributes:
        changed: emitted after every change that the tab shows.
        results: folder of the results of a run; None before the first choice.
        scans: folder of the scans of the run; None if it is not chosen.
        cases: all cases of the last ranking.
        shows_accepted: whether accepted cases stay in the list.
        job: job that ranks; None if there is none.
    """

    changed = Signal()

    def __init__(self, session: Session, segmenting: SegmentModel, accepting: AcceptModel, study: StudyModel) -> None:
        self.session, self.segmenting, self.accepting, self.study = session, segmenting, accepting, study
        self.results: Path | None = None
        self.scans: Path | None = None
        self.cases: list[QueuedCase] = []
        self.shows_accepted = False
        self.job: Job | None = None
        self._found: list[Case] | None = None
        accepting.accepted.connect(self._on_accepted)
        segmenting.changed.connect(self.changed.emit)

    # choosing

    def choose_results(self, folder: Path) -> None:
        """Set the folder of results."""
        self.results, self.cases, self._found = folder, [], None
        self.changed.emit()

    def choose_scans(self, folder: Path) -> None:
        """Set the folder of the scans of the run."""
        self.scans, self._found = folder, None
        self.changed.emit()

    def show_accepted(self, shows: bool) -> None:
        """Set whether accepted cases stay in the list."""
        self.shows_accepted = shows
        self.changed.emit()

    @property
    def shown(self) -> list[QueuedCase]:
        """The cases of the list."""
        return [case for case in self.cases if self.shows_accepted or not case.is_accepted]

    @property
    def accepted_count(self) -> int:
        """Number of ranked cases that are accepted."""
        return sum(case.is_accepted for case in self.cases)

    @property
    def obstacle(self) -> str:
        """Return the reason why Rank is disabled, for a person; "" if it is enabled."""
        if self.job is not None:
            return "The cases are being ranked."
        if self.results is None:
            return "Choose the folder with the results of a batch."
        if self.segmenting.runnable_bundle is None:
            return "Choose a trusted model in the Segment tab."
        return ""

    # ranking

    def start(self) -> None:
        """Rank the cases in a job."""
        bundle = self.segmenting.runnable_bundle
        assert self.results is not None
        assert bundle is not None
        content = self.accepting.content
        accepted = self.accepting.folder if content is not None and content.cases else None
        limits = self.segmenting.options
        options = SegmentOptions(device=limits.device, precision=limits.precision, memory_bytes=limits.memory_bytes)
        choices = RankingChoices(self.results, self.scans, bundle, accepted, options)
        self.job = self.session.jobs.start(
            partial(_rank, choices), on_result=partial(self._on_ranked, choices), on_end=self._on_end
        )
        self.session.show_messages()
        self.changed.emit()

    def stop(self) -> None:
        """Stop; the scans that were looked at are not looked at again."""
        if self.job is not None:
            self.job.stop()
            text = "Stopped. Rank again to go on: the scans that were looked at are not looked at again."
            self.session.show_messages(Message("info", text), lasting=True)
            self.changed.emit()

    def _on_ranked(self, choices: RankingChoices, cases: list[QueuedCase]) -> None:
        if choices.results != self.results:
            return
        self.cases = cases
        open_cases = [case for case in cases if case.rank is not None and not case.is_accepted]
        failed = sum(case.rank is None for case in cases)
        text = f"{counted(len(open_cases), 'case')} to correct, {self.accepted_count} accepted."
        messages = [Message("info", f"{text} Double-click one to open it with its result.")]
        if failed:
            messages.append(Message("warning", f"{failed} could not be ranked; the last rows say why."))
        if any(case.basis == "confidence" for case in open_cases):
            text = "Ranked by the confidence of the run"
            if choices.scans is None:
                text = f"{text}; choose the folder of the scans to rank by disagreement"
            messages.append(Message("info", f"{text}."))
        self.session.show_messages(*messages, lasting=True)

    def _on_end(self) -> None:
        self.job = None
        self.changed.emit()

    def _on_accepted(self, files: Sequence[Path]) -> None:
        """Mark the case of an accepted scan, which then drops out of the list."""
        known = {os.path.abspath(file) for file in files}
        self.cases = [
            replace(case, is_accepted=True) if case.scan is not None and os.path.abspath(case.scan) in known else case
            for case in self.cases
        ]
        self.changed.emit()

    @property
    def status(self) -> str:
        """One line about the job, for a person; "" without one."""
        if self.job is None:
            return ""
        return "Stopping …" if self.job.is_stopping else str(self.job.progress)

    # opening

    def open(self, case: QueuedCase) -> None:
        """Read a scan with its result in a job, and show both."""
        if self.study.is_loading:
            return
        self.session.show_messages(Message("info", f"Opening {case.title} …"))
        self.study.load(partial(self._read, case, self.study.scans()))

    def _read(self, case: QueuedCase, scans: Sequence[Volume], frame: NDArray | None) -> Loaded:
        """Return the layers of a scan and of its result, and warnings; slow, call outside the main thread."""
        assert self.results is not None
        bundle, inputs = self.segmenting.bundle, self.scans
        with Manifest.open(self.results, read_only=True) as manifest:
            found = manifest.row(case.name)
        if found is None:
            return [], (f"{case.title} is no longer in {self.results}; rank the cases again.",)
        row = row_of(found, self.results)
        if inputs is None:
            return read_row(row, None, "The folder of the scans is not chosen.", scans, frame, bundle)
        if self._found is None:
            self._found, _ = find_cases([inputs], () if bundle is None else bundle.channel_names)
        scan, reason = find_scan(row, inputs, self._found)
        return read_row(row, scan, reason, scans, frame, bundle)


def _rank(choices: RankingChoices, job: Job) -> list[QueuedCase]:
    """Rank the cases in a worker process of their own, so that scans can be segmented meanwhile."""
    worker = WorkerProcess()
    try:
        cases: list[QueuedCase] = job.call(
            worker,
            rank_cases,
            choices.results,
            choices.scans,
            choices.bundle,
            choices.accepted,
            choices.options,
            callbacks={"progress": job.report},
            stage="Looking for scans",
        )
        return cases
    finally:
        worker.close()
