"""State of the Study tab, without Qt: list the scans and labels below a path, and open the chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image, Labels, Layer
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.errors import ChoiceNeeded, InputError, counted
from napari_seg.formats.scan import ReadOptions
from napari_seg.plugin.job import Job
from napari_seg.plugin.labels_on_scan import can_move, has_grid_of, on_scan
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, frame_of, share_frame, volume_of
from napari_seg.plugin.layers import VOLUME_MARK, holds, image_layers, in_frame, layer_of
from napari_seg.plugin.messages import Message, gui_text_of, message_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.study.entries import Entry, find_entries
from napari_seg.plugin.study.label_files import kind_of, label_layers, read_labels, scan_index, waits_for

if TYPE_CHECKING:
    from napari_seg.volume import Volume

Loaded = tuple[list[Layer], tuple[str, ...]]
"""Layers that were read, and warnings about them."""


class StudyModel:
    """State of the Study tab of one viewer.

    Attributes:
        changed: emitted after every change that the tab shows.
        session_chosen: emitted with a session file that is to be opened.
        session: receives messages.
        path: chosen file or folder; None before the first choice.
        entries: rows found so far.
        is_listing: whether more rows may follow.
    """

    changed = Signal()
    session_chosen = Signal(Path)

    def __init__(self, session: Session) -> None:
        self.session = session
        self.path: Path | None = None
        self.entries: list[Entry] = []
        self.is_listing = False
        self._loading = 0
        self._listing: Job | None = None
        session.inserted.connect(self._on_inserted)

    def list_path(self, path: Path) -> None:
        """List the scans and labels below a path in a job; a listing of another path is abandoned."""
        if self._listing is not None:
            self._listing.abandon()
        self.path, self.entries, self.is_listing = path, [], True
        self.session.show_messages()
        self.changed.emit()
        self._listing = self.session.jobs.start(
            partial(self._find, path), on_result=self._on_found, on_error=self._on_error, on_end=self._on_listed
        )

    def _find(self, path: Path, job: Job) -> None:
        for entry in find_entries(path):
            job.check()
            job.post(self.add, entry)

    def add(self, entry: Entry) -> None:
        """Add a row."""
        self.entries.append(entry)
        self.changed.emit()

    def _on_found(self, _: None) -> None:
        scans = [entry for entry in self.entries if entry.scan is not None and entry.labels is None]
        count = sum(entry.labels is not None for entry in self.entries)
        ready = sum(entry.can_open for entry in scans)
        sessions = sum(entry.session is not None for entry in self.entries)
        if not scans and not count and not sessions:
            self.session.show_messages(
                Message("warning", "There is no scan: expected NIfTI, NRRD, MetaImage, DICOM or 2D images.")
            )
        else:
            found = f"{counted(len(scans), 'scan')}, {ready} can be opened"
            labels = f"; {counted(count, 'segmentation')}" if count else ""
            saved = f"; {counted(sessions, 'session')}" if sessions else ""
            text = f"{found}{labels}{saved}. Double-click one."
            self.session.show_messages(Message("info", text))

    def _on_error(self, error: Exception) -> None:
        self.session.show_messages(message_of(error))

    def _on_listed(self) -> None:
        self.is_listing = False
        self.changed.emit()

    # opening

    def open(self, entry: Entry, volume: int = 0) -> None:
        """Read a scan or a file of labels in a job, and show it.

        Args:
            entry: row of the scan or the labels.
            volume: number of the volume, from 0; ignored if there is only one.
        """
        if entry.session is not None:
            self.session_chosen.emit(entry.session)
        elif entry.labels is not None:
            self.open_labels(entry, entry.labels)
        else:
            self.load(partial(self.read, entry, entry.read_options(volume)), partial(self.fail, entry))

    def open_labels(self, entry: Entry, path: Path) -> None:
        """Read a file of labels in a job, and show it."""
        self.load(partial(self.read_labels, entry, path, self.scans()))

    def load(
        self, read: Callable[[NDArray | None], Loaded], on_error: Callable[[Exception], None] | None = None
    ) -> None:
        """Read layers in a job, and show them; read labels again if another scan has set the frame meanwhile.

        Args:
            read: called in the thread of the job with the frame of the viewer; returns the layers and warnings about
                them.
            on_error: called with the error of `read`; None to report it.
        """
        frame = self.frame()

        def show(loaded: Loaded) -> None:
            layers, _ = loaded
            has_labels = any(isinstance(layer, Labels) for layer in layers)
            if has_labels and not share_frame(layers, self.session.viewer.layers):
                self.load(read, on_error)
            else:
                self.show(loaded)

        self._loading += 1
        self.changed.emit()
        self.session.jobs.start(lambda _: read(frame), on_result=show, on_error=on_error, on_end=self._on_loaded)

    @property
    def is_loading(self) -> bool:
        """Return whether layers are being read."""
        return self._loading > 0

    def _on_loaded(self) -> None:
        self._loading -= 1
        self.changed.emit()

    def scans(self) -> list[Volume]:
        """Return the open scans, the selected one first."""
        layers = [layer for layer in [self.session.scan, *reversed(self.session.scans)] if layer is not None]
        return [volume for layer in dict.fromkeys(layers) if (volume := volume_of(layer)) is not None]

    def _on_inserted(self, scan: Layer) -> None:
        """Put a new scan below labels that were opened before it, and move those that belong to it onto its grid."""
        viewer = self.session.viewer
        if not isinstance(scan, Image) or volume_of(scan) is None:
            return
        for labels in [layer for layer in viewer.layers if isinstance(layer, Labels) and waits_for(layer, scan)]:
            if can_move(labels, scan):
                moved = on_scan(Snapshot.of(labels), scan)
                moved.visible, place = labels.visible, viewer.layers.index(labels)
                state_of(labels).mark_saved(state_of(labels).edits)  # the edits continue in the moved layer
                viewer.layers.remove(labels)
                viewer.layers.insert(place, moved)
            else:
                text = f"{labels.name} belongs to {scan.name} but lies on other voxels: see Resample in Structures."
                self.session.show_messages(Message("warning", text))
        covered = (layer for layer in self.session.segmentations if waits_for(layer, scan) or has_grid_of(layer, scan))
        lowest = min(map(viewer.layers.index, covered), default=len(viewer.layers))
        if lowest < viewer.layers.index(scan) and LayerInfo.require(scan).adopted is None:
            viewer.layers.move(viewer.layers.index(scan), lowest)

    def frame(self) -> NDArray | None:
        """Return the frame in which the next scan is shown; None without a scan."""
        return frame_of(self.session.viewer.layers)

    @staticmethod
    def read(entry: Entry, options: ReadOptions, frame: NDArray | None) -> Loaded:
        """Return the layers of a scan and warnings about it; slow, call outside the main thread.

        Raises:
            NapariSegError: the scan can't be read.
        """
        assert entry.scan is not None
        volume, number = entry.scan.read(**options), options.get("volume")
        if number is not None:
            volume = replace(volume, name=f"{volume.name}{VOLUME_MARK}{number}")
        layers = [layer_of(one) for one in image_layers(volume, frame)]
        return layers, tuple(gui_text_of(notice) for notice in volume.notices)

    @staticmethod
    def read_labels(entry: Entry, path: Path, scans: Sequence[Volume], frame: NDArray | None) -> Loaded:
        """Return the layers of a file of labels and warnings about it; slow, call outside the main thread.

        Contours have no voxels of their own: if their scan is not open, it is read too.

        Args:
            entry: row of the labels.
            path: file of the labels.
            scans: open scans, the selected one first.
            frame: frame of the viewer.

        Raises:
            NapariSegError: the file can't be read.
        """
        layers: list[Layer] = []
        warnings: tuple[str, ...] = ()
        is_open = scan_index(path, [scan.source.files for scan in scans]) is not None
        if kind_of(path) == "RTSTRUCT" and not is_open and entry.scan is not None:
            layers, warnings = StudyModel.read(replace(entry, labels=None), ReadOptions(one_slice=True), frame)
            volume = volume_of(layers[0])
            assert volume is not None
            scans, frame = [volume], frame_of(layers)
        found = read_labels(path, scans)
        name = entry.title if entry.scan_name else entry.verdict.name.partition(".")[0]
        layers += [layer_of(one) for one in label_layers(found, name, frame)]
        return layers, (*warnings, *(gui_text_of(notice) for notice in found.notices))

    def show(self, loaded: Loaded) -> None:
        """Add layers to the viewer, and move there if the visible point lies outside them."""
        layers, warnings = loaded
        viewer = self.session.viewer
        images = [layer for layer in layers if not isinstance(layer, Labels)]
        for layer in [*in_frame(images, self.frame()), *(one for one in layers if isinstance(one, Labels))]:
            viewer.add_layer(layer)  # another scan may have set the frame meanwhile
        if layers and not holds(layer, viewer.dims.point[-3:]):
            axes = range(viewer.dims.ndim - 3, viewer.dims.ndim)
            viewer.dims.set_point(axes, np.mean(layer.extent.world, axis=0))
            viewer.reset_view()
        self.session.show_messages(*(Message("warning", warning) for warning in warnings))

    def fail(self, entry: Entry, error: Exception) -> None:
        """Report why a scan could not be opened, and update its row."""
        if isinstance(error, ChoiceNeeded):  # a volume of a tilted series
            entry = self._replace(entry, replace(entry, is_tilted=True))
            self.session.show_messages(
                Message("warning", f"{entry.verdict.name} has a tilted gantry: it can be straightened.")
            )
        else:
            if isinstance(error, InputError) and not entry.volumes:
                verdict = replace(entry.verdict, verdict="refuse", code=error.code, message=error.message)
                self._replace(entry, replace(entry, verdict=verdict, is_tilted=False))
            self.session.show_messages(message_of(error))
        self.changed.emit()

    def _replace(self, entry: Entry, new: Entry) -> Entry:
        self.entries = [new if one is entry else one for one in self.entries]
        return new
