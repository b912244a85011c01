"""What the panels of one viewer share: which scan and which labels they speak of, and what is said to the person."""

from __future__ import annotations

import logging
import threading
import traceback
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from napari.layers import Image, Labels, Layer
from psygnal import Signal

from napari_seg.errors import InputError, NapariSegError
from napari_seg.plugin.foreign_layers import TRANSFORM_EVENTS, adopt_image, adopt_labels
from napari_seg.plugin.job import Jobs
from napari_seg.plugin.layer_info import LayerInfo, volume_of
from napari_seg.plugin.layers import widen_range
from napari_seg.plugin.messages import words_of
from napari_seg.worker import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.components import ViewerModel


logger = logging.getLogger(__name__)

_NOTHING = object()
"""What is said while no scan is open is about nothing."""


@dataclass(frozen=True)
class Message:
    """One line for a person."""

    kind: Literal["info", "warning", "error"]
    text: str


def message_of(error: Exception | None) -> Message:
    """What to say of an error.

    Of a mistake of ours it is the kind alone, and the log gets the places that it came through: its words may hold what
    is private.
    """
    if isinstance(error, NapariSegError):
        return Message("error", words_of(error))
    if isinstance(error, MemoryError):
        return Message("error", "There is too little memory for this. Close other scans or programs, then try again.")
    kind, places = type(error).__name__, "" if error is None else "".join(traceback.format_tb(error.__traceback__))
    if isinstance(error, WorkerError):
        kind, places = error.kind, places + error.places
    logger.error("%s\n%s", kind, places)
    return Message("error", f"This should not have happened: {kind}. The log of napari says more.")


def unwrapped(viewer: ViewerModel) -> ViewerModel:
    """The viewer itself, not the proxy that napari gives widgets: of that one, each layer has a new face each time."""
    plain: ViewerModel = getattr(viewer, "__wrapped__", viewer)
    return plain


