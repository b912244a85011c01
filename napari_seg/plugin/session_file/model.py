"""Save the work of a viewer as one file and open it again, in jobs; without Qt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_seg.errors import OutputError, counted, listed
from napari_seg.formats.archive import origin
from napari_seg.plugin.job import Job
from napari_seg.plugin.layer_info import frame_of, infos_of, share_frame
from napari_seg.plugin.messages import Message, gui_text_of, message_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.session_file.chosen_model import find_model
from napari_seg.plugin.session_file.content import SavedPanel, ScanLayer
from napari_seg.plugin.session_file.endings import ENDING, is_session_file
from napari_seg.plugin.session_file.names import opened_name
from napari_seg.plugin.session_file.restore import (
    OpenedSession,
    missing_error,
    open_session,
    put_in_order,
    read_scans,
    set_view,
    show,
)
from napari_seg.plugin.session_file.save import SaveResult, save
from napari_seg.plugin.session_file.take import take

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_seg.bundles.spec import Bundle
    from napari_seg.plugin.segment.model import SegmentModel


@dataclass(frozen=True)
class Window:
    """What a window adds to the work of a viewer.

    Attributes:
        tab: returns the title of the front tab.
        show_tab: brings a tab to the front.
        tools: returns the settings of the tools.
        set_tools: sets the settings of the tools.
        has_planes: returns whether the linked planes are open.
        show_planes: opens the linked planes.
        window_of: returns the name of the display window of a scan.
        set_window: sets the name of the display window of a scan, whose limits are already set.
    """

    tab: Callable[[], str] = lambda: ""
    show_tab: Callable[[str], object] = lambda title: None
    tools: Callable[[], dict[str, bool | float]] = dict
    set_tools: Callable[[Mapping[str, bool | float]], object] = lambda settings: None
    has_planes: Callable[[], bool] = lambda: False
    show_planes: Callable[[], object] = lambda: None
    window_of: Callable[[Image], str] = lambda layer: ""
    set_window: Callable[[Image, str], object] = lambda layer, name: None


class SessionFileModel:
    """Session file of one viewer. While one file is written or read, another one is refused: their results would mix.

    Args:
        session: layers and messages of the viewer.
        segmenting: the selected model.
        window: what the window adds.

    Attributes:
        changed: emitted when a job begins or ends.
        opened: emitted after the layers of a session were added.
        path: file that was saved or opened last; None before.
    """

    changed = Signal()
    opened = Signal()

    def __init__(self, session: Session, segmenting: SegmentModel, window: Window | None = None) -> None:
        self.session = session
        self._segmenting = segmenting
        self._window = window or Window()
        self.path: Path | None = None
        self._running = 0
        self._opened: OpenedSession | None = None

    @property
    def is_busy(self) -> bool:
        """Return whether a file is being written or read."""
        return self._running > 0

    def _is_refused(self) -> bool:
        """Return whether there is no room for another job, and say so."""
        if self.is_busy:
            text = "A session is being saved or opened. Wait until that has ended, and try again."
            self.session.show_messages(Message("warning", text))
        return self.is_busy

    @property
    def missing(self) -> int:
        """Number of scans of the opened session that were not found; `find_missing` searches another folder."""
        return 0 if self._opened is None else len(self._opened.missing)

    @property
    def suggested_path(self) -> Path:
        """File to suggest for saving: the last one, otherwise one next to the first scan."""
        if self.path is not None:
            return self.path
        files = [file for info in infos_of(self.session.viewer.layers) for file in info.scan.files]
        folder = origin(files[0].absolute()).parent if files else Path.home()
        return folder / f"session{ENDING}"

    # saving

    def save(self, path: Path) -> None:
        """Save the work of the viewer in a job; it is taken now, and may be changed while it is written.

        A session with labels that could not be opened is not replaced: they would be lost.
        """
        if self._is_refused():
            return
        path = path if is_session_file(path) else path.with_name(path.name + ENDING)
        window, opened = self._window, self._opened
        if opened is not None and opened.unread_names and path.resolve() == opened.path.resolve():
            names = ", ".join(opened.unread_names[:5])
            text = f"{path.name} holds layers that could not be opened ({names}) and would be lost; choose another name"
            self.session.show_messages(message_of(OutputError("session.incomplete", text)))
            return
        if opened is not None and not any(layer in self.session.viewer.layers for layer in opened.layers.values()):
            opened = None  # nothing of it is open any more
        taken = take(self.session.viewer, has_planes=window.has_planes(), window_of=window.window_of)
        bundle = self._segmenting.bundle
        adds_confidence = self._segmenting.adds_confidence
        panel = SavedPanel(tab=window.tab(), tools=window.tools(), adds_confidence=adds_confidence)
        self.session.show_messages(Message("info", "Saving the session …"))
        self._start(lambda job: save(taken, panel, bundle, path, job.check, opened), partial(self._on_saved, path))

    def _on_saved(self, path: Path, result: SaveResult) -> None:
        result.mark_saved()
        self.path = path
        text = "Scans are referred to, not copied."
        if result.copied:
            text = f"It holds the voxels of {listed(result.copied)}, because no file does; others are referred to."
        messages = [Message("info", f"Saved the session: {path.name}. {text}")]
        if result.left_out:
            names = ", ".join(result.left_out[:5]) + (" …" if len(result.left_out) > 5 else "")
            messages.insert(
                0, Message("warning", f"Not in the session file: {names}. Save these layers by themselves.")
            )
        self.session.show_messages(*messages, lasting=True)
        self.session.viewer.status = messages[-1].text

    # opening

    def open(self, path: Path, *, replaces: bool = False) -> None:
        """Open a session file in a job.

        Args:
            path: session file.
            replaces: remove all layers first, after the file was read; unsaved edits of these can be restored.
        """
        if not self._is_refused():
            self._open(path, replaces)

    def _open(self, path: Path, replaces: bool = False) -> None:
        viewer = self.session.viewer
        frame = None if replaces else frame_of(viewer.layers)
        self.session.show_messages(Message("info", f"Opening {path.name} …"))
        bundles = tuple(self._segmenting.bundles)

        def work(job: Job) -> tuple[OpenedSession, Bundle | None, str]:
            opened = open_session(path, frame, job.check)
            return opened, *find_model(opened.content.panel.model, bundles, opened.content.salt)

        self._start(work, lambda result: self._on_opened(replaces, *result))

    def _on_opened(self, replaces: bool, opened: OpenedSession, bundle: Bundle | None, warning: str) -> None:
        viewer = self.session.viewer
        if replaces:
            viewer.layers.clear()
        if not share_frame(opened.layers.values(), viewer.layers):
            self._open(opened.path)
            return
        sets_view = not viewer.layers
        show(opened, viewer, sets_view=sets_view)
        self._show_windows(opened)
        self._opened, self.path = opened, opened.path
        panel = opened.content.panel
        messages = [Message("warning", warning)] if warning and sets_view else []
        if sets_view:
            if bundle is not None:
                self._segmenting.choose_bundle(bundle)
            self._segmenting.choose_confidence(panel.adds_confidence)
            self._window.set_tools(panel.tools)
            self._window.show_tab(panel.tab)
            if opened.content.view.has_planes:
                self._window.show_planes()
        self._report(opened, messages)
        self.opened.emit()

    def find_missing(self, folder: Path) -> None:
        """Search the scans that were not found in another folder and below, in a job."""
        if not self._is_refused():
            self._find_missing(folder)

    def _find_missing(self, folder: Path) -> None:
        assert self._opened is not None
        opened = replace(self._opened, layers={}, volumes=dict(self._opened.volumes), notices=[], faults=[])
        numbers, frame = opened.missing, frame_of(self.session.viewer.layers)
        self.session.show_messages(Message("info", f"Searching {folder} …"))
        frame = opened.content.frame_array() if frame is None else frame
        self._start(
            lambda job: read_scans(opened, folder, numbers, frame, job.check),
            lambda _: self._on_found(opened, folder),
        )

    def _on_found(self, opened: OpenedSession, folder: Path) -> None:
        """Add scans that were found later at their places, and name the labels after them."""
        assert self._opened is not None
        if not share_frame(opened.layers.values(), self.session.viewer.layers):
            self._find_missing(folder)
            return
        viewer, first = self.session.viewer, self._opened
        old_names, was_empty = first.scan_names, not viewer.layers
        first.volumes |= opened.volumes
        first.missing = opened.missing
        for layer in opened.layers.values():
            viewer.add_layer(layer)
        first.layers |= opened.layers
        present = [first.layers[n] for n in sorted(first.layers) if first.layers[n] in viewer.layers]
        put_in_order(viewer, present, min(map(viewer.layers.index, present), default=0))
        for number, saved in enumerate(first.content.layers):
            layer = first.layers.get(number)
            if layer is not None and not isinstance(saved, ScanLayer):
                was = opened_name(saved.name, old_names, layer.name)
                if layer.name == was:
                    layer.name = opened_name(saved.name, first.scan_names, layer.name)
        if was_empty:
            set_view(first.content, viewer)
        self._show_windows(opened)
        self._report(opened, [])

    def _show_windows(self, opened: OpenedSession) -> None:
        for number, saved in enumerate(opened.content.layers):
            if isinstance(saved, ScanLayer) and (layer := opened.layers.get(number)) is not None:
                self._window.set_window(layer, saved.window)
        self.session.changed.emit()

    def _report(self, opened: OpenedSession, messages: list[Message]) -> None:
        """Show what was not found or has changed, the most serious last, where it is read first."""
        faults = [*opened.faults, *([missing_error(opened)] if opened.missing else [])]
        count = len(opened.layers)
        done = Message("info", f"Opened {opened.path.name}: {counted(count, 'layer')}.")
        notices = [Message("warning", gui_text_of(notice)) for notice in opened.notices]
        self.session.show_messages(done, *messages, *notices, *map(message_of, faults), lasting=True)

    def _start(self, work: Callable[[Job], object], on_result: Callable[..., object]) -> None:
        self._running += 1
        self.changed.emit()
        self.session.jobs.start(work, on_result=on_result, on_end=self._on_end)

    def _on_end(self) -> None:
        self._running -= 1
        self.changed.emit()
