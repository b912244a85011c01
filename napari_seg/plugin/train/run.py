"""Plan and train in a worker process, in the thread of a job, and follow the files of the run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import WEIGHTS
from napari_seg.bundles.trust import remember
from napari_seg.errors import BundleError, Cancelled
from napari_seg.plugin.job import Job, JobProgress
from napari_seg.plugin.messages import as_gui_text
from napari_seg.plugin.train.choices import TrainChoices
from napari_seg.plugin.train.shown_plan import ShownPlan
from napari_seg.progress import describe_seconds
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
class Wish:
    """What a person wants to plan or train.

    Attributes:
        dataset: folder, list or archive of the data set.
        output: folder of the bundle that is trained.
        choices: choices of the training; none for one that is resumed.
        minutes: time limit in minutes; 0: none.
        more: further data sets.
    """

    dataset: Path
    output: Path
    choices: TrainChoices
    minutes: float
    more: tuple[Path, ...] = ()

    @property
    def limits(self) -> dict[str, float]:
        """Limits of this start, as `plan_bundle` takes them."""
        return {"max_minutes": self.minutes} if self.minutes else {}


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        stopped: message of a training that was stopped; "" if it reached its end.
        best: mean Dice of the best validation and its epoch; None without a validation.
        steps: trained and planned steps; None if they are not known.
    """

    stopped: str
    best: tuple[float, int] | None
    steps: tuple[int, int] | None = None

    @property
    def is_short(self) -> bool:
        """Return whether the training ended before its planned steps, as at its time limit."""
        return self.steps is not None and self.steps[0] < self.steps[1]

    @property
    def text(self) -> str:
        """How the training ended, in sentences for a person."""
        dice = (
            "" if self.best is None else f" The best validation has Dice {self.best[0]:.3f}, in epoch {self.best[1]}."
        )
        if self.stopped:
            text = as_gui_text(self.stopped)
            return f"{text[0].upper()}{text[1:]}.{dice}"
        use = "“Use this model” selects it in the Segment tab."
        if self.steps is None or not self.is_short:
            return f"The training is finished.{dice} {use}"
        done, planned = self.steps
        text = f"The training ended after {done} of {planned} steps ({done / planned:.1%}), at its limit.{dice}"
        return f"{text} Usually a larger time limit, with Resume, gives a better model. {use}"


@dataclass(frozen=True)
class Found:
    """Content of the folder of a model.

    Attributes:
        has_plan: whether a training has begun in it.
        has_weights: whether it has weights.
        has_report: whether it has a report.
        state: state of its run; None before it has begun.
        plan: its plan; None if there is none that can be shown.
    """

    has_plan: bool = False
    has_weights: bool = False
    has_report: bool = False
    state: RunState | None = None
    plan: ShownPlan | None = None


def look(output: Path) -> Found:
    """Return what the folder of a model holds; reads files, so call it in a job."""
    has_plan = (output / PLAN).is_file()
    state = read_state(current_run(output)) if has_plan else None
    has_run = state is not None and (state.progress is not None or bool(state.losses))
    plan = None
    if has_plan:
        with suppress(
            OSError, ValueError, LookupError, TypeError, AttributeError
        ):  # it is of another version, or damaged
            plan = ShownPlan.of(json.loads((output / PLAN).read_text(encoding="utf-8")), {}, output)
    has_weights, has_report = (output / WEIGHTS).is_file(), (output / REPORT).is_file()
    return Found(has_plan, has_weights, has_report, state if has_run else None, plan)


def make_plan(wish: Wish, job: Job) -> dict[str, Any]:
    """Return the plan of a training in a worker process; nothing is written."""
    worker = WorkerProcess()
    try:
        return _plan(wish, job, worker, dry_run=True)
    finally:
        worker.close()


def _plan(wish: Wish, job: Job, worker: WorkerProcess, *, dry_run: bool) -> dict[str, Any]:
    def report(text: str) -> None:
        job.progress = JobProgress(as_gui_text(text))

    job.progress = JobProgress(_PLANNING)
    choices = wish.choices.as_choices(wish.output)
    options: dict[str, Any] = {
        "dry_run": dry_run,
        "timed": True,
        "more": wish.more,
        "limits": wish.limits,
        "callbacks": {"report": report},
    }
    plan: dict[str, Any] = job.call(worker, plan_bundle, wish.dataset, wish.output, choices, stage=_PLANNING, **options)
    return plan


def plan_and_train(
    wish: Wish, job: Job, on_plan: Callable[[dict[str, Any]], object], on_state: Callable[[RunState], object]
) -> Trained:
    """Plan and train in a worker process, or continue the training in the folder of the model.

    Args:
        wish: what to train.
        job: the job whose thread this is.
        on_plan: called with the plan.
        on_state: called with each state of the run.
    """
    worker = WorkerProcess()  # its own, because a training may take days
    output, stopped = wish.output, ""
    try:
        plan = _plan(wish, job, worker, dry_run=False)
        on_plan(plan)
        dataset = data_folder(wish.dataset, output, plan)
        values: dict[str, Any] = {"fine_tune": plan["choices"].get("fine_tune"), **wish.limits}
        call = partial(job.call, worker, poll=RunFollower(output, on_state).poll, stage="Preparing the training")
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
    state = read_state(current_run(output))
    best, progress = state.best, state.progress
    steps = None if progress is None else (progress.step, progress.steps)
    return Trained(stopped, None if best is None else (best.mean_dice, int(best.epoch)), steps)


class RunFollower:
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
            with suppress(OSError):  # there is no such folder yet
                (self._output / STOP).touch()
                self._has_stopped = True
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


def line_of(state: RunState) -> str:
    """Return a line such as "Epoch 7 of 48, 12 min 31 s left; loss 0.412, Dice 0.861"."""
    progress = state.progress
    if progress is None:
        return ""
    parts = [f"Epoch {max(progress.epoch, 1)} of {progress.epochs}"]
    if progress.is_live:
        if progress.to_validate:
            parts.append(f"validating ({progress.validated} of {progress.to_validate} done)")
        if progress.seconds_left is not None:
            left = max(1, round(progress.seconds_left))
            parts.append(f"{f'{left} s' if left < 10 else describe_seconds(left)} left")
    else:
        parts.append(f"{progress.step} of {progress.steps} steps in {describe_seconds(progress.seconds)}")
    numbers = [f"loss {progress.loss:.3f}"] if math.isfinite(progress.loss) else []
    if state.validations:
        numbers.append(f"Dice {state.validations[-1].mean_dice:.3f}")
    return "; ".join(", ".join(words) for words in (parts, numbers) if words)
