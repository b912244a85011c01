"""State of the Train tab, without Qt: choose a data set, plan, train in a worker process, follow, stop, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from psygnal import Signal

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import WEIGHTS
from napari_seg.bundles.trust import remember
from napari_seg.errors import BundleError, Cancelled
from napari_seg.plugin.job import Job, JobProgress
from napari_seg.plugin.messages import Message, as_gui_text, message_of
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.progress import describe_seconds
from napari_seg.training.choices import Choices
from napari_seg.training.describe import network_rows, plan_rows, time_rows
from napari_seg.training.folds import cross_validate
from napari_seg.training.history import RunProgress, RunState, current_run, read_state
from napari_seg.training.prepare import data_folder, plan_bundle
from napari_seg.training.report import REPORT
from napari_seg.training.run import STOP, train
from napari_seg.training.write import PLAN
from napari_seg.worker import WorkerProcess

_PLANNING = "Reading the data and planning"

_FOLLOW_SECONDS = 1.0
"""Interval at which the files of a run are read."""


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        stopped: message of a training that was stopped; "" if it reached its end.
        best: mean Dice of the best validation and its epoch; None without a validation.
    """

    stopped: str
    best: tuple[float, int] | None


class TrainModel:
    """State of the Train tab of one viewer.

    Args:
        session: receives messages, and runs jobs.
        segmenting: gets a trained model.

    Attributes:
        changed: emitted after every change that the tab shows.
        used: emitted after a trained model was selected in the Segment tab.
        session: receives messages, and runs jobs.
        dataset: folder of the data set.
        output: folder of the bundle that is trained.
        max_minutes: time limit in minutes; 0: none.
        plan: headings and sentences of the plan; empty if there is none yet.
        state: state of the run that is followed; None before it has begun.
        live: (epoch, loss) within the current epoch, as read while it runs.
        job: the running plan or training; None if there is none.
        is_training: whether the job is a training, not a plan.
    """

    changed = Signal()
    used = Signal()

    def __init__(self, session: Session, segmenting: SegmentModel) -> None:
        self.session = session
        self._segmenting = segmenting
        self.dataset: Path | None = None
        self.output: Path | None = None
        self._output_is_chosen = False
        self.max_minutes = 0.0
        self.plan: list[tuple[str, str]] = []
        self.state: RunState | None = None
        self.live: list[tuple[float, float]] = []
        self.job: Job | None = None
        self.is_training = False
        self._has_plan = self._has_weights = self._has_report = False

    # choosing

    def choose_dataset(self, folder: Path) -> None:
        """Set the folder of the data set, and next to it the folder of the model unless the user chose one."""
        self.dataset = folder
        if not self._output_is_chosen:
            self.output = folder.parent / f"{folder.name or 'data'}_model"
        self._forget()

    def choose_output(self, folder: Path) -> None:
        """Set the folder of the model; if it holds a training, show how far that came."""
        self.output, self._output_is_chosen = folder, True
        self._forget()

    def choose_minutes(self, minutes: float) -> None:
        """Set the time limit in minutes; 0: none."""
        self.max_minutes = minutes
        self.changed.emit()

    def _forget(self) -> None:
        """Drop what was shown about other folders, and read what is in the new ones."""
        self.plan, self.state, self.live = [], None, []
        self._has_plan = self._has_weights = self._has_report = False
        output = self.output
        assert output is not None
        self.session.jobs.start(lambda _: _look(output), on_result=partial(self._on_looked, output))
        self.changed.emit()

    def _on_looked(self, output: Path, found: _Found) -> None:
        if output != self.output:
            return
        self._has_plan, self._has_weights, self._has_report = found.has_plan, found.has_weights, found.has_report
        if self.job is None:
            self.state = found.state
        self.changed.emit()

    @property
    def obstacle(self) -> str:
        """Return the reason why Start is disabled, for a person; "" if it is enabled."""
        if self.job is not None:
            return "A training is running." if self.is_training else "The plan is being made."
        if self.dataset is None or self.output is None:
            return "Choose a folder of scans with their label maps."
        return ""

    @property
    def is_resumed(self) -> bool:
        """Return whether the folder of the model holds a training that Start continues."""
        return self._has_plan

    @property
    def is_at_work(self) -> bool:
        """Return whether a training is running."""
        return self.job is not None and self.is_training and not self.session.is_closed

    @property
    def can_use(self) -> bool:
        """Return whether there is a model to use."""
        return self._has_weights and not self.is_at_work

    @property
    def report(self) -> Path | None:
        """Report of the training; None if there is none."""
        return self.output / REPORT if self.output is not None and self._has_report else None

    # planning and training

    def start_plan(self) -> None:
        """Check the data set and plan its training, in a job; nothing is written."""
        self._begin(self._make_plan, is_training=False)

    def start(self) -> None:
        """Train, or continue the training in the folder of the model, in a job."""
        self.state, self.live = None, []
        self._begin(self._train, is_training=True)

    def stop(self) -> None:
        """Stop: a training saves and can be resumed, a plan is dropped."""
        if self.job is not None:
            self.job.stop()
            self.changed.emit()

    def _begin(self, work: Callable[[Path, Path, float, Job], object], *, is_training: bool) -> None:
        dataset, output = self.dataset, self.output
        assert dataset is not None
        assert output is not None
        self.is_training = is_training
        on_result = self._on_trained if is_training else self._on_planned
        self.job = self.session.jobs.start(
            partial(work, dataset, output, self.max_minutes), on_result=on_result, on_end=self._on_end
        )
        self.session.show_messages()
        self.changed.emit()

    @staticmethod
    def _make_plan(dataset: Path, output: Path, minutes: float, job: Job) -> dict[str, Any]:
        worker = WorkerProcess()
        options: dict[str, Any] = {"dry_run": True, "timed": True, "limits": _limits(minutes)}
        options["callbacks"] = {"report": partial(_report, job)}
        try:
            plan: dict[str, Any] = job.call(worker, plan_bundle, dataset, output, Choices(), stage=_PLANNING, **options)
            return plan
        finally:
            worker.close()

    def _train(self, dataset: Path, output: Path, minutes: float, job: Job) -> Trained:
        """Plan and train in a worker process; in the thread of the job."""
        worker = WorkerProcess()  # its own, because a training may take days
        stopped = ""
        try:
            options: dict[str, Any] = {"timed": True, "limits": _limits(minutes)}
            options["callbacks"] = {"report": partial(_report, job)}
            plan = job.call(worker, plan_bundle, dataset, output, Choices(), stage=_PLANNING, **options)
            job.post(self._on_planned, plan)
            dataset = data_folder(dataset, output, plan)
            values: dict[str, Any] = {"fine_tune": plan["choices"].get("fine_tune"), **_limits(minutes)}
            follower = _Follower(output, partial(self._post_state, job))
            call = partial(job.call, worker, poll=follower.poll, stage="Preparing the training")
            if folds := plan["choices"].get("folds"):
                callbacks = {"report": lambda _: None}
                call(cross_validate, output, dataset, folds, None, callbacks=callbacks, **values)
            else:
                call(train, output, dataset, **values)
        except Cancelled as error:
            if error.code != "run.stopped":
                raise
            stopped = error.message
        finally:
            worker.close()  # it holds torch and MONAI in memory
            with suppress(OSError):  # it would stop the next training
                (output / STOP).unlink(missing_ok=True)
        if (output / WEIGHTS).is_file():
            with suppress(OSError, BundleError):  # then the Segment tab asks for consent
                remember(read_bundle(output))
        best = read_state(current_run(output)).best
        return Trained(stopped, None if best is None else (best.mean_dice, int(best.epoch)))

    def _post_state(self, job: Job, state: RunState) -> None:
        if not job.is_abandoned:
            job.post(self._on_state, state)

    # from the job, in the main thread

    def _on_planned(self, plan: dict[str, Any]) -> None:
        limits = _limits(self.max_minutes)
        rows = [*time_rows(plan, limits), *plan_rows(plan), *network_rows(plan)]
        self.plan = [(heading, as_gui_text(text)) for heading, text in rows]
        self.changed.emit()

    def _on_state(self, state: RunState) -> None:
        progress = state.progress
        if self.state is None or len(state.losses) != len(self.state.losses):
            self.live = []
        self.state = state
        if progress is not None and progress.steps and math.isfinite(progress.loss):
            epoch = progress.step / progress.steps * progress.epochs
            if epoch > (self.live[-1][0] if self.live else len(state.losses)):
                self.live.append((epoch, progress.loss))
        if self.job is not None and progress is not None and progress.is_live:
            self.job.progress = progress_of(progress)
        self.changed.emit()

    def _on_trained(self, end: Trained) -> None:
        dice = "" if end.best is None else f" The best validation has Dice {end.best[0]:.3f}, in epoch {end.best[1]}."
        if end.stopped:
            text = as_gui_text(end.stopped)
            self.session.show_messages(Message("info", f"{text[0].upper()}{text[1:]}.{dice}"), lasting=True)
            return
        text = f"The training is finished.{dice} “Use this model” selects it in the Segment tab."
        self.session.show_messages(Message("info", text), lasting=True)

    def _on_end(self) -> None:
        if self.job is not None and self.job.is_stopping and not self.session.messages:
            self.session.show_messages(Message("info", "Stopped before the training began."), lasting=True)
        self.job = None
        output = self.output
        if output is not None:
            self.session.jobs.start(lambda _: _look(output), on_result=partial(self._on_looked, output))
        self.changed.emit()

    # results

    def use(self) -> None:
        """Select the trained model in the Segment tab."""
        assert self.output is not None
        try:
            bundle = read_bundle(self.output)
        except BundleError as error:
            self.session.show_messages(message_of(error))
            return
        self._segmenting.add_bundle(bundle.root)
        self._segmenting.reload_bundles(bundle.reference)  # the list may hold it as it was before the training
        self.used.emit()

    @property
    def status(self) -> str:
        """One line about the run, for a person; "" before it has begun."""
        line = "" if self.state is None else _line(self.state)
        if self.job is None:
            return line
        if self.job.is_stopping:
            return "Saving after this step …" if self.is_training else "Stopping …"
        is_live = self.is_training and self.state is not None and self.state.progress and self.state.progress.is_live
        return line if is_live else str(self.job.progress)

    @property
    def fraction(self) -> float | None:
        """Fraction of the run that is done; None if it is not known."""
        progress = None if self.state is None else self.state.progress
        if self.job is None or progress is None or progress.seconds_left is None or not progress.is_live:
            return None
        total = progress.seconds + progress.seconds_left
        return progress.seconds / total if total > 0 else None


