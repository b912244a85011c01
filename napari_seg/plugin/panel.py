"""The main dock of the plugin: one panel with a tab for each step, from a study to a batch."""

from datetime import datetime
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
from napari.layers import Image
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QFormLayout, QFrame, QLabel, QTabWidget, QVBoxLayout, QWidget
from superqt.utils import signals_blocked

from napari_seg.plugin import shortcuts
from napari_seg.plugin.autosave import Unsaved
from napari_seg.plugin.batch.model import BatchModel
from napari_seg.plugin.batch.tab import BatchTab
from napari_seg.plugin.closing import LongWork, guard_of
from napari_seg.plugin.contrast import default_window, window_limits, window_names
from napari_seg.plugin.controls import box, button, deliver_on_timer, row
from napari_seg.plugin.docks import open_planes
from napari_seg.plugin.edit.model import EditModel
from napari_seg.plugin.edit.tab import EditTab
from napari_seg.plugin.layer_info import frame_of, share_frame
from napari_seg.plugin.learn.accept_section import AcceptButton
from napari_seg.plugin.learn.model import LearnModel
from napari_seg.plugin.learn.tab import LearnTab
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.napari_private import ask_before_closing, main_window, native_canvas, qt_viewer_of
from napari_seg.plugin.overlay import MarksOverlay
from napari_seg.plugin.planes.markers import OrientationMarkers
from napari_seg.plugin.planes.widget import LinkedPlanes
from napari_seg.plugin.preferences import preferences
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.segment.tab import SegmentTab
from napari_seg.plugin.session import Session, unwrapped
from napari_seg.plugin.session_file.model import SessionFileModel, Window
from napari_seg.plugin.session_file.widgets import MissingScans, open_file, set_settings, settings_of
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.plugin.structures.tab import StructuresTab
from napari_seg.plugin.study.model import StudyModel
from napari_seg.plugin.study.tab import StudyTab
from napari_seg.plugin.train.model import TrainModel
from napari_seg.plugin.train.tab import TrainTab
from napari_seg.plugin.views import views_of

_MARKS = {"info": "", "warning": "⚠ ", "error": "✕ "}


