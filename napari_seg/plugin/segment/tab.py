"""The Segment tab in Qt: choose a model, read its card and the estimate, Run and Stop."""

import io
import re
from functools import partial

from napari.utils.progress import cancelable_progress
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QCheckBox, QComboBox, QDialog, QFormLayout, QLabel, QProgressBar, QVBoxLayout, QWidget
from superqt import QElidingLabel
from superqt.utils import signals_blocked

from napari_seg.plugin.controls import box, button, plain_tip, row, scrolled
from napari_seg.plugin.models.dialog import ModelsDialog
from napari_seg.plugin.models.model import ModelsModel
from napari_seg.plugin.models.questions import TrustDialog
from napari_seg.plugin.segment.choice import StructureChoice, choice_text
from napari_seg.plugin.segment.choice_dialog import StructuresDialog
from napari_seg.plugin.segment.model import DEVICES, MATCHES, SegmentModel
from napari_seg.plugin.segment.run import Run

_ESTIMATE_AFTER_MS = 600


class SegmentTab(QWidget):
    """Tab to choose a model, see the estimated cost, and run the model on the current scan."""

    def __init__(self, model: SegmentModel) -> None:
        super().__init__()
        self.model = model
        self._activity: cancelable_progress | None = None
        self._activity_run: Run | None = None
        self._models: ModelsDialog | None = None
        self._build()
        self._estimate_timer = QTimer(self, singleShot=True, interval=_ESTIMATE_AFTER_MS)
        self._estimate_timer.timeout.connect(self._estimate)
        model.changed.connect(self._refresh)
        model.session.jobs.delivered.connect(self._show_progress)
        self._refresh()

    def put_below_run(self, widget: QWidget) -> None:
        """Show a widget directly below Run and its progress."""
        layout = self.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.insertWidget(layout.indexOf(self._progress_bar) + 1, widget)

    def close_activity(self) -> None:
        """Remove the progress from napari's activity dock."""
        if self._activity is not None:
            self._activity.close()
            self._activity = None

    def close_dialogs(self) -> None:
        """Close the window *Models…* and all questions, which mean no then."""
        for dialog in self.findChildren(QDialog):
            dialog.reject()

    # building

    def _build(self) -> None:
        self._bundle_box = box("Models found on this computer.")
        self._models_button = button("Models…", "Search, install and remove models.", self.show_models)
        self._channel_boxes: dict[str, QComboBox] = {}
        self._card = QLabel(wordWrap=True, textFormat=Qt.TextFormat.RichText)
        self._card.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._card.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._trust_button = button("Trust this model…", "See its program code, and allow it to run.", self._on_trust)
        self._device_box = box("Where the network runs. Automatic uses a graphics card if there is one.")
        for key, text in DEVICES.items():
            self._device_box.addItem(text, key)
        self._structures_button = button("", "", self._on_structures)
        self._match_box = box(
            "Exact runs the model as its own program does. Fast takes fewer windows and skips the air around the body; "
            "labels change, mostly at borders. Automatic is exact for nnU-Net's and TotalSegmentator's models."
        )
        for key, text in MATCHES.items():
            self._match_box.addItem(text, key)
        self._confidence_box = QCheckBox("Confidence as a layer too")
        self._confidence_box.setToolTip(
            "Add the probability of each voxel's label, from the network; the layer is hidden at first. Clicks in the "
            "Edit tab use it too."
        )
        self._estimate_label = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._run_button = button("Run", "", self.model.start)
        self._stop_button = button(
            "Stop", "Stop this run and drop the queued ones; no layer is added.", self.model.stop
        )
        self._progress_label = QElidingLabel()
        self._progress_bar = QProgressBar(textVisible=False)

        self._form = form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", row(self._bundle_box, self._models_button))
        form.addRow("Structures", self._structures_button)
        form.addRow("Match", self._match_box)
        form.addRow("Device", self._device_box)
        form.addRow("", self._confidence_box)
        below = QWidget()
        texts = QVBoxLayout(below)  # texts of varying height lie below Run, which must not move under the mouse
        texts.setContentsMargins(0, 0, 0, 0)
        texts.addWidget(self._estimate_label)
        texts.addWidget(self._trust_button)
        texts.addWidget(self._card, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(row(self._run_button, self._stop_button))
        layout.addWidget(self._progress_label)
        layout.addWidget(self._progress_bar)
        layout.addWidget(scrolled(below), 1)
        self._bundle_box.currentIndexChanged.connect(self._on_bundle_chosen)
        self._device_box.currentIndexChanged.connect(self._on_device_chosen)
        self._match_box.currentIndexChanged.connect(lambda _: self.model.choose_match(self._match_box.currentData()))
        self._confidence_box.toggled.connect(self.model.choose_confidence)

    # from the user to the model

    def _on_bundle_chosen(self) -> None:
        self.model.choose_bundle(self._bundle_box.currentData())

    def _on_device_chosen(self) -> None:
        self.model.choose_device(self._device_box.currentData())

    def _on_structures(self) -> None:
        """Ask which structures the model looks for."""
        bundle = self.model.bundle
        assert bundle is not None
        choice = StructureChoice(bundle.segments, self.model.structures)
        question = StructuresDialog(choice, bundle.name, self)
        question.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        question.accepted.connect(lambda: self.model.choose_structures(choice.names))
        question.open()

    def _on_channel_chosen(self, channel: str, index: int) -> None:
        if index >= 0:
            self.model.choose_channel(channel, self._channel_boxes[channel].itemData(index))

    def show_models(self) -> None:
        """Open the window *Models…*."""
        if self._models is None:
            models = ModelsModel(self.model.session.jobs, lambda: self.model.folders)
            models.installed_changed.connect(self.model.reload_bundles)
            models.folder_listed.connect(self.model.add_bundle)
            self._models = ModelsDialog(models, self)
            self._models.chosen.connect(lambda bundle: self.model.reload_bundles(bundle.reference))
        self._models.show()
        self._models.raise_()
        self._models.activateWindow()

    def _on_trust(self) -> None:
        bundle, permission = self.model.bundle, self.model.permission
        assert bundle is not None
        assert permission is not None
        question = TrustDialog(bundle, permission, self)
        question.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        question.accepted.connect(partial(self.model.trust, bundle, permission))
        question.open()

    def _estimate(self) -> None:
        if self.isVisible():
            self.model.start_estimate()

    # from the model to the user

    def showEvent(self, event: object) -> None:  # Qt's name
        """Start an estimate when the tab becomes visible."""
        super().showEvent(event)
        self._refresh()

    def _refresh(self) -> None:
        model = self.model
        with signals_blocked(self._bundle_box):
            if [self._bundle_box.itemData(n) for n in range(self._bundle_box.count())] != model.bundles:
                self._bundle_box.clear()
                for bundle in model.bundles:
                    self._bundle_box.addItem(bundle.name, bundle)
            self._bundle_box.setCurrentIndex(model.bundles.index(model.bundle) if model.bundle else -1)
        with signals_blocked(self._device_box):
            self._device_box.setCurrentIndex(self._device_box.findData(model.options.device))
        self._refresh_choices()
        self._refresh_channels()
        self._card.setText(
            "".join(f"<p style='margin:2px'><b>{head}</b>: {_escaped(text)}</p>" for head, text in model.card)
        )
        self._trust_button.setVisible(model.permission is not None and model.permission.asks)
        obstacle, is_running = model.obstacle, model.run is not None
        self._run_button.setEnabled(not obstacle)
        self._run_button.setText("Run after this" if is_running else "Run")
        self._run_button.setToolTip(plain_tip(obstacle or "Segment the scan. The result is a new labels layer."))
        self._stop_button.setEnabled(is_running)
        self._progress_label.setVisible(is_running)
        self._progress_bar.setVisible(is_running)
        if self.isVisible() and model.needs_estimate:
            self._estimate_timer.start()
        self._estimate_label.setText(_breakable(obstacle or model.estimate_text))
        self._show_progress()

    def _refresh_choices(self) -> None:
        """Show what can be chosen for the selected model."""
        model = self.model
        for widget, is_offered in (
            (self._structures_button, model.offers_structures),
            (self._match_box, model.offers_match),
        ):
            widget.setVisible(is_offered)
            self._form.labelForField(widget).setVisible(is_offered)
        if model.bundle is not None:
            self._structures_button.setText(f"{choice_text(model.bundle.segments, model.structures)} …")
            tip = "Choose which structures are looked for; a few take less time."
            shown = ", ".join(model.structures[:20])
            self._structures_button.setToolTip(plain_tip("\n".join(filter(None, (shown, tip)))))
        with signals_blocked(self._match_box):
            self._match_box.setCurrentIndex(self._match_box.findData(model.options.match))

    def _refresh_channels(self) -> None:
        """Show one box for each channel of a model that needs several images."""
        channels, candidates = self.model.channels, self.model.channel_layers.candidates
        if list(self._channel_boxes) != list(channels):
            for combo in self._channel_boxes.values():
                self._form.removeRow(combo)
            self._channel_boxes = {name: box(f"The image that the model gets as {name}.") for name in channels}
            for number, (name, combo) in enumerate(self._channel_boxes.items(), start=1):
                combo.setPlaceholderText("choose an image")
                combo.currentIndexChanged.connect(partial(self._on_channel_chosen, name))
                self._form.insertRow(number, name, combo)  # below the model
        for name, combo in self._channel_boxes.items():
            with signals_blocked(combo):
                shown = [(combo.itemText(n), combo.itemData(n)) for n in range(combo.count())]
                if shown != [(layer.name, layer) for layer in candidates]:
                    combo.clear()
                    for layer in candidates:
                        combo.addItem(layer.name, layer)
                chosen = channels[name]
                combo.setCurrentIndex(-1 if chosen is None else candidates.index(chosen))

    def _show_progress(self) -> None:
        run = self.model.run
        if run is not self._activity_run:
            self._open_activity(run)
        if run is None or run.job is None:
            return
        progress = run.job.progress
        self._progress_bar.setRange(0, progress.total)
        self._progress_bar.setValue(progress.done)
        waiting = f" ({len(self.model.waiting)} waiting)" if self.model.waiting else ""
        self._progress_label.setText(f"{progress}{waiting}")
        if self._activity is not None:
            if self._activity.is_canceled:
                self.model.stop()
                return
            self._activity.total = progress.total
            self._activity.update(progress.done - self._activity.n)

    def _open_activity(self, run: Run | None) -> None:
        """Show the progress of a run in napari's activity dock; remove that of the run before."""
        self._activity_run = run
        self.close_activity()
        if run is not None:
            self._activity = cancelable_progress(total=0, desc=run.bundle.name, file=io.StringIO())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _breakable(text: str) -> str:
    """Return a text whose long names and paths may be broken into lines, so that none is cut off."""
    return re.sub(r"(?<=[/_\\])", "\u200b", text)
