"""Protection of work: periodic copies of edits and prompts, and questions before a window with such work closes.

A guard lives as long as its window, also when the panel is closed. It asks if a user closes the window (its button,
Ctrl-W, Ctrl-Q) while labels are unsaved or long work runs (a training, a batch), and if a user closes only the panel
while long work runs. It does not ask if a program closes the viewer (`viewer.close()`) or if the window is hidden or
offscreen: then it writes copies, which the next panel offers, and long work stops in an orderly way.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari.layers import Labels
from qtpy.QtCore import QEvent, QObject, Qt, QTimer, Signal
from qtpy.QtGui import QCursor, QGuiApplication
from qtpy.QtWidgets import QApplication, QMessageBox

from napari_seg.errors import NapariSegError
from napari_seg.plugin.autosave import Autosave
from napari_seg.plugin.controls import ask_folder, deliver_on_timer, plain_tip
from napari_seg.plugin.job import Jobs
from napari_seg.plugin.labels_state import Snapshot, state_of, unsaved_in, with_unsaved_data_in
from napari_seg.plugin.messages import message_of
from napari_seg.plugin.napari_private import cancel_quit, main_window, qt_viewer_of
from napari_seg.plugin.structures.export import export, free_path

logger = logging.getLogger(__name__)

_WITHOUT_SCREEN = ("offscreen", "minimal", "minimalegl")

_NAMES_SHOWN = 8


def guard_of(viewer: Any) -> UnsavedGuard:
    """Return the guard of a viewer's window; create it if there is none."""
    window = main_window(viewer)
    guard = window.findChild(UnsavedGuard)
    return UnsavedGuard(viewer, window) if guard is None else guard


@dataclass(frozen=True)
class LongWork:
    """Work of the panel that stops when the panel is closed, and can be continued later.

    Attributes:
        title: question whether to stop it.
        text: what closing does to it; "{what}" stands for what is being closed.
        is_running: returns whether it runs.
        status: returns its status in words.
    """

    title: str
    text: str
    is_running: Callable[[], bool]
    status: Callable[[], str]


