"""Session: what the panels of one viewer share, that is the selected scan, the selected labels and the messages."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from napari.layers import Image, Labels, Layer
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.errors import InputError
from napari_seg.plugin.contrast import widen_range
from napari_seg.plugin.foreign_layers import TRANSFORM_EVENTS, adopt_image, adopt_labels, lies_on
from napari_seg.plugin.job import Jobs
from napari_seg.plugin.labels_state import state_of
from napari_seg.plugin.layer_info import LayerInfo, volume_of
from napari_seg.plugin.messages import Message, message_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.components import ViewerModel


_NO_SCAN = object()
"""Subject of messages while no scan is open."""


def unwrapped(viewer: ViewerModel) -> ViewerModel:
    """Return the viewer itself for the proxy that napari passes to widgets.

    The proxy wraps each layer in a new object at every access, so that layers cannot be compared by identity.
    """
    plain: ViewerModel = getattr(viewer, "__wrapped__", viewer)
    return plain


def voxels_of(scan: Image) -> NDArray:
    """Return the array of an image layer at full resolution; it is loaded if it is not in memory."""
    return np.asarray(scan.data[0] if scan.multiscale else scan.data)


class Session:
    """Selected scan and labels of a viewer, and the messages about them; the selection follows the active layer.

    Labels layers of other programs get the geometry of the scan that they lie on.

    Attributes:
        changed: emitted after the scan, the labels or the messages have changed.
        inserted: emitted with each new layer, after it got its geometry.
        scan: selected image layer with a known geometry; None if there is none.
        labels: selected labels layer with a known geometry; None if there is none.
        messages: messages about the last action.
        refusals: image layer -> reason why it cannot be used as a scan.
        jobs: long work of the viewer's panels.
    """

    changed = Signal()
    inserted = Signal(Layer)

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = weakref.ref(viewer)  # so that Python can delete a closed viewer
        self.scan: Image | None = None
        self.labels: Labels | None = None
        self.messages: list[Message] = []
        self._about: Callable[[], object] | None = None
        self.refusals: WeakKeyDictionary[Layer, str] = WeakKeyDictionary()
        self._introduced: weakref.ref[Layer] | None = None
        self._introduction: list[Message] = []
        self.jobs = Jobs(on_error=lambda error: self.show_messages(message_of(error)))
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._follow)
        viewer.layers.selection.events.active.connect(self._follow)
        for layer in viewer.layers:
            self._adopt_new(layer)
        self._follow()

    @property
    def is_closed(self) -> bool:
        """Return whether the session was closed."""
        return self.jobs.is_closed

    @property
    def viewer(self) -> ViewerModel:
        """Viewer of the session, which must still exist."""
        viewer = self._viewer()
        assert viewer is not None
        return viewer

    def close(self) -> None:
        """Disconnect from the viewer and stop all jobs."""
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
        self.scan, self.labels = None, None  # otherwise a removed scan would stay in memory

    @property
    def scans(self) -> list[Image]:
        """Image layers with a known geometry."""
        return [layer for layer in self.viewer.layers if isinstance(layer, Image) and volume_of(layer) is not None]

    @property
    def segmentations(self) -> list[Labels]:
        """Labels layers with a known geometry."""
        labels = (layer for layer in self.viewer.layers if isinstance(layer, Labels))
        return [layer for layer in labels if LayerInfo.of(layer) is not None]

    def scan_on(self, layer: Labels) -> Image | None:
        """Return a scan on the same voxels as labels, the selected scan first; None without one."""
        scans = [self.scan, *self.scans] if self.scan is not None else self.scans
        return next((scan for scan in scans if lies_on(layer, scan)), None)

    def image_on(self, layer: Labels) -> NDArray | None:
        """Return the array of `scan_on`; None without one."""
        scan = self.scan_on(layer)
        return None if scan is None else voxels_of(scan)

    def choose_scan(self, layer: Image | None) -> None:
        """Select a scan."""
        self.scan = layer
        self._drop_messages()
        self._introduce(layer)
        self.changed.emit()

    @property
    def is_painting(self) -> bool:
        """Return whether a painting tool is active, so that the active layer must not change."""
        active = self.viewer.layers.selection.active
        return isinstance(active, Labels) and str(active.mode) not in ("pan_zoom", "transform")

    def show_messages(self, *messages: Message, lasting: bool = False) -> None:
        """Replace the messages.

        Args:
            messages: new messages about the selected scan.
            lasting: keep them if another scan is selected.
        """
        self.messages, self._about = list(messages), None if lasting else self._scan_reference()
        self.changed.emit()

    def drop_errors(self) -> None:
        """Remove errors, after the choice that caused them has changed."""
        self.messages = [message for message in self.messages if message.kind != "error"]
        self.changed.emit()

    def _scan_reference(self) -> Callable[[], object]:
        return weakref.ref(self.scan) if self.scan is not None else lambda: _NO_SCAN

    def _drop_messages(self) -> None:
        """Remove messages about another scan than the selected one."""
        if self._about is not None and self._about() is not (_NO_SCAN if self.scan is None else self.scan):
            self.messages, self._about = [], None

    def _on_inserted(self, event: object) -> None:
        layer = getattr(event, "value", None)
        assert isinstance(layer, Layer)
        self._adopt_new(layer)
        self._follow()
        self.inserted.emit(layer)

    def _adopt_new(self, layer: Layer) -> None:
        """Give a new layer its geometry, and watch the transform of a layer of another program."""
        layer.events.name.connect(self._follow)
        if isinstance(layer, Labels):
            state_of(layer)  # a duplicate is recognised by the info that it has now
        if isinstance(layer, Image | Labels):
            self._adopt(layer)
            info = LayerInfo.of(layer)
            if info is None or info.adopted is not None:
                for name in TRANSFORM_EVENTS:
                    getattr(layer.events, name).connect(self._on_transformed)
        if isinstance(layer, Labels):
            return
        widen_range(layer)
        for labels in self.viewer.layers:  # labels that were opened before their scan
            if isinstance(labels, Labels):
                self._adopt(labels)

    def _adopt(self, layer: Image | Labels) -> None:
        """Give a layer of another program a grid, or note why it cannot be used."""
        layers = self.viewer.layers
        others = [*([self.scan] if self.scan in layers else []), *layers]
        try:
            if isinstance(layer, Labels):
                adopt_labels(layer, others)
                return
            adopt_image(layer, others)
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
        """Select the active layer if it is a scan or labels; otherwise keep the selection as far as it exists."""
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
        """Show the doubts about an image of another program, or why it cannot be used, when it is selected."""
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
