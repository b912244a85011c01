"""Improve a model with the accepted cases in the background, and offer the better one. Without Qt."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_seg.bundles.read import read_bundle, whole_task
from napari_seg.errors import BundleError, Cancelled, counted, printable
from napari_seg.learning.compare import MEAN, MIN_PATIENTS, ComparedStructure
from napari_seg.learning.improve import Improvement, begun_output, improve, is_begun, next_output, read_improvement
from napari_seg.learning.inherit import check_improvable
from napari_seg.plugin.job import Job, JobProgress
from napari_seg.plugin.messages import Message, as_gui_text, gui_text_of, message_of
from napari_seg.plugin.train.run import RunFollower, line_of, progress_of
from napari_seg.training.history import RunState, current_run, read_state
from napari_seg.training.run import STOP
from napari_seg.worker import WorkerProcess

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.bundles.totalsegmentator.task import TaskBundle
    from napari_seg.plugin.learn.accepting import AcceptModel
    from napari_seg.plugin.segment.model import SegmentModel
    from napari_seg.plugin.session import Session

MINUTES = 20.0
"""Default time limit of the training."""


@dataclass(frozen=True)
class ImproveChoices:
    """What a person chose for an improvement.

    Attributes:
        folder: training set.
        bundle: the old model.
        output: folder of the new model.
        minutes: time limit of the training, summed over all starts.
        replay: data set of the earlier training; None without one.
    """

    folder: Path
    bundle: Bundle
    output: Path
    minutes: float
    replay: Path | None = None


@dataclass(frozen=True)
class FoundOutput:
    """What the folder of a new model holds.

    Attributes:
        output: the folder.
        is_begun: whether an improvement was begun in it that is not finished.
        result: comparison of both models; None if there is none.
        state: state of its run; None before it has begun.
        whole: task of TotalSegmentator with the new model in it; None without one.
    """

    output: Path
    is_begun: bool = False
    result: Improvement | None = None
    state: RunState | None = None
    whole: TaskBundle | None = None


class ImproveModel:
    """Fine-tunes a copy of the selected model, shows both compared, and offers the new one.

    Args:
        session: receives messages, and runs jobs.
        segmenting: the model to improve is the selected one.
        accepting: source of the training set.

    Attributes:
        changed: emitted after every change that the tab shows.
        used: emitted after the new model was selected in the Segment tab.
        minutes: time limit of the training, summed over all starts.
        replay: data set of the earlier training, so that it is not forgotten; None without one.
        output: folder of the new model; None until it is known.
        is_begun: whether an improvement was begun in it that Improve continues.
        result: comparison that waits for a decision; None if there is none.
        whole: task of TotalSegmentator with the new model in it; None if that is no part of a task on this machine.
        state: state of the run that is followed; None before it has begun.
        job: job that improves; None if there is none.
    """

    changed = Signal()
    used = Signal()

    def __init__(self, session: Session, segmenting: SegmentModel, accepting: AcceptModel) -> None:
        self.session, self.segmenting, self.accepting = session, segmenting, accepting
        self.minutes = MINUTES
        self.replay: Path | None = None
        self.output: Path | None = None
        self.is_begun = False
        self.result: Improvement | None = None
        self.whole: TaskBundle | None = None
        self.state: RunState | None = None
        self.job: Job | None = None
        self._seen: Bundle | None = None
        """Model that `output` belongs to."""
        self._looking: Job | None = None
        self._fault = ""
        for source in (segmenting, accepting):
            source.changed.connect(self.changed.emit)

    # choosing

    def choose_minutes(self, minutes: float) -> None:
        """Set the time limit of the training."""
        self.minutes = minutes
        self.changed.emit()

    def choose_replay(self, folder: Path | None) -> None:
        """Set the data set of the earlier training; None for none."""
        self.replay = folder
        self.changed.emit()

    def choose_output(self, folder: Path) -> None:
        """Set the folder of the new model; a begun improvement is continued, and a finished one is shown."""
        self.output = folder
        self._look(lambda: folder)

    def find_output(self) -> None:
        """Suggest a folder for the new model after another model was selected; call it while the tab is shown."""
        bundle = self.segmenting.bundle
        is_new = bundle is not None and (self._seen is None or self._seen.reference != bundle.reference)
        if bundle is None or not is_new or self.job is not None or self.result is not None:
            return
        self._seen, self.output, self.is_begun, self.state = bundle, None, False, None
        self._look(lambda: begun_output(bundle) or next_output(bundle))

    def _look(self, find: Callable[[], Path]) -> None:
        if self._looking is not None:
            self._looking.abandon()
        self._fault = ""
        bundle = self.segmenting.bundle

        def look() -> FoundOutput:
            assert bundle is not None
            check_improvable(bundle)
            return found_in(find(), bundle)

        self._looking = self.session.jobs.start(
            lambda _: look(), on_result=self._on_found, on_error=self._on_fault, on_end=self._on_looked
        )
        self.changed.emit()

    def _on_found(self, found: FoundOutput) -> None:
        self.output, self.is_begun, self.result = found.output, found.is_begun, found.result
        self.state, self.whole = found.state, found.whole

    def _on_fault(self, error: Exception) -> None:
        self._fault = message_of(error).text

    def _on_looked(self) -> None:
        self._looking = None
        self.changed.emit()

    @property
    def obstacle(self) -> str:
        """Return the reason why Improve is disabled, for a person; "" if it is enabled."""
        content = self.accepting.content
        if self.job is not None:
            return "The model is being improved."
        if self.result is not None:
            return "Choose between the new model and the old one first."
        if self.segmenting.runnable_bundle is None:
            return "Choose a trusted model in the Segment tab."
        if self._fault:
            return self._fault
        if content is None or not content.cases:
            return "Accept cases first: about five make a difference."
        if not content.part_of("training") or not content.part_of("validation"):
            return "Accept cases of another patient: one is needed for training, and one to compare both models."
        if self.output is None:
            return "Looking for a folder for the new model …"
        return ""

    @property
    def is_at_work(self) -> bool:
        """Return whether a model is being improved."""
        return self.job is not None and not self.session.is_closed

    # improving

    def start(self) -> None:
        """Improve the selected model, or continue what was begun, in a job."""
        bundle, folder, output = self.segmenting.runnable_bundle, self.accepting.folder, self.output
        assert bundle is not None
        assert folder is not None
        assert output is not None
        self.state = None
        choices = ImproveChoices(folder, bundle, output, self.minutes, self.replay)
        self.job = self.session.jobs.start(
            partial(_improve, choices, self._on_state), on_result=self._on_improved, on_end=self._on_end
        )
        self.session.show_messages()
        self.changed.emit()

    def stop(self) -> None:
        """Stop: the training saves, and can be continued."""
        if self.job is not None:
            self.job.stop()
            self.changed.emit()

    def _on_state(self, state: RunState) -> None:
        self.state = state
        if self.job is not None and state.progress is not None and state.progress.is_live:
            self.job.progress = progress_of(state.progress)
        self.changed.emit()

    def _on_improved(self, result: Improvement | None) -> None:
        if result is None:
            text = "Stopped. The old model is unchanged. “Resume” goes on where the new one was."
            self.session.show_messages(Message("info", text), lasting=True)
            return
        self.result, self.is_begun = result, False
        messages = [Message("info", f"The new model is ready. {verdict(result)}")]
        try:
            self.whole = whole_task(read_bundle(result.output), self.segmenting.bundle)
        except BundleError as error:
            self.whole = None
            text = f"The new model can only be used alone: {gui_text_of(error)}"
            messages.append(Message("warning", text))
        if result.left_out:
            reasons = "; ".join(f"{name}: {printable(reason)}" for name, reason in result.left_out.items())
            messages.append(Message("warning", f"Cases that could not be used were left out: {reasons}"))
        self.session.show_messages(*messages, lasting=True)

    def _on_end(self) -> None:
        self.job = None
        bundle, output = self.segmenting.bundle, self.output
        is_same = bundle is not None and self._seen is not None and bundle.reference == self._seen.reference
        if self.result is None and is_same and output is not None:
            self._look(lambda: output)
        self.changed.emit()

    @property
    def status(self) -> str:
        """What goes on, or why nothing can, in a line for a person; "" otherwise."""
        line = "" if self.state is None else line_of(self.state)
        if self.job is None and self._fault:
            return self._fault
        if self.job is None:
            return f"Begun before: {line}" if self.is_begun and line else "Begun before." if self.is_begun else ""
        if self.job.is_stopping:
            return "Saving after this step …"
        progress = None if self.state is None else self.state.progress
        return line if progress is not None and progress.is_live else str(self.job.progress)

    @property
    def fraction(self) -> float | None:
        """Fraction of the work that is done; None if it is not known."""
        if self.job is None:
            return None
        progress = None if self.state is None else self.state.progress
        if progress is not None and progress.is_live and progress.seconds_left is not None:
            total = progress.seconds + progress.seconds_left
            return progress.seconds / total if total > 0 else None
        return self.job.progress.done / self.job.progress.total if self.job.progress.total else None

    # deciding

    def use(self, *, in_task: bool = False) -> None:
        """Select the new model in the Segment tab; the old one stays in the list.

        Args:
            in_task: select the whole task with the new model in it.
        """
        assert self.result is not None
        try:
            bundle = read_bundle(self.result.output)
        except BundleError as error:
            self.session.show_messages(message_of(error))
            return
        whole = self.whole if in_task else None
        name = self.result.output.name if whole is None else whole.name
        self.result = self.whole = None
        self.segmenting.add_bundle(bundle.root)
        self.segmenting.reload_bundles((whole or bundle).reference)
        text = f"{name} is selected in the Segment tab. The old model stays in the list."
        self.session.show_messages(Message("info", text), lasting=True)
        self.used.emit()

    def keep(self) -> None:
        """Keep the old model; the new one stays in its folder."""
        assert self.result is not None
        text = f"The old model stays selected. The new one stays in {self.result.output}."
        self.result, self.whole, self._seen = None, None, None
        self.session.show_messages(Message("info", text), lasting=True)
        self.find_output()


def _improve(choices: ImproveChoices, on_state: Callable[[RunState], object], job: Job) -> Improvement | None:
    """Improve a model in a worker process of its own; None if it was stopped. Runs in the thread of the job.

    Raises:
        NapariSegError: see `napari_seg.learning.improve.improve`.
    """

    def report(text: str) -> None:
        job.check()
        words = as_gui_text(text.strip())
        job.progress = JobProgress(words[:1].upper() + words[1:])

    def post(state: RunState) -> None:
        if not job.is_abandoned:
            job.post(on_state, state)

    has_stop = (choices.output / STOP).exists()
    worker = WorkerProcess()  # its own, so that scans can be segmented meanwhile
    try:
        result: Improvement = job.call(
            worker,
            improve,
            choices.folder,
            choices.bundle,
            choices.output,
            max_minutes=choices.minutes,
            replay=[] if choices.replay is None else [choices.replay],
            callbacks={"report": report, "progress": job.report},
            poll=RunFollower(choices.output, post).poll,
            stage="Reading the accepted cases",
        )
        return result
    except Cancelled:
        return None
    finally:
        worker.close()
        if not has_stop or is_begun(choices.output):  # a folder of others keeps its files
            with suppress(OSError):  # it would stop the next training
                (choices.output / STOP).unlink(missing_ok=True)


def found_in(output: Path, before: Bundle) -> FoundOutput:
    """Return what the folder of a new model holds; reads files, so call it in a job.

    Args:
        output: the folder.
        before: the old model.
    """
    result = read_improvement(output)
    state = read_state(current_run(output)) if output.is_dir() else None
    has_run = state is not None and (state.progress is not None or bool(state.losses))
    whole = None
    if result is not None:
        with suppress(BundleError):  # the new model alone is offered
            whole = whole_task(read_bundle(output), before)
    return FoundOutput(output, result is None and is_begun(output), result, state if has_run else None, whole)


def verdict(result: Improvement) -> str:
    """Return the comparison of both models in a sentence for a person."""
    mean = next((row for row in result.rows if row.structure == MEAN), None)
    if mean is None or math.isnan(mean.difference):
        return "No structure could be compared on the validation cases."
    cases = counted(mean.cases, "validation case")
    text = f"Mean Dice on {cases}: {mean.before:.3f} before, {mean.after:.3f} after ({mean.difference:+.3f})"
    if result.has_few_patients:
        text = f"{text}. Too few validation cases to tell: it takes those of {MIN_PATIENTS} patients."
    else:
        doubt = "" if result.is_clear else " The difference may be chance."
        text = f"{text}, 95 % interval {mean.low:+.3f} to {mean.high:+.3f}.{doubt}"
    if mean.one_empty:
        number = counted(mean.one_empty, "case")
        text = f"{text} In {number} only one of the models finds a structure that the labels do not contain."
    return text if result.is_better else f"{text} The new model is not better."


def interval_text(row: ComparedStructure) -> str:
    """Return the difference of a structure with its interval, in words."""
    if not row.cases:
        return "Not compared: no validation case holds it, and no model finds it there."
    if math.isnan(row.difference):
        return "The old model does not know this structure."
    interval = "" if math.isnan(row.low) else f", 95 % interval {row.low:+.3f} to {row.high:+.3f}"
    empty = f"; in {counted(row.one_empty, 'case')} only one of them finds it, wrongly" if row.one_empty else ""
    return f"{row.difference:+.3f}{interval}{empty}"
