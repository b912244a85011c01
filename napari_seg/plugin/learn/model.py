"""State of the Learn tab, without Qt: accept corrected cases, find the next one, improve the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psygnal import Signal

from napari_seg.plugin.learn.accepting import AcceptModel
from napari_seg.plugin.learn.improving import ImproveModel
from napari_seg.plugin.learn.which_next import WhichNextModel

if TYPE_CHECKING:
    from napari_seg.plugin.batch.model import BatchModel
    from napari_seg.plugin.segment.model import SegmentModel
    from napari_seg.plugin.session import Session
    from napari_seg.plugin.structures.model import StructuresModel
    from napari_seg.plugin.study.model import StudyModel


class LearnModel:
    """State of the Learn tab of one viewer.

    Args:
        session: source of the labels and the scans; receives messages, and runs jobs.
        structures: structures of the selected labels.
        segmenting: the model to improve is the selected one.
        batch: its folders are those of *Which next?* until a person chooses others.
        study: opens scans.

    Attributes:
        changed: emitted after every change that the tab shows.
        session: receives messages.
        segmenting: the model to improve is the selected one.
        accepting: puts the selected labels into the training set.
        which_next: the queue of cases to correct.
        improving: fine-tunes a copy of the selected model.
    """

    changed = Signal()

    def __init__(
        self,
        session: Session,
        structures: StructuresModel,
        segmenting: SegmentModel,
        batch: BatchModel,
        study: StudyModel,
    ) -> None:
        self.session, self.segmenting = session, segmenting
        self.accepting = AcceptModel(session, structures, segmenting)
        self.which_next = WhichNextModel(session, segmenting, self.accepting, study)
        self.improving = ImproveModel(session, segmenting, self.accepting)
        self._batch = batch
        batch.changed.connect(self._take_folders)
        for part in (self.accepting, self.which_next, self.improving):
            part.changed.connect(self.changed.emit)

    def _take_folders(self) -> None:
        """Take the folders of a batch unless a person chose others."""
        batch, queue = self._batch, self.which_next
        if queue.results is None and queue.scans is None and batch.count("done") and batch.output is not None:
            queue.choose_results(batch.output)
            if batch.inputs is not None:
                queue.choose_scans(batch.inputs)