def _report(job: Job, text: str) -> None:
    """Show a line of the planning as the progress of a job."""
    job.progress = JobProgress(as_gui_text(text))


def _limits(minutes: float) -> dict[str, float]:
    return {"max_minutes": minutes} if minutes else {}


@dataclass(frozen=True)
class _Found:
    """Content of the folder of a model."""

    has_plan: bool
    has_weights: bool
    has_report: bool
    state: RunState | None


def _look(output: Path) -> _Found:
    """Return what a folder holds; reads files, so call it in a job."""
    has_plan = (output / PLAN).is_file()
    state = read_state(current_run(output)) if has_plan else None
    has_run = state is not None and (state.progress is not None or bool(state.losses))
    return _Found(has_plan, (output / WEIGHTS).is_file(), (output / REPORT).is_file(), state if has_run else None)


class _Follower:
    """Reads the state of a run at intervals, and stops the run.

    Args:
        output: folder of the bundle.
        on_state: called with each state.
    """

    def __init__(self, output: Path, on_state: Callable[[RunState], object]) -> None:
        self._output = output
        self._on_state = on_state
        self._since = time.time()
        self._read_at = 0.0
        self._has_stopped = False

    def poll(self, is_stopping: bool) -> None:
        """Read the state if it is due; the first time when `is_stopping` is true, make the run save and end."""
        if is_stopping and not self._has_stopped:
            self._has_stopped = True
            with suppress(OSError):
                (self._output / STOP).touch()
        if time.monotonic() - self._read_at < _FOLLOW_SECONDS:
            return
        self._read_at = time.monotonic()
        state = read_state(current_run(self._output))
        # the files of an earlier start say nothing about this one
        if state.progress is not None and time.time() - state.progress.age_seconds >= self._since - 1:
            self._on_state(state)


def progress_of(progress: RunProgress) -> JobProgress:
    """Return the progress of a run as that of a job."""
    stage = "Validating" if progress.to_validate else "Training"
    return JobProgress(stage, progress.step, progress.steps, progress.seconds_left)


def _line(state: RunState) -> str:
    """Return a line such as "Epoch 7 of 48, 12 min 31 s left; loss 0.412, Dice 0.861"."""
    progress = state.progress
    if progress is None:
        return ""
    parts = [f"Epoch {max(progress.epoch, 1)} of {progress.epochs}"]
    if progress.is_live:
        if progress.to_validate:
            parts.append(f"validating {progress.validated} of {progress.to_validate} cases")
        if progress.seconds_left is not None:
            left = max(1, round(progress.seconds_left))
            parts.append(f"{f'{left} s' if left < 10 else describe_seconds(left)} left")
    else:
        parts.append(f"{progress.step} of {progress.steps} steps in {describe_seconds(progress.seconds)}")
    numbers = [f"loss {progress.loss:.3f}"] if math.isfinite(progress.loss) else []
    if state.validations:
        numbers.append(f"Dice {state.validations[-1].mean_dice:.3f}")
    return "; ".join(", ".join(words) for words in (parts, numbers) if words)
