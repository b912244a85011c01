"""Sessions in a real napari window: saved, the window closed, and opened in another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_seg.geometry import Grid
from napari_seg.plugin import commands
from napari_seg.plugin.autosave import FOLDER_VARIABLE
from napari_seg.plugin.labels_state import state_of
from napari_seg.plugin.layer_info import placement_of, volume_of
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.napari_private import main_window
from napari_seg.plugin.panel import Panel
from napari_seg.plugin.placement import PLANES
from napari_seg.plugin.planes.widget import LinkedPlanes
from napari_seg.plugin.session_file import widgets
from napari_seg.plugin.session_file.widgets import set_settings, settings_of
from napari_seg.volume import Segment, Segmentation, Volume

pytestmark = pytest.mark.window

SEGMENTS = (Segment(1, "left ball", (255, 0, 0)), Segment(3, "nose", (0, 128, 255)))


@pytest.fixture
def new_window(
    make_napari_viewer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[], tuple[Any, Panel]]]:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "unsaved"))

    def open_window() -> tuple[Any, Panel]:
        viewer = make_napari_viewer(show=True)
        _, widget = viewer.window.add_plugin_dock_widget("napari-seg", "Segmentation")
        assert isinstance(widget, Panel)
        return viewer, widget

    return open_window


def with_labels(viewer: Any) -> Any:
    """Add labels of the first scan, and return their layer."""
    image = viewer.layers[0]
    volume = volume_of(image)
    assert volume is not None
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[volume.array[0] > 300] = 3
    found = Segmentation(labels, volume.grid, SEGMENTS)
    placement = placement_of(image).for_new_layer()
    return viewer.add_layer(layer_of(labels_layer(found, placement, "found", scan=volume.source)))


def test_a_window_is_opened_again_as_it_was(
    new_window: Callable[[], tuple[Any, Panel]], monkeypatch: pytest.MonkeyPatch, qtbot: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    phantoms.write_nifti(phantoms.head(), folder / "head.nii.gz")
    viewer, panel = new_window()
    (image,) = viewer.open(str(folder / "head.nii.gz"), plugin="napari-seg")
    labels = with_labels(viewer)
    commands.linked_planes()
    qtbot.waitUntil(lambda: len(main_window(viewer).findChildren(LinkedPlanes)[0].views) == 2, timeout=30_000)
    panel.structures_tab.model.rename(3, "proboscis")
    panel.structures_tab.model.draw(1, False)
    labels.data_setitem((np.array([3, 3]), np.array([4, 4]), np.array([5, 6])), 1)
    viewer.layers.selection.active = image
    panel._window_box.setCurrentText("Full range")
    viewer.dims.order = PLANES["sagittal"]
    viewer.dims.set_point(range(3), np.mean(image.extent.world, axis=0) + 2)
    viewer.scene.camera.zoom = 6.5
    panel.show_tab(panel.batch_tab)
    panel.edit_tab._overwrite_box.setChecked(True)
    panel.edit_tab._size_box.setValue(3.5)
    tools = settings_of(panel.edit_tab)
    asked: list[str] = []

    def file_for_saving(parent: Any, title: str, suggested: str, kinds: str) -> tuple[str, str]:
        asked.append(suggested)
        return str(folder / "mine"), ""

    monkeypatch.setattr(QFileDialog, "getSaveFileName", file_for_saving)
    commands.save_session()
    qtbot.waitUntil(lambda: "Saved the session" in panel._message.text(), timeout=60_000)
    assert asked == [str(folder / "session.napari-seg")]
    assert not state_of(labels).is_unsaved
    assert not panel.guard.unsaved
    assert panel._titles()[2] == panel._tabs.tabText(2) == "Structures"
    data, point, center = labels.data.copy(), viewer.dims.point, viewer.scene.camera.center
    limits, title = image.contrast_limits, image.name
    viewer.close()

    viewer, panel = new_window()
    assert viewer.open(str(folder / "mine.napari-seg"), plugin="napari-seg") == []
    qtbot.waitUntil(lambda: "Opened mine.napari-seg" in panel._message.text(), timeout=60_000)
    again, found = viewer.layers
    np.testing.assert_array_equal(found.data, data)
    assert (again.name, found.name) == (title, "found")
    assert again.contrast_limits == limits
    assert panel._window_box.currentText() == "Full range"
    assert viewer.layers.selection.active is again
    assert viewer.dims.order == PLANES["sagittal"]
    np.testing.assert_allclose(viewer.dims.point, point)
    np.testing.assert_allclose(viewer.scene.camera.center, center)
    assert viewer.scene.camera.zoom == 6.5
    assert panel._tabs.currentWidget() is panel.batch_tab
    assert settings_of(panel.edit_tab) == tools
    assert not panel.edit_tab.model.may_overwrite
    qtbot.waitUntil(lambda: bool(main_window(viewer).findChildren(LinkedPlanes)), timeout=30_000)
    assert [row.name for row in panel.structures_tab.model.structures] == ["left ball", "proboscis"]
    assert [row.shown for row in panel.structures_tab.model.structures] == [False, True]
    assert not panel.guard.unsaved
    (planes,) = main_window(viewer).findChildren(LinkedPlanes)
    qtbot.waitUntil(lambda: len(planes.views) == 2, timeout=30_000)


def test_missing_scans_are_asked_for_in_the_panel(
    new_window: Callable[[], tuple[Any, Panel]], monkeypatch: pytest.MonkeyPatch, qtbot: Any, tmp_path: Path
) -> None:
    phantoms.write_nifti(phantoms.head(), tmp_path / "head.nii.gz")
    viewer, panel = new_window()
    viewer.open(str(tmp_path / "head.nii.gz"), plugin="napari-seg")
    with_labels(viewer)
    path = tmp_path / "away" / "a.napari-seg"
    path.parent.mkdir()
    panel.session_files.save(path)
    qtbot.waitUntil(lambda: "Saved the session" in panel._message.text(), timeout=60_000)
    assert not panel._missing_scans.isVisible()

    # the open layers: cancelled, then closed
    answers: list[str] = []

    class Box(QMessageBox):
        def exec(self) -> int:
            wanted = answers.pop(0)
            button = next(one for one in self.buttons() if wanted in one.text().replace("&", ""))
            button.click()
            return 0

    monkeypatch.setattr(widgets, "QMessageBox", Box)
    answers.append("Cancel")
    commands.open_session_file(path)
    assert not panel.session_files.is_busy
    answers.append("Close and open")
    commands.open_session_file(path)
    qtbot.waitUntil(lambda: "session.scan_missing" in panel._message.text(), timeout=60_000)
    assert [layer.name for layer in viewer.layers] == ["found"]
    assert panel._missing_scans.isVisible()
    monkeypatch.setattr(widgets, "ask_folder", lambda parent, title: tmp_path)
    panel._missing_scans._button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=60_000)
    qtbot.waitUntil(lambda: not panel.session_files.is_busy)
    assert [layer.name for layer in viewer.layers] == ["head", "found"]
    assert not panel._missing_scans.isVisible()


def test_saving_never_blocks_the_window(
    new_window: Callable[[], tuple[Any, Panel]], qtbot: Any, tmp_path: Path
) -> None:
    from time import monotonic, thread_time

    from qtpy.QtCore import QTimer

    grid = Grid((256, 256, 200), np.diag([1.0, 1, 1.5, 1]))
    rng = np.random.default_rng(0)
    scan = Volume(rng.integers(0, 1000, (1, *grid.shape), np.int16), grid)
    path = phantoms.write_nifti(scan, tmp_path / "large.nii")
    viewer, panel = new_window()
    viewer.open(str(path), plugin="napari-seg")
    with_labels(viewer)
    qtbot.wait(500)
    beats, timer = [monotonic()], QTimer()
    timer.timeout.connect(lambda: beats.append(monotonic()))
    timer.start(5)
    began = thread_time()  # not the clock: other programs may be busy
    panel.session_files.save(tmp_path / "a.napari-seg")
    assert thread_time() - began < 0.2  # the snapshot
    qtbot.waitUntil(lambda: "Saved the session" in panel._message.text(), timeout=120_000)
    timer.stop()
    assert np.diff(beats).max() < 2.0, np.sort(np.diff(beats))[-5:]


def test_settings_of_a_stranger_only_set_values_of_their_type(
    new_window: Callable[[], tuple[Any, Panel]],
) -> None:
    _, panel = new_window()
    before = settings_of(panel.edit_tab)
    name = next(name for name, value in before.items() if isinstance(value, bool))
    number = next(name for name, value in before.items() if isinstance(value, float))
    set_settings(panel.edit_tab, {name: "yes", number: True, "EditTab.model": 3.0, "x": 1.0})
    set_settings(panel.edit_tab, {name: 1.0, number: 1e300})
    assert settings_of(panel.edit_tab) == before


def test_a_session_does_not_switch_on_edits_without_a_question(new_window: Callable[[], tuple[Any, Panel]]) -> None:
    _, panel = new_window()
    tab = panel.edit_tab
    before = settings_of(tab)
    set_settings(tab, {"EditTab.at_once_box": True, "EditTab.overwrite_box": True, "ToolBox.slices_box": False})
    assert not tab._at_once_box.isChecked()
    assert not tab._overwrite_box.isChecked()
    assert not tab.model.is_at_once
    assert not tab.model.may_overwrite
    assert not tab.tools.all_slices
    tab._at_once_box.setChecked(True)
    tab._overwrite_box.setChecked(True)
    assert settings_of(tab) == before | {"ToolBox.slices_box": False}  # nor does it say that they were on