class Panel(QWidget):
    """The current scan and its intensity window, the tabs Study to Train, and messages."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:  # type: ignore[name-defined] # noqa: F821
        super().__init__()
        viewer, settings = unwrapped(napari_viewer), preferences()
        session = self.session = Session(viewer)
        deliver_on_timer(session.jobs, self)
        study = StudyModel(session)
        segmenting = SegmentModel(session, settings.bundle_folders, settings.options)
        structures, batch = StructuresModel(session), BatchModel(session)
        self.guard = guard_of(viewer)
        self.session_files = SessionFileModel(
            session,
            segmenting,
            Window(
                tab=lambda: self._titles()[self._tabs.currentIndex()],
                show_tab=self._show_titled,
                tools=lambda: settings_of(self.edit_tab),
                set_tools=lambda settings: set_settings(self.edit_tab, settings),
                has_planes=lambda: bool(main_window(viewer).findChildren(LinkedPlanes)),
                show_planes=open_planes,
                window_of=lambda layer: self._window_of(layer),
                set_window=self._set_window,
            ),
        )
        self._windows: WeakKeyDictionary[Image, tuple[str, tuple[float, ...]]] = WeakKeyDictionary()
        self.study_tab = StudyTab(study)
        study.session_chosen.connect(lambda path: open_file(self.session_files, path, self))
        self.segment_tab = SegmentTab(segmenting)
        self.structures_tab = StructuresTab(structures)
        editing = EditModel(session, structures)
        self.edit_tab = EditTab(editing)
        self.batch_tab = BatchTab(batch, segmenting, study)
        training = TrainModel(session, segmenting)
        self.train_tab = TrainTab(training)
        learning = LearnModel(session, structures, segmenting, batch, study)
        self.learn_tab = LearnTab(learning)
        self.structures_tab.layout().addWidget(AcceptButton(self.learn_tab.accept_section))
        self.edit_tab.layout().addWidget(AcceptButton(self.learn_tab.accept_section))
        self._build()
        session.changed.connect(self._refresh)
        structures.changed.connect(self._mark_unsaved)
        shortcuts.connect(structures)
        self.guard.write_copies_every(settings.keep_seconds)
        self.guard.failed.connect(self._report)
        self.guard.restorable_changed.connect(self._offer_unsaved)
        self._markers = OrientationMarkers.for_canvas(native_canvas(qt_viewer_of(viewer)), viewer)
        session.changed.connect(self._markers.refresh)
        MarksOverlay.for_canvas(qt_viewer_of(viewer), viewer, views_of(viewer))
        self._offer_unsaved()

        # Qt may delete this object before Python does; the models outlive both
        self._models = (editing, structures, session)
        models = self._models
        self.destroyed.connect(lambda: [model.close() for model in models])
        segmenting.result_added.connect(self._on_result)
        learning.accepting.asked.connect(lambda: self.show_tab(self.learn_tab))
        for trained in (training, learning.improving):
            trained.used.connect(lambda: self.show_tab(self.segment_tab))
        self.guard.watch(
            LongWork(
                "Stop the training?",
                "A training is running. Closing {what} saves and stops it; “Resume” in the Train tab continues it.",
                lambda: training.is_at_work,
                lambda: training.status,
            ),
            LongWork(
                "Stop the improvement?",
                "A model is being improved. Closing {what} saves and stops it; “Resume” in the Learn tab continues it.",
                lambda: learning.improving.is_at_work,
                lambda: learning.improving.status,
            ),
            LongWork(
                "Stop the batch?",
                "A batch is running. Closing {what} stops it; finished scans are kept, and “Continue” in the Batch tab "
                "runs the others.",
                lambda: batch.is_running,
                lambda: batch.status,
            ),
        )
        self._refresh()
        self._mark_unsaved()

    def show_tab(self, tab: QWidget) -> None:
        """Bring a tab to the front."""
        self._tabs.setCurrentWidget(tab)

    def _titles(self) -> list[str]:
        """Return the titles of the tabs, without marks."""
        return [self._tabs.tabText(n).partition(" •")[0] for n in range(self._tabs.count())]

    def _show_titled(self, title: str) -> None:
        if title in self._titles():
            self._tabs.setCurrentIndex(self._titles().index(title))

    def changeEvent(self, event: QEvent) -> None:  # Qt's name
        """Stop all jobs when napari closes the panel: it takes it out of its dock but does not destroy it."""
        super().changeEvent(event)
        if event.type() != QEvent.Type.ParentChange:
            return
        if (dock := self.parent()) is not None:
            ask_before_closing(dock, self.guard.may_close_panel)
        else:
            self.segment_tab.close_activity()
            self.segment_tab.close_dialogs()
            self.edit_tab.close_tools()
            for model in self._models:
                model.close()

    def _build(self) -> None:
        self._scan_box = box("The scan that all tabs use; follows the selected layer.")
        self._scan_box.setPlaceholderText("No scan is open")
        self._window_box = box("Intensity window: the values that are drawn black and white.")
        self._unsaved_label = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._unsaved_frame = QFrame()
        self._unsaved_frame.setFrameShape(QFrame.Shape.StyledPanel)
        unsaved = QVBoxLayout(self._unsaved_frame)
        unsaved.addWidget(self._unsaved_label)
        unsaved.addLayout(
            row(
                button("Restore", "Add the labels as layers again.", self._restore),
                button("Discard", "Delete the copies.", self._discard),
            )
        )
        self._tabs = QTabWidget()
        bar = self._tabs.tabBar()
        bar.setStyleSheet("QTabBar::tab { padding-left: 3px; padding-right: 3px; }")
        bar.setUsesScrollButtons(False)  # all tabs are in sight; in a narrow panel their titles are shortened
        bar.setElideMode(Qt.TextElideMode.ElideRight)
        for tab, title, tip in (
            (self.study_tab, "Study", "Open scans"),
            (self.segment_tab, "Segment", "Run a model on the scan"),
            (self.structures_tab, "Structures", "Volumes, names and export of the structures"),
            (self.edit_tab, "Edit", "Correct a structure"),
            (self.batch_tab, "Batch", "Run a model on many scans"),
            (self.train_tab, "Train", "Train a model"),
            (self.learn_tab, "Learn", "Accept cases, and improve a model with them"),
        ):
            self._tabs.setTabToolTip(self._tabs.addTab(tab, title), f"{title}: {tip}")
        self._message = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Scan", self._scan_box)
        form.addRow("Window", self._window_box)
        layout = QVBoxLayout(self)
        layout.addWidget(self._unsaved_frame)
        self._missing_scans = MissingScans(self.session_files)
        layout.addWidget(self._missing_scans)
        layout.addLayout(form)
        layout.addWidget(self._tabs, 1)
        self._tabs.currentChanged.connect(self._place_message)
        self._place_message()
        self.setMinimumWidth(300)
        self._scan_box.currentIndexChanged.connect(self._on_scan_chosen)
        self._window_box.currentIndexChanged.connect(self._on_window_chosen)
        self._tabs.setCurrentWidget(self.segment_tab if self.session.scans else self.study_tab)

    def _place_message(self) -> None:
        """Show messages directly below Run in the Segment tab, and below the tabs otherwise."""
        layout = self.layout()
        assert layout is not None
        if self._tabs.currentWidget() is self.segment_tab:
            self.segment_tab.put_below_run(self._message)
        else:
            layout.addWidget(self._message)

    # from the user to the session

    def _on_scan_chosen(self) -> None:
        if (layer := self._scan_box.currentData()) is not None:
            self.session.choose_scan(layer)

    def _on_window_chosen(self) -> None:
        scan, name = self.session.scan, self._window_box.currentText()
        if scan is not None and name:
            scan.contrast_limits = limits = window_limits(scan, name)
            self._windows[scan] = name, limits

    # from the session to the user

    def _refresh(self) -> None:
        session = self.session
        scans, scan = session.scans, session.scan
        with signals_blocked(self._scan_box):
            self._scan_box.clear()
            for layer in scans:
                self._scan_box.addItem(layer.name, layer)
            self._scan_box.setCurrentIndex(scans.index(scan) if scan in scans else -1)
        self._scan_box.setEnabled(bool(scans) and self.segment_tab.model.run is None)
        self._refresh_window()
        lines = [_MARKS[message.kind] + message.text for message in session.messages]
        self._message.setText("\n".join(lines))
        self._message.setVisible(bool(lines))

    def _refresh_window(self) -> None:
        scan = self.session.scan
        self._window_box.setEnabled(scan is not None)
        self._window_box.setPlaceholderText("" if scan is None else "Set by hand")
        with signals_blocked(self._window_box):
            self._window_box.clear()
            if scan is None:
                return
            self._window_box.addItems(window_names(scan))
            self._window_box.setCurrentIndex(self._window_box.findText(self._window_of(scan)))

    def _window_of(self, scan: Image) -> str:
        """Return the name of the display window of a scan; "" if the limits were set by hand."""
        limits = tuple(float(limit) for limit in scan.contrast_limits)
        name, known = self._windows.setdefault(scan, (default_window(scan), limits))
        return name if np.allclose(known, limits) else ""

    def _set_window(self, scan: Image, name: str) -> None:
        """Set the name of the display window of a scan whose limits are set; "" if they were set by hand."""
        known = name if name in window_names(scan) else ""
        self._windows[scan] = known, tuple(float(limit) for limit in scan.contrast_limits)

    def _on_result(self) -> None:
        if not self.session.is_painting:
            self.show_tab(self.structures_tab)

    def _mark_unsaved(self) -> None:
        mark = " •" if self.guard.unsaved else ""
        self._tabs.setTabText(self._tabs.indexOf(self.structures_tab), f"Structures{mark}")

    # unsaved work

    def _report(self, error: Exception) -> None:
        self.session.show_messages(message_of(error))

    def _offer_unsaved(self) -> None:
        self._offered = offered = next(iter(self.guard.autosave.left_behind()), None)
        self._unsaved_frame.setVisible(offered is not None)
        if offered is not None:
            when = datetime.fromtimestamp(offered.when).strftime("%d %B, %H:%M")
            is_removed = offered.is_removed
            reason = "Removed with unsaved corrections" if is_removed else "napari ended with unsaved corrections"
            self._unsaved_label.setText(f"{reason} ({when}): {', '.join(offered.names)}")

    def _restore(self) -> None:
        unsaved = self._offered
        if unsaved is None or not unsaved.folder.exists():
            text = "These copies are gone: another window has restored or discarded them."
            self.session.show_messages(Message("warning", text))
            self._offer_unsaved()
            return
        self._unsaved_frame.setEnabled(False)
        frame = frame_of(self.session.viewer.layers)
        restored = partial(self._on_restored, unsaved)
        end = partial(self._unsaved_frame.setEnabled, True)
        self.session.jobs.start(lambda _: unsaved.read(frame), on_result=restored, on_end=end)

    def _on_restored(self, unsaved: Unsaved, layers: list) -> None:
        if not share_frame(layers, self.session.viewer.layers):
            self._restore()
            return
        for layer in layers:
            self.session.viewer.add_layer(layer)
        self.show_tab(self.structures_tab)
        self.session.show_messages(
            Message("info", "Restored. Open the scan too, to see the labels on it; then save them.")
        )

        def on_written(count: int) -> None:
            unsaved.discard()  # not before this process has a copy of its own
            self._offer_unsaved()

        self.guard.write_copies(on_written)

    def _discard(self) -> None:
        if self._offered is not None:
            self._offered.discard()
        self._offer_unsaved()
