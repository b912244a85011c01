"""The Edit tab in a real napari window: needs a screen, or Xvfb."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import found_in
from napari.layers import Labels
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt, QTimer
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QInputDialog, QLabel, QPushButton

from napari_seg.editing.interactive_network import NnInteractive
from napari_seg.geometry import Grid
from napari_seg.plugin import commands
from napari_seg.plugin.autosave import FOLDER_VARIABLE
from napari_seg.plugin.edit import tool_box
from napari_seg.plugin.edit.keys import KEYS
from napari_seg.plugin.edit.network_dialog import NetworkDialog
from napari_seg.plugin.edit.tab import EditTab
from napari_seg.plugin.labels_state import state_of
from napari_seg.plugin.layer_info import frame_of
from napari_seg.plugin.layers import image_layers, labels_layer, layer_of
from napari_seg.plugin.napari_private import native_canvas, qt_viewer_of
from napari_seg.plugin.overlay import MarksOverlay
from napari_seg.plugin.panel import Panel
from napari_seg.plugin.placement import place
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.views import views_of
from napari_seg.volume import Segment, Segmentation, Volume

pytestmark = pytest.mark.window


@pytest.fixture
def viewer(make_napari_viewer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "unsaved"))
    monkeypatch.setattr(SegmentModel, "start_estimate", lambda self: None)
    viewer = make_napari_viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    return viewer


@pytest.fixture
def panel(viewer: Any, head: Volume) -> Panel:
    panel = commands.panel()
    (scan,) = (layer_of(one) for one in image_layers(head))
    viewer.add_layer(scan)
    found = found_in(head)
    viewer.add_layer(layer_of(labels_layer(found, place(head.grid), "found")))
    viewer.layers["found"].selected_label = 3
    panel.show_tab(panel.edit_tab)
    return panel


@pytest.fixture
def tab(panel: Panel) -> EditTab:
    return panel.edit_tab


def canvas_and_pixel(viewer: Any, voxel: Any, layer: Labels) -> tuple[Any, QPoint]:
    """Return the canvas of a viewer, and where a voxel lies in it."""
    qt_viewer = qt_viewer_of(viewer)
    world = np.array(voxel) * layer.scale + layer.translate
    scene = qt_viewer.canvas.view.scene
    x, y = scene.node_transform(qt_viewer.canvas._scene_canvas.scene).map(world[list(viewer.dims.order[:0:-1])])[:2]
    return native_canvas(qt_viewer), QPoint(int(x), int(y))


def drag(
    viewer: Any, voxels: list, layer: Labels, button: Any = Qt.MouseButton.LeftButton, modifiers: Any = None
) -> None:
    """Press at the first voxel, move over the others, and release."""
    modifiers = Qt.KeyboardModifier.NoModifier if modifiers is None else modifiers
    canvas, pixel = canvas_and_pixel(viewer, voxels[0], layer)
    QTest.mouseMove(canvas, pixel)
    QTest.mousePress(canvas, button, modifiers, pixel)
    for voxel in voxels[1:]:
        _, pixel = canvas_and_pixel(viewer, voxel, layer)
        place = QPointF(pixel), QPointF(canvas.mapToGlobal(pixel))
        QApplication.sendEvent(
            canvas, QMouseEvent(QEvent.Type.MouseMove, *place, Qt.MouseButton.NoButton, button, modifiers)
        )
        QTest.qWait(20)  # napari reads a few moves a second
    QTest.mouseRelease(canvas, button, modifiers, pixel)
    QTest.qWait(20)


def press(viewer: Any, key: Any, modifiers: Any = None) -> None:
    QTest.keyClick(
        native_canvas(qt_viewer_of(viewer)), key, Qt.KeyboardModifier.NoModifier if modifiers is None else modifiers
    )


def test_a_button_previews_and_keys_apply_and_undo(viewer: Any, tab: EditTab, qtbot: Any) -> None:
    layer, model = viewer.layers["found"], tab.model
    before = layer.data.copy()
    assert not tab._apply_button.isEnabled()
    tab._size_box.setValue(4.0)
    tab._operation_buttons["dilate"].click()
    qtbot.waitUntil(lambda: model.preview is not None, timeout=20_000)
    qtbot.waitUntil(lambda: tab._preview_label.text().startswith("Dilate: +"), timeout=5_000)
    assert tab._apply_button.isEnabled()
    np.testing.assert_array_equal(layer.data, before)
    press(viewer, Qt.Key.Key_Return)
    assert model.preview is None
    assert (layer.data == 3).sum() > (before == 3).sum()
    press(viewer, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(layer.data, before)
    press(viewer, Qt.Key.Key_D)  # as its key does
    qtbot.waitUntil(lambda: model.preview is not None, timeout=20_000)
    press(viewer, Qt.Key.Key_Escape)
    assert model.preview is None
    np.testing.assert_array_equal(layer.data, before)
    assert "Enter" not in {str(key) for key in layer.keymap}  # napari's polygon has its keys again


def test_tools_in_the_main_canvas_and_in_a_linked_plane(viewer: Any, tab: EditTab, qtbot: Any) -> None:
    planes = commands.linked_planes()
    qtbot.waitUntil(lambda: len(planes.views) == 2, timeout=20_000)
    QTest.qWait(500)  # the planes fit their layers
    layer, model = viewer.layers["found"], tab.model
    before = layer.data.copy()
    i, j, k = (int(n) for n in np.argwhere(before == 3).mean(axis=0))
    viewer.dims.set_point(range(3), layer.data_to_world((i, j, k)))
    press(viewer, Qt.Key.Key_A)
    assert tab.tools.tool == "lasso"
    assert tab.tool_box.buttons["lasso"].isChecked()
    zoom, center = viewer.scene.camera.zoom, tuple(viewer.scene.camera.center)
    drag(viewer, [(i, j - 3, k - 3), (i, j + 3, k - 3), (i, j + 3, k + 3), (i, j - 3, k + 3)], layer)
    qtbot.waitUntil(lambda: model.preview is not None, timeout=20_000)
    assert (viewer.scene.camera.zoom, tuple(viewer.scene.camera.center)) == (zoom, center)
    plane = planes.views["coronal"].viewer
    shown = MarksOverlay.for_canvas(planes.views["coronal"].qt_viewer, plane, views_of(viewer))
    assert shown._areas.visible
    press(plane, Qt.Key.Key_Return)
    assert (layer.data == 3).sum() < (before == 3).sum()
    assert not shown._areas.visible
    press(plane, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(layer.data, before)

    press(plane, Qt.Key.Key_I)
    assert tab.tools.tool == "click"
    drag(plane, [(i, j, k)], layer)
    drag(viewer, [(i, j, k + 2)], layer, Qt.MouseButton.RightButton)
    drag(viewer, [(i, j, k + 3)], layer, modifiers=Qt.KeyboardModifier.AltModifier)
    assert model.prompts_text == "1 include, 2 exclude"
    assert tab.tool_box._prompts_label.text() == "1 include, 2 exclude"
    press(viewer, Qt.Key.Key_Backspace)
    assert model.prompts_text == "1 include, 1 exclude"
    press(viewer, Qt.Key.Key_Escape)
    assert model.prompts.is_empty
    press(viewer, Qt.Key.Key_Escape)
    assert tab.tools.tool is None


def test_a_stroke_of_the_threshold_brush_is_one_step(viewer: Any, tab: EditTab) -> None:
    layer = viewer.layers["found"]
    layer.data[...] = 0
    press(viewer, Qt.Key.Key_T)
    assert str(layer.mode) == "paint"
    image = tab.model.session.image_on(layer)
    assert image is not None
    i = layer.data.shape[0] // 2
    viewer.dims.set_point(0, layer.data_to_world((i, 0, 0))[0])
    j, k = np.argwhere((image[i] > 400) & (image[i] < 440))[20]
    steps = len(layer._undo_history)
    drag(viewer, [(i, j, k), (i, j + 2, k), (i, j + 4, k)], layer)
    painted = layer.data == 3
    assert painted.any()
    assert ((image[painted] >= tab.tools.low) & (image[painted] <= tab.tools.high)).all()
    assert len(layer._undo_history) == steps + 1
    assert tab.tool_box._low_box.value() == pytest.approx(tab.tools.low, abs=0.1)


def test_a_range_is_as_fine_as_the_values_of_the_image(viewer: Any, tab: EditTab) -> None:
    scan = viewer.layers[0]
    tab.tools.choose("grow")
    low, high = tab.tool_box._low_box, tab.tool_box._high_box
    assert low.decimals() == high.decimals() <= 2
    scan.contrast_limits = scan.contrast_limits_range = (0.0, 1.0)  # as of a normalised one
    tab.tools.low, tab.tools.high = 0.42341234, 0.58
    tab.tools.changed.emit()
    assert low.value() == pytest.approx(0.4234)
    assert low.singleStep() == pytest.approx(0.01)
    high.setValue(0.6)
    assert (tab.tools.low, tab.tools.high) == (0.42341234, 0.6)
    assert not tab.tools.is_automatic
    low.setValue(0.5)
    assert (tab.tools.low, tab.tools.high) == (0.5, 0.6)


def test_the_cheat_sheet_lists_every_key(viewer: Any, tab: EditTab) -> None:
    press(viewer, Qt.Key.Key_H, Qt.KeyboardModifier.ShiftModifier)
    assert tab._sheet is not None
    assert tab._sheet.isVisible()
    text = "".join(label.text() for label in tab._sheet.findChildren(type(tab._preview_label)))
    for key in KEYS.values():
        assert key.text.split(":")[0] in text
    for other in ("Accept the selected labels", "Go to the next structure", "Go to the previous structure"):
        assert other in text
    tab._question_mark.activated.emit()
    assert not tab._sheet.isVisible()


def test_a_structure_from_nothing(viewer: Any, tab: EditTab, qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer.layers.remove(viewer.layers["found"])
    monkeypatch.setattr(QInputDialog, "getText", lambda *_: ("liver", True))
    tab._new_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=20_000)
    assert tab._structure_box.currentText() == "liver"
    assert viewer.layers[-1].name.endswith(" - labels")


def test_the_tab_fits_a_narrow_panel(tab: EditTab) -> None:
    tab.resize(276, 700)
    for tool in tab.tool_box.buttons:
        tab.tool_box.buttons[tool].click()
        QApplication.processEvents()
        assert tab.minimumSizeHint().width() <= 276
        body = tab.tool_box.parentWidget()
        assert body.minimumSizeHint().width() <= 262, tool
    tab.tools.choose(None)
    tab.resize(276, 700)
    QApplication.processEvents()
    for widget in tab.findChildren(QPushButton):
        if widget.isVisible():
            assert widget.width() >= widget.fontMetrics().horizontalAdvance(widget.text()) + 8, widget.text()


class FakeNetwork:
    """Stands in for a server: finds the positive voxels and nothing else."""

    name = NnInteractive.name
    licence = NnInteractive.licence
    server_licence = "Apache-2.0 <b>"
    connected: ClassVar[list[tuple[str, bool, str, bool]]] = []

    def __init__(self, server: str, *, licence_accepted: bool, api_key: str = "", unencrypted: bool = False) -> None:
        self.connected.append((server, licence_accepted, api_key, unencrypted))

    @staticmethod
    def is_available() -> bool:
        return True

    def set_image(self, image: Any) -> None:
        pass

    def find(self, prompts: Any, structure: Any) -> Any:
        return np.zeros_like(structure)

    def close(self) -> None:
        self.connected.clear()


def test_a_network_is_used_after_its_licence_is_accepted(
    tab: EditTab, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab.tools.choose("click")
    box = tab.tool_box
    assert box._method_line.isHidden()  # its client is not installed
    monkeypatch.setattr(tool_box, "NnInteractive", FakeNetwork)
    box.refresh()
    assert not box._method_line.isHidden()
    choose = box._method_box.activated.emit
    monkeypatch.setattr(NetworkDialog, "exec", lambda self: 1)
    choose(1)  # confirmed without the licence
    assert tab.model.network is None
    assert FakeNetwork.connected == []
    assert box._method_box.currentIndex() == 0

    def accept(dialog: NetworkDialog) -> int:
        texts = " ".join(label.text() for label in dialog.findChildren(QLabel))
        assert "CC BY-NC-SA" in texts
        assert "sent to this server" in texts
        assert not dialog.ok.isEnabled()
        dialog.accepted_box.setChecked(True)
        assert dialog.ok.isEnabled()
        dialog.server.setText("http://gpu-box:9")
        assert not dialog.unencrypted_box.isChecked()
        dialog.unencrypted_box.setChecked(True)
        return 1

    monkeypatch.setattr(NetworkDialog, "exec", accept)
    choose(1)
    qtbot.waitUntil(lambda: tab.model.network is not None, timeout=5_000)
    assert FakeNetwork.connected == [("http://gpu-box:9", True, "", True)]
    qtbot.waitUntil(lambda: not box._licence_label.isHidden(), timeout=5_000)
    assert box._licence_label.text() == "Licence of the server's weights: Apache-2.0 <b>"
    tab.model.add_prompt(np.array([0, 0, 0]))
    qtbot.waitUntil(lambda: tab.model.preview is not None, timeout=20_000)
    assert tab.model.preview is not None
    assert tab.model.preview.added == 1
    choose(0)
    qtbot.waitUntil(lambda: FakeNetwork.connected == [], timeout=5_000)
    assert tab.model.network is None
    assert box._licence_label.isHidden()


def test_closing_the_panel_removes_tools_and_keys(viewer: Any, tab: EditTab, qtbot: Any) -> None:
    tab.tool_box.buttons["brush"].click()
    layer = viewer.layers["found"]
    assert "_apply_mask_to_data" in layer.__dict__
    callbacks = len(viewer.mouse_drag_callbacks)
    viewer.window.remove_dock_widget("all")
    assert "_apply_mask_to_data" not in layer.__dict__
    assert len(viewer.mouse_drag_callbacks) == callbacks - 1
    press(viewer, Qt.Key.Key_G)  # no error


def test_the_window_never_blocks(viewer: Any, qtbot: Any) -> None:
    panel = commands.panel()
    grid = Grid((256, 256, 256), np.diag([-1.0, 1.0, 1.0, 1.0]))
    noise = np.random.default_rng(0).normal(100, 20, grid.shape).astype(np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    labels[60:160, 60:160, 60:160] = 1  # a million voxels
    (scan,) = (layer_of(one) for one in image_layers(Volume(noise[None], grid, name="noise")))
    viewer.add_layer(scan)
    segmentation = Segmentation(labels, grid, (Segment(1, "cube", (255, 0, 0)),))
    viewer.add_layer(layer_of(labels_layer(segmentation, place(grid, frame_of(viewer.layers)), "cube")))
    tab, layer = panel.edit_tab, viewer.layers["cube"]
    panel.show_tab(tab)
    layer.selected_label = 1
    QTest.qWait(1500)
    beats: list[float] = []
    timer = QTimer(tab)
    timer.timeout.connect(lambda: beats.append(time.monotonic()))
    timer.start(10)
    qtbot.wait(1000)
    idle = max(np.diff(beats))  # how busy the machine is with other things
    beats.clear()
    for name in ("dilate", "smooth", "fill_holes", "keep_largest"):
        tab.model.run(name)
        qtbot.waitUntil(lambda: tab.model.job is None, timeout=60_000)
        tab.model.apply()
        QTest.qWait(50)
    assert [action.name for action in state_of(layer).actions] == ["Dilate", "Smooth"]
    timer.stop()
    gaps = np.sort(np.diff(beats))
    assert gaps[-3] < 0.2 + idle, gaps[-5:]  # a busy machine may miss one
    assert gaps[-1] < 1 + idle
