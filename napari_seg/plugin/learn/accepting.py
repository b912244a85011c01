"""Accept the selected labels as a case of a training set, in jobs. Without Qt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from napari.layers import Image, Labels
from psygnal import Signal

from napari_seg.errors import InputError, counted
from napari_seg.learning.accept import accept
from napari_seg.learning.same_scan import ScanIdentity, case_of_scan, has_changed
from napari_seg.learning.training_set import AcceptedCase, Provenance, TrainingSet, moved_to_training, read_training_set
from napari_seg.plugin.foreign_layers import lies_on
from napari_seg.plugin.job import SAVING_WORKER, Job, JobProgress
from napari_seg.plugin.labels_on_scan import UNKNOWN_SCAN, has_grid_of
from napari_seg.plugin.labels_state import EditAction, Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, volume_of
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.napari_private import history_lengths
from napari_seg.plugin.preferences import preferences, remember_training_set
from napari_seg.plugin.segment.channels import input_of
from napari_seg.volume import Segmentation, Source, Volume

if TYPE_CHECKING:
    from napari_seg.plugin.segment.model import SegmentModel
    from napari_seg.plugin.session import Session
    from napari_seg.plugin.structures.model import Structure, StructuresModel


@dataclass(frozen=True)
class Wish:
    """What a person accepts.

    Attributes:
        snapshot: the labels.
        volumes: channel -> volume of the scan.
        folder: folder of the training set.
        checks: name of a structure -> whether a person checked it; the others were checked if they have voxels, or if
            the model that made the labels looks for them.
        actions: what the person did, in words.
        reader: name of the person; "" if it is not stated.
        replaces: whether the person agreed that earlier labels of the scan are replaced.
    """

    snapshot: Snapshot
    volumes: Mapping[str, Volume]
    folder: Path
    checks: Mapping[str, bool]
    actions: tuple[str, ...]
    reader: str
    replaces: bool = False


@dataclass(frozen=True)
class Question:
    """A scan that was accepted before, so that a person has to agree that its labels are replaced."""

    wish: Wish
    case: AcceptedCase
    annotated: tuple[str, ...]
    has_changed: bool = False

    @property
    def text(self) -> str:
        """Return the question in words."""
        record = self.case.provenance
        who, when = f" by {record.reader}" if record.reader else "", record.time.replace("T", ", ")[:17]
        kept = {name.casefold() for name in self.annotated}
        lost = ", ".join(name for name in self.case.annotated if name.casefold() not in kept)
        changed = " Its series holds other voxels since then, which replace the earlier ones." * self.has_changed
        return (
            f"This scan was accepted before as {self.case.name}{who} ({when} UTC).{changed} Accepting it again "
            f"replaces its labels in the set{f'; those of {lost} are lost' if lost else ''}."
        )


@dataclass(frozen=True)
class Accepted:
    """A case that was accepted, and the training set with it.

    Attributes:
        wish: what was accepted.
        case: the case.
        content: the training set.
        files: files of the scan.
        unchecked: names of structures with voxels that were not checked.
        empty: names of structures without voxels that nobody looked for.
        moved: names of cases that were for validation before.
        is_new: whether the set did not have these labels of the scan before.
    """

    wish: Wish
    case: AcceptedCase
    content: TrainingSet
    files: tuple[Path, ...]
    unchecked: tuple[str, ...]
    empty: tuple[str, ...]
    moved: tuple[str, ...]
    is_new: bool = True

    @property
    def text(self) -> str:
        """What was accepted, in words."""
        case = self.case
        if not self.is_new:
            return f"{case.name} has the same labels: nothing has changed. The set has {counts_of(self.content)}."
        again = f", for the {_ordinal(case.revision)} time" if case.revision > 1 else ""
        text = f"Accepted as {case.name} for {case.part}{again}. The set has {counts_of(self.content)}."
        others = sum(one.patient == case.patient for one in self.content.cases) - 1
        text += f" The scan states the same patient as {counted(others, 'other case')}." * bool(others)
        if self.moved:
            is_now, its = ("is", "its patient") if len(self.moved) == 1 else ("are", "their patients")
            text += f" {', '.join(self.moved)} {is_now} now for training: scans of {its} are trained on."
        if absent := [name for name, change in case.provenance.changes.items() if not change.voxels]:
            text += f" Looked for and absent: {', '.join(absent)}."
        if self.empty:
            text += f" Without voxels, so nothing is learned about it here: {', '.join(self.empty)}."
        return text


class AcceptModel:
    """Puts the selected labels and their scan into a training set.

    Args:
        session: source of the labels and the scans; receives messages.
        structures: structures of the selected labels.
        segmenting: layers of a model with several channels.

    Attributes:
        changed: emitted after every change that the tab shows.
        accepted: emitted with the files of a scan after it was accepted.
        asked: emitted when a question waits for an answer.
        folder: folder of the training set; None before it was chosen.
        content: content of the set, as it was read last; None if it can't be read.
        fault: reason why the set can't be read; "" if it can.
        question: scan that was accepted before; None if there is no such question.
        job: job that accepts; None if there is none.
    """

    changed = Signal()
    accepted = Signal(object)
    asked = Signal()

    def __init__(self, session: Session, structures: StructuresModel, segmenting: SegmentModel) -> None:
        self.session, self.structures, self.segmenting = session, structures, segmenting
        self.folder: Path | None = preferences().training_set
        self.content: TrainingSet | None = None
        self.fault = ""
        self.question: Question | None = None
        self.job: Job | None = None
        self._has_hinted = False
        self._checks: WeakKeyDictionary[Labels, Mapping[str, bool]] = WeakKeyDictionary()
        structures.changed.connect(self._follow)
        if self.folder is not None:
            self.look()

    # the training set

    def choose_folder(self, folder: Path) -> None:
        """Set the folder of the training set, for later sessions too."""
        self.folder, self.content, self.question, self.fault = folder, None, None, ""
        remember_training_set(folder)
        self.look()
        self.changed.emit()

    def look(self) -> None:
        """Read the training set in a job."""
        folder = self.folder
        assert folder is not None
        self.session.jobs.start(
            lambda _: read_training_set(folder),
            on_result=partial(self._on_read, folder),
            on_error=partial(self._on_unread, folder),
        )

    def _on_read(self, folder: Path, content: TrainingSet) -> None:
        if folder == self.folder:
            self.content, self.fault = content, ""
            self.changed.emit()

    def _on_unread(self, folder: Path, error: Exception) -> None:
        if folder == self.folder:
            self.content, self.fault = None, message_of(error).text
            self.changed.emit()

    @property
    def summary(self) -> str:
        """The number of cases in words."""
        return self.fault if self.content is None else counts_of(self.content)

    # what is accepted

    @property
    def labels(self) -> Labels | None:
        """The labels that are accepted: the selected layer."""
        return self.session.labels

    @property
    def scan(self) -> Image | None:
        """The scan of the labels: the one that they were made from, or that they lie on; otherwise the selected one.

        None for restored labels whose scan is not open, although others are, and for those of another volume of an open
        file.
        """
        labels = self.labels
        if labels is None or LayerInfo.require(labels).scan_mark is not None:
            return None
        source = LayerInfo.require(labels).scan
        scans = [scan for scan in self._scans if not _is_other_volume(volume_of(scan), source)]
        fitting = [scan for scan in scans if has_grid_of(labels, scan) or lies_on(labels, scan)]
        own = [scan for scan in fitting if (one := volume_of(scan)) is not None and one.source == source]
        return next(iter((*own, *fitting, *scans)), None)

    @property
    def _scans(self) -> list[Image]:
        """The open scans, the selected one first."""
        return [*dict.fromkeys([*([self.session.scan] if self.session.scan else []), *self.session.scans])]

    @property
    def rows(self) -> list[tuple[Structure, bool]]:
        """The structures of the labels, and whether each one was checked.

        One without voxels was so if a person says so, or if the model that made the labels looks for it.
        """
        if self.labels is None:
            return []
        looked_for = LayerInfo.require(self.labels).looked_for
        return [
            (row, self.checks.get(row.name, row.voxels != 0 or row.label in looked_for))
            for row in self.structures.structures
        ]

    @property
    def checks(self) -> Mapping[str, bool]:
        """What a person said: name of a structure -> whether it was checked."""
        return {} if self.labels is None else self._checks.get(self.labels, {})

    def check(self, name: str, is_checked: bool) -> None:
        """Set whether a structure was checked; nothing is learned about others from this case."""
        assert self.labels is not None
        self._checks[self.labels] = {**self.checks, name: is_checked}
        self._follow()

    def forget_checks(self) -> None:
        """Forget what a person said about the structures."""
        if self.labels is not None:
            self._checks.pop(self.labels, None)
            self._follow()

    @property
    def obstacle(self) -> str:
        """Return the reason why Accept is disabled, for a person; "" if it is enabled."""
        if self.job is not None:
            return "A case is being accepted."
        if self.labels is None:
            return "Select labels on a scan."
        if self.scan is None:
            is_unknown = LayerInfo.require(self.labels).scan_mark is not None
            return UNKNOWN_SCAN if is_unknown and self._scans else "Open the scan of these labels."
        if not any(is_checked for _, is_checked in self.rows):
            return "Check at least one structure."
        return ""

    # accepting

    def start(self) -> None:
        """Accept the selected labels in a job; a scan that was accepted before becomes a question first."""
        if self.obstacle or self.folder is None:
            text = self.obstacle or "Choose the folder of accepted cases first."
            self.session.show_messages(Message("warning", text))
            return
        labels, scan = self.labels, self.scan
        assert labels is not None
        assert scan is not None
        volumes = self._volumes(labels, scan)
        snapshot = Snapshot.of(labels)
        actions, reader = _actions_of(labels), preferences().reader
        self._start(Wish(snapshot, volumes, self.folder, self.checks, actions, reader))

    def replace(self) -> None:
        """Accept the scan of the question, which replaces its earlier labels, unless something has changed since."""
        assert self.question is not None
        self._follow()
        if self.question is None:
            return
        wish = replace(self.question.wish, replaces=True)
        self.question = None
        self._start(wish)

    def keep(self) -> None:
        """Drop the question; the set keeps the earlier labels."""
        self.question = None
        self.session.show_messages(Message("info", "The set keeps the earlier labels."))
        self.changed.emit()

    def _start(self, wish: Wish) -> None:
        self.question = None
        self.job = self.session.jobs.start(partial(_accept, wish), on_result=self._on_result, on_end=self._on_end)
        self.session.show_messages(Message("info", "Accepting …"), lasting=True)
        self.changed.emit()

    def _on_result(self, result: Accepted | Question) -> None:
        if isinstance(result, Question):
            self.question = result
            self.session.show_messages()
            self._follow()
            if self.question is not None:
                self.asked.emit()
            return
        if result.wish.folder == self.folder:
            self.content, self.fault = result.content, ""
        is_unsaved = state_of(result.wish.snapshot.layer).is_unsaved
        text = " The layer is not saved by this." * (is_unsaved and not result.unchecked)
        messages = [Message("info", result.text + text)]
        if result.unchecked:
            text = "Save the labels too: the set holds only the structures that were checked."
            messages.append(Message("warning", text))
        if not result.wish.reader and not self._has_hinted:
            self._has_hinted = True
            text = "The record does not say who accepted it. Preferences > napari-seg has a field for your name."
            messages.append(Message("info", text))
        self.session.show_messages(*messages, lasting=True)
        self.accepted.emit(result.files)

    def _on_end(self) -> None:
        self.job = None
        self.changed.emit()

    def _follow(self) -> None:
        """Drop a question about other labels than those on the screen, or about other checks."""
        if self.question is not None:
            wish = self.question.wish
            layer, edits = wish.snapshot.layer, wish.snapshot.edits
            if layer is not self.labels:
                self.question = None
            elif state_of(layer).edits != edits or wish.checks != self.checks:
                self.question = None
                text = "The labels or the checks have changed since the question. Accept again."
                self.session.show_messages(Message("warning", text))
        self.changed.emit()

    def _volumes(self, labels: Labels, scan: Image) -> dict[str, Volume]:
        """Return channel -> volume: the layers of a model with several channels if it made the labels."""
        made_by, bundle = LayerInfo.require(labels).algorithm, self.segmenting.bundle
        layers: Mapping[str, Image | None] = {"": scan}
        if made_by is not None and bundle is not None and made_by[0] == bundle.name:
            channels = self.segmenting.channels
            layers = channels if channels and scan in channels.values() else layers
        found = {name: None if layer is None else volume_of(layer) for name, layer in layers.items()}
        return {name: volume for name, volume in found.items() if volume is not None}


def _accept(wish: Wish, job: Job) -> Accepted | Question:
    """Accept a case, or return the question about one that was accepted before; in the thread of the job.

    Raises:
        NapariSegError: see `napari_seg.learning.accept.accept`.
    """
    job.progress = JobProgress("Comparing with the accepted cases")
    scan, segmentation = input_of(wish.volumes), wish.snapshot.segmentation()
    info, counts = wish.snapshot.info, segmentation.voxel_counts()
    names = {" ".join(one.name.split()): counts.get(one.label, 0) for one in segmentation.segments}
    expected = {one.name for one in segmentation.segments if counts.get(one.label) or one.label in info.looked_for}
    checked = {one.name for one in segmentation.segments if wish.checks.get(one.name, one.name in expected)}
    annotated = tuple(name for name in names if name in {" ".join(one.split()) for one in checked})
    others = [name for name in names if name not in annotated]
    before = read_training_set(wish.folder)
    try:
        case = job.call(
            SAVING_WORKER,  # reading a series blocks Python
            accept,
            segmentation,
            scan,
            wish.folder,
            Provenance(wish.reader, model=info.algorithm, actions=wish.actions),
            before=_before(segmentation, info),
            annotated=annotated,
            may_replace=wish.replaces,
            ends_between_steps=True,
            stage="Writing the case",
        )
    except InputError as error:
        if error.code != "accept.again":
            raise
        identity = ScanIdentity.of(scan).in_set(before)
        known = case_of_scan(before, wish.folder, identity)
        if known is None:
            raise
        return Question(wish, known, annotated, has_changed(known, wish.folder, identity))
    content = read_training_set(wish.folder)
    unchecked, empty = (tuple(name for name in others if bool(names[name]) is wanted) for wanted in (True, False))
    moved = tuple(moved_to_training(before, content))
    return Accepted(wish, case, content, scan.source.files, unchecked, empty, moved, is_new=case not in before.cases)


def _is_other_volume(scan: Volume | None, source: Source) -> bool:
    """Return whether a scan is another volume in the same files."""
    return scan is not None and scan.source.files == source.files != () and scan.source.volume != source.volume


def _before(segmentation: Segmentation, info: LayerInfo) -> Segmentation | None:
    """Return the labels as the model made them, with the present names of their structures; None if unknown."""
    packed = info.model_labels
    if packed is None or packed.shape != segmentation.grid.shape:
        return None
    return replace(segmentation, array=packed.unpack(), confidence_maps=None)


def counts_of(content: TrainingSet) -> str:
    """Return the number of cases of a training set in words."""
    count, kept = len(content.cases), len(content.part_of("validation"))
    return counted(count, "case") + f", {kept} of them for validation" * bool(kept)


def _actions_of(labels: Labels) -> tuple[str, ...]:
    """Return what a person did to labels, in words: the actions of the Edit tab, and the number of other steps."""
    state = state_of(labels)
    actions = [_words_of(action) for action in state.actions]
    others = history_lengths(labels)[0] - (len(actions) - len(state.earlier_actions))
    return (*actions, *([f"other steps, such as strokes of the brush: {others}"] if others > 0 else []))


def _words_of(action: EditAction) -> str:
    return f"{action.name}: {action.structure}, {action.added} voxels added, {action.removed} removed"


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