class UnsavedGuard(QObject):
    """Copy the edited labels of one viewer until they are saved, and ask before its window closes.

    Attributes:
        failed: emitted with the error if copies can't be written.
        restorable_changed: emitted when the copies that can be restored have changed.
        autosave: the copies.
        jobs: jobs that write copies; the program waits for them before it ends.
    """

    failed = Signal(object)
    restorable_changed = Signal()

    def __init__(self, viewer: Any, window: Any) -> None:
        super().__init__(window)
        self._viewer = weakref.ref(viewer)
        self._canvas = weakref.ref(qt_viewer_of(viewer))  # jobs hold this object and may outlive the window
        self.autosave = Autosave()
        self.jobs = Jobs(on_error=self.failed.emit)
        deliver_on_timer(self.jobs, self)
        self._long_works: tuple[LongWork, ...] = ()
        self._is_writing_copies = self._is_due_again = False
        self._on_written: list[Callable[[int], None]] = []
        self._is_ended_by_program = False
        self._is_answered = False
        self._timer = QTimer(self)
        self._timer.timeout.connect(lambda: self.write_copies())
        for watched in (window, qt_viewer_of(viewer)):
            watched.installEventFilter(self)
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._on_removed)
        for layer in viewer.layers:
            self._watch(layer)

    def write_copies_every(self, seconds: int) -> None:
        """Set the interval between two copies; 0 for no copies."""
        self._timer.stop()
        if seconds > 0:
            self._timer.start(1000 * seconds)

    def watch(self, *works: LongWork) -> None:
        """Ask before the window closes while one of these works runs."""
        self._long_works = works

    @property
    def unsaved(self) -> list[Labels]:
        """Return the layers with unsaved edits."""
        viewer = self._viewer()
        return [] if viewer is None else unsaved_in(viewer.layers)

    @property
    def _to_copy(self) -> list[Labels]:
        """Layers with unsaved edits or prompts."""
        viewer = self._viewer()
        return [] if viewer is None else with_unsaved_data_in(viewer.layers)

    def write_copies(self, on_written: Callable[[int], None] | None = None) -> None:
        """Write copies of edits that have none, in a background job; remove copies of labels that were saved.

        Args:
            on_written: called with the number of copies after those of the present edits were written.
        """
        if on_written is not None:
            self._on_written.append(on_written)
        if self._is_writing_copies:
            self._is_due_again = True  # otherwise the next copies would be two intervals apart
            return
        layers = self._to_copy
        if not layers:
            self._on_written.clear()
            self.autosave.remove_copies()
            return
        if due := self.autosave.due(layers):
            self._is_writing_copies = True
            waiting, self._on_written = self._on_written, []

            def end(count: int) -> None:
                for one in waiting:
                    one(count)

            self.jobs.start(lambda _: self.autosave.write_copies(due), on_result=end, on_end=self._on_copies_written)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # Qt's name
        """Ask before the window closes; write copies if nobody can be asked."""
        if event.type() != QEvent.Type.Close:
            return False
        if watched is self._canvas():  # napari closes the canvas first if a program closes the viewer
            self._is_ended_by_program = True
        elif watched is self.parent() and not self._is_answered and not self._may_close():
            event.ignore()
            cancel_quit(watched)
            return True
        return False

    def _may_close(self) -> bool:
        layers = self.unsaved
        can_ask = self._can_ask
        if can_ask and not self._may_stop_work("napari"):
            return False
        if layers and can_ask:
            answer, buttons = self._ask(layers), QMessageBox.StandardButton
            may_close = answer == buttons.Discard or (answer == buttons.SaveAll and self._save(layers))
            if may_close:
                self._discard_copies()
            return may_close
        try:
            if can_ask or not self._to_copy:  # a person who closes the window is done with prompts
                self.autosave.remove_copies()
            elif due := self.autosave.due(self._to_copy):
                self.autosave.write_copies(due)
        except NapariSegError as error:  # there is no panel to show it
            logger.warning("unsaved labels could not be copied: %s", error)
        return True

    @property
    def _can_ask(self) -> bool:
        has_screen = self.parent().isVisible() and QGuiApplication.platformName() not in _WITHOUT_SCREEN
        return has_screen and not self._is_ended_by_program

    def may_close_panel(self) -> bool:
        """Ask before the panel alone is closed while long work runs, because that stops it; return the answer."""
        return not self._can_ask or self._may_stop_work("the panel")

    def _may_stop_work(self, what: str) -> bool:
        """Ask whether long work that runs may be stopped; the panel stops it when it is closed.

        Args:
            what: what is being closed.
        """
        return all(self._may_stop(work, what) for work in self._long_works if work.is_running())

    def _may_stop(self, work: LongWork, what: str) -> bool:
        box = QMessageBox(QMessageBox.Icon.Question, work.title, "", parent=self.parent())
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setText(work.text.format(what=what))
        box.setInformativeText(work.status())
        buttons = QMessageBox.StandardButton
        box.setStandardButtons(buttons.Close | buttons.Cancel)
        box.setDefaultButton(buttons.Cancel)
        box.setEscapeButton(buttons.Cancel)
        return QMessageBox.StandardButton(box.exec()) == buttons.Close

    def _ask(self, layers: list[Labels]) -> QMessageBox.StandardButton:
        count = f"{len(layers)} layers have" if len(layers) > 1 else "1 layer has"
        names = [f"• {layer.name}" for layer in layers[:_NAMES_SHOWN]]
        if len(layers) > _NAMES_SHOWN:
            names.append(f"and {len(layers) - _NAMES_SHOWN} more")
        box = QMessageBox(QMessageBox.Icon.Warning, "Save corrections?", "", parent=self.parent())
        box.setTextFormat(Qt.TextFormat.PlainText)  # markup in a name could hide the question
        box.setText(f"{count} corrections that are not saved. They are lost if you discard them.")
        box.setInformativeText("\n".join(names))
        buttons = QMessageBox.StandardButton
        box.setStandardButtons(buttons.SaveAll | buttons.Discard | buttons.Cancel)
        box.setDefaultButton(buttons.SaveAll)
        box.setEscapeButton(buttons.Cancel)
        return QMessageBox.StandardButton(box.exec())

    def _save(self, layers: list[Labels]) -> bool:
        """Save layers as NIfTI in a folder that the user chooses; return whether all were saved."""
        folder = ask_folder(self.parent(), "Save all corrections in a folder")
        if folder is None:
            return False
        QApplication.setOverrideCursor(QCursor(Qt.CursorShape.WaitCursor))
        try:
            self._save_in(folder, layers)
        except Exception as error:  # after any exception Qt would close the window
            QApplication.restoreOverrideCursor()
            QMessageBox.warning(self.parent(), "Not saved", plain_tip(message_of(error).text))
            return False
        QApplication.restoreOverrideCursor()
        return True

    def _save_in(self, folder: Path, layers: list[Labels]) -> None:
        for layer in layers:
            snapshot = Snapshot.of(layer)
            export(snapshot, free_path(folder, layer, "nifti"), "nifti")
            state_of(layer).mark_saved(snapshot.edits)

    def _discard_copies(self) -> None:
        """Remove the copies and write none until the window is closed; if it stays open, they are written again.

        Copies of layers that were removed earlier stay, because the question did not name them.
        """
        self._is_answered = self.autosave.is_ended = True
        self.autosave.remove_copies()
        QTimer.singleShot(0, self._resume)

    def _resume(self) -> None:
        self._is_answered = self.autosave.is_ended = False

    # following the layers

    def _on_inserted(self, event: Any) -> None:
        self._watch(event.value)

    def _watch(self, layer: object) -> None:
        if isinstance(layer, Labels):
            state_of(layer).unsaved_changed.connect(self._on_unsaved_changed, unique=True)

    def _on_removed(self, event: Any) -> None:
        """Copy a layer that is removed with unsaved edits: napari can't undo its removal."""
        if self._is_answered or not unsaved_in([event.value]):
            return
        snapshot = Snapshot.of(event.value)
        self.jobs.start(
            lambda _: self.autosave.set_aside(snapshot),
            on_result=lambda _: self.restorable_changed.emit(),
            on_error=lambda error: logger.warning("a removed layer could not be copied: %s", error),
        )

    def _on_unsaved_changed(self, is_unsaved: bool) -> None:
        if not is_unsaved:  # immediately: labels that were saved must not be offered after a crash
            self.write_copies()

    def _on_copies_written(self) -> None:
        self._is_writing_copies, is_due_again, self._is_due_again = False, self._is_due_again, False
        if is_due_again:
            self.write_copies()
        elif not self._to_copy:  # all were saved meanwhile
            self.autosave.remove_copies()