class Session:
    """The scan and the labels that the panels of a viewer speak of; both follow the active layer.

    Layers of labels that come from elsewhere get the geometry of the scan that they were drawn on.

    Attributes:
        changed: emitted whenever the scan, the labels or the messages are others.
        inserted: emitted with each layer that was added, once its place is known.
        scan: an image layer that knows where it lies in the patient; None while there is none.
        labels: a labels layer that does; None while there is none.
        messages: what there is to say of the last thing that was done.
        refusals: image layers that can't be used as scans, with the reason for a person.
        jobs: long work of the panels of the viewer.
        is_closed: set once nobody waits for work any more.
    """

    changed = Signal()
    inserted = Signal(Layer)

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = weakref.ref(viewer)  # a viewer that is closed must be gone
        self.scan: Image | None = None
        self.labels: Labels | None = None
        self.messages: list[Message] = []
        self._about: Callable[[], object] | None = None
        self.refusals: WeakKeyDictionary[Layer, str] = WeakKeyDictionary()
        self._introduced: weakref.ref[Layer] | None = None
        self._introduction: list[Message] = []
        self.jobs = Jobs(on_error=lambda error: self.say(message_of(error)))
        self.is_closed = threading.Event()
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._follow)
        viewer.layers.selection.events.active.connect(self._follow)
        for layer in viewer.layers:
            self._welcome(layer)
        self._follow()

    @property
    def viewer(self) -> ViewerModel:
        """The viewer; it must still be there."""
        viewer = self._viewer()
        assert viewer is not None
        return viewer

    def close(self) -> None:
        """Lets go of the viewer."""
        self.is_closed.set()
        self.jobs.close()
        if (viewer := self._viewer()) is not None:
            viewer.layers.events.inserted.disconnect(self._on_inserted)
            viewer.layers.events.removed.disconnect(self._follow)
            viewer.layers.selection.events.active.disconnect(self._follow)
            for layer in viewer.layers:
                layer.events.name.disconnect(self._follow)
                if isinstance(layer, Image | Labels):
                    for name in TRANSFORM_EVENTS:
                        getattr(layer.events, name).disconnect(self._on_transformed)
        self.scan, self.labels = None, None  # the last ones to hold a scan that was removed

    @property
    def scans(self) -> list[Image]:
        """The image layers that know where they lie in the patient."""
        return [layer for layer in self.viewer.layers if isinstance(layer, Image) and volume_of(layer) is not None]

    @property
    def segmentations(self) -> list[Labels]:
        """The labels layers that know where they lie in the patient."""
        labels = (layer for layer in self.viewer.layers if isinstance(layer, Labels))
        return [layer for layer in labels if LayerInfo.of(layer) is not None]

    def choose_scan(self, layer: Image | None) -> None:
        """Set the scan."""
        self.scan = layer
        self._drop_messages()
        self._introduce(layer)
        self.changed.emit()

    @property
    def is_painting(self) -> bool:
        """Whether a brush is chosen: then nothing may be put under it."""
        active = self.viewer.layers.selection.active
        return isinstance(active, Labels) and str(active.mode) not in ("pan_zoom", "transform")

    def say(self, *messages: Message, lasting: bool = False) -> None:
        """Replace what was said before.

        Args:
            messages: what there is to say of the scan.
            lasting: keep it when another scan is chosen.
        """
        self.messages, self._about = list(messages), None if lasting else self._scan_reference()
        self.changed.emit()

    def drop_errors(self) -> None:
        """Take back errors: what they were about is chosen otherwise now."""
        self.messages = [message for message in self.messages if message.kind != "error"]
        self.changed.emit()

    def _scan_reference(self) -> Callable[[], object]:
        return weakref.ref(self.scan) if self.scan is not None else lambda: _NOTHING

    def _drop_messages(self) -> None:
        """Take back what was said about another scan than the one that is chosen."""
        if self._about is not None and self._about() is not (_NOTHING if self.scan is None else self.scan):
            self.messages, self._about = [], None

    def _on_inserted(self, event: object) -> None:
        layer = getattr(event, "value", None)
        assert isinstance(layer, Layer)
        self._welcome(layer)
        self._follow()
        self.inserted.emit(layer)

    def _welcome(self, layer: Layer) -> None:
        layer.events.name.connect(self._follow)
        if isinstance(layer, Image | Labels):
            self._adopt(layer)
            info = LayerInfo.of(layer)
            if info is None or info.adopted is not None:
                for name in TRANSFORM_EVENTS:
                    getattr(layer.events, name).connect(self._on_transformed)
        if isinstance(layer, Labels):
            return
        widen_range(layer)
        for labels in self.viewer.layers:  # those that were opened before their scan
            if isinstance(labels, Labels):
                self._adopt(labels)

    def _adopt(self, layer: Image | Labels) -> None:
        """Give a layer from elsewhere a grid, and say what is not known of it, or why it can't be used."""
        layers = self.viewer.layers
        likeliest = [*([self.scan] if self.scan in layers else []), *layers]
        try:
            if isinstance(layer, Labels):
                adopt_labels(layer, likeliest)
                return
            adopt_image(layer, likeliest)
        except InputError as error:
            self.refusals[layer] = error.message
            return
        self.refusals.pop(layer, None)

    def _on_transformed(self, event: object) -> None:
        layer = getattr(event, "source", None)
        if isinstance(layer, Image | Labels) and layer in self.viewer.layers:
            self._adopt(layer)
            self._introduced = None
            self._follow()

    def _follow(self, event: object = None) -> None:
        """Takes the active layer, if it is a scan or labels; otherwise keeps what is still there."""
        active = self.viewer.layers.selection.active
        scans, segmentations = self.scans, self.segmentations
        if active in scans:
            self.scan = active
        elif self.scan not in scans:
            self.scan = scans[-1] if scans else None
        if active in segmentations:
            self.labels = active
        elif self.labels not in segmentations:
            self.labels = segmentations[-1] if segmentations else None
        self._drop_messages()
        self._introduce(active)
        self.changed.emit()

    def _introduce(self, active: Layer | None) -> None:
        """Say what is not known of an image from elsewhere, or why it can't be used, once it is chosen."""
        subject = active if active in self.refusals else self.scan
        if subject is None or (self._introduced is not None and self._introduced() is subject):
            return
        self._introduced = weakref.ref(subject)
        if subject in self.refusals:
            texts = [f"{self.refusals[subject]}."]
        elif LayerInfo.require(subject).adopted is not None and (volume := volume_of(subject)) is not None:
            texts = [notice.message for notice in volume.notices]
        else:
            texts = []
        if texts or self.messages == self._introduction:
            self._introduction = self.messages = [Message("warning", text) for text in texts]
            self._about = self._scan_reference()
