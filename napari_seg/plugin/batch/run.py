"""One run of the Batch tab, executed in a `Job`: a cohort in worker processes, and what it reports."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.run import Stop
from napari_seg.cohort.settings import RunSettings
from napari_seg.plugin.job import Job, JobProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from napari_seg.bundles.spec import Bundle
    from napari_seg.cohort.case import Case
    from napari_seg.cohort.outcome import CaseResult
    from napari_seg.errors import NapariSegError


@dataclass(frozen=True)
class BatchChoices:
    """What a user chose for a run.

    Attributes:
        inputs: folder of scans.
        output: folder of results.
        bundle: the model.
        settings: options of the run.
        workers: scans that are segmented at once; None for a number that keeps this computer busy.
        redo: replace results of earlier runs that were made otherwise: with other options, another model or scan.
    """

    inputs: Path
    output: Path
    bundle: Bundle
    settings: RunSettings
    workers: int | None = None
    redo: bool = False


class _JobStop(Stop):
    """Stop of a run: requested by its user once or twice, or twice because its window is closed."""

    job: Job | None = None

    @property
    def count(self) -> int:
        """Requests so far."""
        return 2 if self.job is not None and self.job.is_stopping else self._count


@dataclass
class BatchRun:
    """One run; all attributes change in the main thread.

    Attributes:
        choices: what the user chose.
        on_result: called with the result of each case.
        stop: requests its end.
        job: executes it; None before its start.
        cases: the cases; None until they are found.
        total: number of cases, also of those that are not run; 0 until it is known.
        counts: status -> number of results.
        earlier: number of results of earlier runs.
        running: name of a case that runs -> its progress.
        error: reason why the run as a whole failed; None if it did not.
        report_fault: reason why the report could not be written; None without one.
    """

    choices: BatchChoices
    on_result: Callable[[CaseResult], None]
    stop: _JobStop = field(default_factory=_JobStop)
    job: Job | None = None
    cases: list[Case] | None = None
    total: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"done": 0, "failed": 0, "skipped": 0})
    earlier: int = 0
    running: dict[str, JobProgress] = field(default_factory=dict)
    error: Exception | None = None
    report_fault: NapariSegError | None = None

    def __call__(self, job: Job) -> None:
        """Find the scans and run the model on each in worker processes; in the thread of the job.

        Raises:
            Cancelled: the run was stopped.
            NapariSegError: see `napari_seg.cohort.loop.run_cases`.
        """
        job.progress = JobProgress("Looking for scans")
        chosen = self.choices
        self.stop.job = job
        cohort = Cohort(
            [chosen.inputs],
            chosen.output,
            chosen.bundle,
            settings=chosen.settings,
            workers=chosen.workers,
            redo="changed" if chosen.redo else "none",
        )
        cohort.stop, cohort.view = self.stop, _View(self, job)
        job.post(setattr, self, "cases", cohort.cases)
        if not cohort.cases and not cohort.excluded:
            return
        job.progress = JobProgress("Starting")
        try:
            with closing(cast("Generator[CaseResult]", iter(cohort))) as results:  # an error here ends the workers
                for _ in results:
                    job.check()
        finally:
            job.post(setattr, self, "report_fault", cohort.report_fault)

    @property
    def ended(self) -> int:
        """Number of cases that have a result."""
        return sum(self.counts.values())

    @property
    def is_stopping(self) -> bool:
        """Return whether its end was requested."""
        return self.stop.count > 0

    def request_stop(self) -> None:
        """Let the running cases finish and start no others; the second time, end at once."""
        self.stop.request()
        if self.stop.count > 1 and self.job is not None:
            self.job.stop()

    def add_result(self, result: CaseResult) -> None:
        """Count a result."""
        self.running.pop(result.name, None)
        self.counts[result.status] += 1
        self.earlier += result.is_earlier
        self.on_result(result)


class _View:
    """Hands what happens in a run to its attributes, in the main thread."""

    def __init__(self, run: BatchRun, job: Job) -> None:
        self._run = run
        self._job = job
        self._names: dict[int, str] = {}

    def on_start(self, total: int, done_before: int) -> None:
        """Note the number of cases."""
        self._job.post(setattr, self._run, "total", total)

    def on_case_start(self, number: int, name: str) -> None:
        """Note that a case runs."""
        self._names[number] = name
        self._job.post(self._run.running.__setitem__, name, JobProgress("starting"))

    def on_progress(self, number: int, stage: str, done: int, total: int) -> None:
        """Note the progress of a case."""
        progress = JobProgress(stage, done, total) if total > 1 else JobProgress(stage)
        self._job.post(self._run.running.__setitem__, self._names[number], progress)

    def on_plan(self, number: int, text: str) -> None:
        """Do nothing: a table has no room for it."""

    def on_result(self, result: CaseResult) -> None:
        """Count a result."""
        self._job.post(self._run.add_result, result)
