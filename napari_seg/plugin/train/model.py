"""State of the Train tab, without Qt: choose a data set, plan, train in a worker process, follow, stop, resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from psygnal import Signal

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import WEIGHTS, Bundle
from napari_seg.errors import BundleError, TrainingError
from napari_seg.plugin.job import Job
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.train.choices import Labels, TrainChoices, completed, labels_of, renamed, text_of, words_of
from napari_seg.plugin.train.run import Found, Trained, Wish, line_of, look, make_plan, plan_and_train, progress_of
from napari_seg.plugin.train.shown_plan import LabelRow, ShownPlan
from napari_seg.training.choices import IGNORE
from napari_seg.training.history import RunState
from napari_seg.training.report import REPORT
from napari_seg.training.start import trainable


class TrainModel:
    """State of the Train tab of one viewer.

    Args:
        session: receives messages, and runs jobs.
        segmenting: gets a trained model, and lists those that a training can start from.

    Attributes:
        changed: emitted after every change that the tab shows.
        used: emitted after a trained model was selected in the Segment tab.
        session: receives messages, and runs jobs.
        segmenting: state of the Segment tab.
        dataset: folder, list or archive of the data set.
        more: further data sets, which are combined with it.
        output: folder of the bundle that is trained.
        max_minutes: time limit in minutes; 0: none.
        plan: the plan; empty if there is none yet.
        state: state of the run that is followed; None before it has begun.
        live: (epoch, loss) within the current epoch, as read while it runs.
        job: the running plan or training; None if there is none.
        is_training: whether the job is a training, not a plan.
    """

    changed = Signal()
    used = Signal()

    def __init__(self, session: Session, segmenting: SegmentModel) -> None:
        self.session = session
        self.segmenting = segmenting
        self.dataset: Path | None = None
        self.more: tuple[Path, ...] = ()
        self.output: Path | None = None
        self._output_is_chosen = False
        self.max_minutes = 0.0
        self._choices = TrainChoices()
        self.plan = ShownPlan()
        self.state: RunState | None = None
        self.live: list[tuple[float, float]] = []
        self.job: Job | None = None
        self.is_training = False
        self._found = Found()
        self._planned_with = TrainChoices()

    # choosing

    def choose_dataset(self, path: Path) -> None:
        """Set the data set, and next to it the folder of the model unless the user chose one.

        Args:
            path: its folder, list or archive.
        """
        self.dataset, self.more = path, ()
        self._choices = replace(self._choices, labels="")  # they name the values of another data set
        if not self._output_is_chosen:
            name = path.name.split(".")[0] if path.is_file() else path.name
            self.output = path.parent / f"{name or 'data'}_model"
        self._forget()

    def add_dataset(self, path: Path) -> None:
        """Add a data set; the first one if there is none yet."""
        if self.dataset is None:
            self.choose_dataset(path)
        elif path != self.dataset and path not in self.more:
            self.more = (*self.more, path)
            self._choices = replace(self._choices, labels="")
            self._forget()

    @property
    def dataset_text(self) -> str:
        """The data sets in a line for a person."""
        if not self.more:
            return str(self.dataset or "not chosen")
        return " + ".join(path.name or str(path) for path in (self.dataset, *self.more) if path is not None)

    def choose_output(self, folder: Path) -> None:
        """Set the folder of the model; if it holds a training, show how far that came."""
        self.output, self._output_is_chosen = folder, True
        self._forget()

    def choose_minutes(self, minutes: float) -> None:
        """Set the time limit in minutes; 0: none."""
        self.max_minutes = minutes
        self.changed.emit()

    def choose(self, **values: Any) -> None:
        """Set choices, by the names of the attributes of `TrainChoices`."""
        self._choices = replace(self._choices, **values)
        self.changed.emit()

    @property
    def can_rename(self) -> bool:
        """Whether classes can be renamed."""
        return not (self.is_resumed or self.job)

    def can_rename_row(self, row: LabelRow) -> bool:
        """Return whether the class of a value can be renamed.

        Several data sets have values of their own, so their classes are renamed by their names. A value of several
        classes has no name of its own, and ignored voxels have none.
        """
        return self.can_rename and not (self.more and (" + " in row.classes or row.classes == IGNORE))

    def rename(self, value: int, classes: str) -> None:
        """Give a label value to other classes, see `renamed`; the choice of labels then names all values.

        Of several data sets all values of its class go there.
        """
        rows = [row for row in self.plan.table if row.value == value and self.can_rename_row(row)]
        if not (rows and classes.strip()):
            return
        if self.more and classes.strip().casefold() == IGNORE:
            self._warn("Several data sets leave out voxels by their values: write ignore=VALUE in “Labels” under More.")
            return
        own = self._own_labels
        try:
            labels = completed(labels_of(self._choices.labels), own)
        except TrainingError as error:
            self.session.show_messages(message_of(error))
            return
        old = rows[0].classes
        parts: list[int | str] = [value]
        if self.more:
            parts = words_of(labels, old) or words_of(own, old)
            rows = [row for row in self.plan.table if row.classes.casefold() == old.casefold()]
        if not parts:
            self._warn(f"No class of the data sets is {old!r} here: write NAME=CLASS in “Labels” under More, and Plan.")
            return
        for part in parts:
            labels = renamed(labels, part, classes)
        table = [replace(row, classes=classes.strip()) if row in rows else row for row in self.plan.table]
        self._choices = replace(self._choices, labels=text_of(labels))
        self.plan = replace(self.plan, table=table)
        self.changed.emit()

    def _warn(self, text: str) -> None:
        self.session.show_messages(Message("warning", text))

    @property
    def _own_labels(self) -> Labels:
        """Labels of the plan: class -> values, or of several data sets -> names in these."""
        if not self.more:
            return self.plan.labels
        chosen = labels_of(self.plan.choices.labels)
        return {name: chosen.get(name, [name]) for name in self.plan.labels if name != IGNORE}

    def _forget(self) -> None:
        """Drop what was shown about other folders, and read what is in the new ones."""
        self.plan, self.state, self.live, self._found = ShownPlan(), None, [], Found()
        self._look()
        self.changed.emit()

    def _look(self) -> None:
        output = self.output
        assert output is not None
        self.session.jobs.start(lambda _: look(output), on_result=partial(self._on_looked, output))

    def _on_looked(self, output: Path, found: Found) -> None:
        if output != self.output:
            return
        self._found = found
        if self.job is None:
            self.state = found.state
            if found.plan is not None and not self.plan.rows:
                self.plan = found.plan
        self.changed.emit()

    @property
    def choices(self) -> TrainChoices:
        """Choices of the user, or those with which a training in the folder of the model began."""
        if not self.is_resumed:
            return self._choices
        return self._found.plan.choices if self._found.plan is not None else TrainChoices()

    @property
    def starts(self) -> list[tuple[str, Path]]:
        """Names and folders of the models whose weights a training can start from."""
        return [
            (bundle.name, bundle.root)
            for bundle in self.segmenting.bundles
            if bundle.root != self.output and _is_start(bundle)
        ]

    @property
    def obstacle(self) -> str:
        """Return the reason why Start is disabled, for a person; "" if it is enabled."""
        if self.job is not None:
            return "A training is running." if self.is_training else "The plan is being made."
        if self.dataset is None or self.output is None:
            return "Choose scans with their label maps."
        return ""

    @property
    def is_resumed(self) -> bool:
        """Return whether the folder of the model holds a training that Start continues."""
        return self._found.has_plan

    @property
    def is_outdated(self) -> bool:
        """Return whether choices have changed since the plan that is shown was made."""
        return bool(self.plan.rows) and not self.is_resumed and self._choices != self._planned_with

    @property
    def is_at_work(self) -> bool:
        """Return whether a training is running."""
        return self.job is not None and self.is_training and not self.session.is_closed

    @property
    def can_use(self) -> bool:
        """Return whether there is a model to use."""
        return self._found.has_weights and not self.is_at_work

    @property
    def report(self) -> Path | None:
        """Report of the training; None if there is none."""
        return self.output / REPORT if self.output is not None and self._found.has_report else None

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

    def _begin(self, work: Callable[[Wish, Job], object], *, is_training: bool) -> None:
        assert self.dataset is not None
        assert self.output is not None
        self.is_training = is_training
        choices = TrainChoices() if self.is_resumed else self._choices
        wish = Wish(self.dataset, self.output, choices, self.max_minutes, self.more)
        on_result: Callable[[Any], object] = self._on_trained if is_training else partial(self._on_planned, wish)
        self.job = self.session.jobs.start(partial(work, wish), on_result=on_result, on_end=self._on_end)
        self.session.show_messages()
        self.changed.emit()

    def _make_plan(self, wish: Wish, job: Job) -> dict[str, Any]:
        return make_plan(wish, job)

    def _train(self, wish: Wish, job: Job) -> Trained:
        """Plan and train in a worker process; in the thread of the job."""
        return plan_and_train(wish, job, partial(job.post, self._on_planned, wish), partial(self._post_state, job))

    def _post_state(self, job: Job, state: RunState) -> None:
        if not job.is_abandoned:
            job.post(self._on_state, state)

    # from the job, in the main thread

    def _on_planned(self, wish: Wish, plan: dict[str, Any]) -> None:
        self.plan = ShownPlan.of(plan, wish.limits, wish.output)
        self._planned_with = wish.choices
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
        kind: Literal["info", "warning"] = "warning" if end.is_short and not end.stopped else "info"
        self.session.show_messages(Message(kind, end.text), lasting=True)

    def _on_end(self) -> None:
        if self.job is not None and self.job.is_stopping and not self.session.messages:
            self.session.show_messages(Message("info", "Stopped before the training began."), lasting=True)
        self.job = None
        if self.output is not None:
            self._look()
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
        self.segmenting.add_bundle(bundle.root)
        self.segmenting.reload_bundles(bundle.reference)  # the list may hold it as it was before the training
        self.used.emit()

    @property
    def status(self) -> str:
        """One line about the run, for a person; "" before it has begun."""
        line = "" if self.state is None else line_of(self.state)
        if self.job is None:
            return line
        if self.job.is_stopping:
            return "Saving after this step …" if self.is_training else "Stopping …"
        progress = self.state.progress if self.is_training and self.state is not None else None
        if progress is not None and progress.stage == "ended":
            return f"Writing the model and its report …\n{line}"
        return line if progress is not None and progress.is_live else str(self.job.progress)

    @property
    def fraction(self) -> float | None:
        """Fraction of the run that is done; None if it is not known."""
        progress = None if self.state is None else self.state.progress
        if self.job is None or progress is None or progress.seconds_left is None or not progress.is_live:
            return None
        total = progress.seconds + progress.seconds_left
        return progress.seconds / total if total > 0 else None


def _is_start(bundle: Bundle) -> bool:
    """Return whether the folder of a model is one that a training can start from."""
    if bundle.kind == "monai":
        return (bundle.root / WEIGHTS).is_file()
    return bundle.kind == "nnunet" and not isinstance(trainable(bundle), str)
