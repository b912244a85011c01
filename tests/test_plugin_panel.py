"""The plugin in a real napari window: needs a screen, or Xvfb."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from runs import write_run

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import end
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QApplication, QDockWidget, QFileDialog, QMainWindow, QMessageBox, QPushButton

from napari_seg.cli.main import main
from napari_seg.errors import EnvironmentFault, Notice
from napari_seg.formats.nifti import write_nifti
from napari_seg.formats.read import read
from napari_seg.geometry import Grid, resample
from napari_seg.localise import mni152_path
from napari_seg.plugin import closing, commands, kept_data
from napari_seg.plugin.autosave import FOLDER_VARIABLE, Autosave
from napari_seg.plugin.labels_state import state_of
from napari_seg.plugin.layer_info import placement_of, volume_of
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.napari_private import brush_circle, main_window
from napari_seg.plugin.panel import Panel
from napari_seg.plugin.placement import PLANES, place
from napari_seg.plugin.segment import run as segment_run
from napari_seg.plugin.structures.export import suggested_name
from napari_seg.plugin.train.run import Trained, Wish
from napari_seg.plugin.train.tab import TrainTab
from napari_seg.training.history import read_state
from napari_seg.volume import Segment, Segmentation, Volume

pytestmark = pytest.mark.window

SEGMENTS = (Segment(1, "left ball", (255, 0, 0)), Segment(3, "nose", (0, 128, 255)))
WINDOWS = 10


def thresholded(volume: Volume, bundle: Any, options: Any = None, *, progress: Any = None) -> Segmentation:
    """Stands in for `segment`, with its windows and its pace."""
    for window in range(WINDOWS):
        if progress is not None:
            progress("segmenting", window, WINDOWS)
            time.sleep(0.05)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[volume.array[0] > 300] = 3
    labels[volume.array[0] > 800] = 1
    return Segmentation(labels, volume.grid, SEGMENTS, notices=(Notice("result.implausible", "nose is too large"),))


@pytest.fixture
def viewer(make_napari_viewer: Any, monkeypatch: pytest.MonkeyPatch, in_process: None, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setattr(segment_run, "segment", thresholded)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "unsaved"))
    yield make_napari_viewer(show=True)
    for thread in threading.enumerate():
        if thread.name == "napari-seg job":
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def panel(viewer: Any) -> Panel:
    _, widget = viewer.window.add_plugin_dock_widget("napari-seg", "Segmentation")
    assert isinstance(widget, Panel)
    return widget


@pytest.fixture
def run(panel: Panel, qtbot: Any) -> Callable[[], None]:
    def to_the_end() -> None:
        panel.segment_tab._run_button.click()
        qtbot.waitUntil(lambda: panel.segment_tab.model.run is None, timeout=60_000)  # the first one imports pandas

    return to_the_end


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_from_open_to_save(
    kind: str, viewer: Any, panel: Panel, run: Callable[[], None], qtbot: Any, head: Volume, tmp_path: Path
) -> None:
    if kind == "nifti":
        path = phantoms.write_nifti(head, tmp_path / "head.nii.gz")
    else:
        path = tmp_path / "series"
        phantoms.write_series(head, path)
    assert not panel.segment_tab._run_button.isEnabled()
    assert "Open a scan" in panel.segment_tab._estimate_label.text()
    (image,) = viewer.open(str(path), plugin="napari-seg")
    assert panel.segment_tab._run_button.isEnabled()
    assert panel._scan_box.currentText() == image.name
    run()

    labels = viewer.layers[-1]
    assert labels.name == f"{image.name} - {panel.segment_tab.model.bundle.name}"
    assert labels.data.dtype == np.uint8
    assert panel.structures_tab._table.rowCount() == 2
    assert panel.structures_tab._table.item(1, 2).text() == "nose"
    assert "nose is too large (result.implausible)" in panel._message.text()

    panel.structures_tab.model.save(tmp_path / "saved.nii.gz", "nifti")
    qtbot.waitUntil(lambda: "Saved" in panel._message.text(), timeout=60_000)
    volume = volume_of(image)
    assert volume is not None
    write_nifti(thresholded(volume, None), tmp_path / "direct.nii.gz")
    # Byte for byte, but for the time stamp of gzip.
    assert (tmp_path / "saved.nii.gz").read_bytes()[10:] == (tmp_path / "direct.nii.gz").read_bytes()[10:]
    # And so does napari's own File > Save.
    viewer.layers.selection = {labels}
    saved = viewer.layers.save(str(tmp_path / "menu.nii.gz"), selected=True)
    assert [Path(path).read_bytes()[10:] for path in saved] == [(tmp_path / "direct.nii.gz").read_bytes()[10:]]


def test_a_model_with_channels_shows_a_box_for_each(
    viewer: Any, panel: Panel, run: Callable[[], None], head: Volume, tmp_path: Path
) -> None:
    tab, model = panel.segment_tab, panel.segment_tab.model
    for name in ("T1", "series 7"):
        viewer.open(str(phantoms.write_nifti(head, tmp_path / f"{name}.nii.gz")), plugin="napari-seg")
    assert tab._channel_boxes == {}
    assert model.bundle is not None
    several = replace(model.bundle, in_channels=2, channel_names=("T1", "FLAIR"), localiser=None)
    model.bundles.append(several)
    model.choose_bundle(several)
    assert [(name, box.currentText()) for name, box in tab._channel_boxes.items()] == [("T1", "T1"), ("FLAIR", "")]
    assert "Open and choose FLAIR." in tab._estimate_label.text()
    assert not tab._run_button.isEnabled()
    tab._channel_boxes["FLAIR"].setCurrentIndex(1)
    assert tab._channel_boxes["FLAIR"].currentText() == "series 7"
    assert tab._run_button.isEnabled()
    run()
    assert viewer.layers[-1].name == f"T1 - {several.name}"
    model.choose_bundle(model.bundles[0])
    assert tab._channel_boxes == {}


def test_the_head_is_drawn_with_the_left_on_the_right(viewer: Any, head: Volume, tmp_path: Path) -> None:
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    shot = viewer.screenshot(canvas_only=True, flash=False)[..., 0].astype(float)
    inside = np.argwhere(shot > 60)
    (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0)
    middle = (left + right) // 2
    # The phantom's left half is brighter, and its nose stands out to the front.
    assert shot[top:bottom, middle:right].mean() > 1.1 * shot[top:bottom, left:middle].mean()
    rows = (shot > 60).sum(axis=1)
    height = (bottom - top) // 10
    assert rows[top : top + height].mean() < rows[bottom - height : bottom].mean()


def test_stop_leaves_the_viewer_as_it_was(viewer: Any, panel: Panel, qtbot: Any, head: Volume, tmp_path: Path) -> None:
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    before = list(viewer.layers)
    panel.segment_tab._run_button.click()
    qtbot.waitUntil(lambda: panel.segment_tab._progress_bar.maximum() == WINDOWS, timeout=10_000)
    assert panel.segment_tab._run_button.text() == "Run after this"
    assert not panel._scan_box.isEnabled()
    stopped = time.monotonic()
    panel.segment_tab._stop_button.click()
    assert not panel.segment_tab._stop_button.isEnabled()
    assert panel.segment_tab.model.run is None
    assert time.monotonic() - stopped < 2
    assert list(viewer.layers) == before
    assert "Stopped" in panel._message.text()
    assert panel.segment_tab._run_button.isEnabled()
    assert not panel.segment_tab._progress_bar.isVisible()


def test_a_failed_run_says_why(
    viewer: Any, panel: Panel, run: Callable[[], None], head: Volume, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise EnvironmentFault("environment.device", "this computer has no CUDA device")

    monkeypatch.setattr(segment_run, "segment", fail)
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    panel.show_tab(panel.segment_tab)
    run()
    assert panel._message.text() == "✕ this computer has no CUDA device (environment.device)"
    assert len(viewer.layers) == 1
    tab = panel.segment_tab
    assert panel._message.parentWidget() is tab  # near Run, which was pressed
    QApplication.processEvents()
    assert 0 <= panel._message.y() - tab._run_button.geometry().bottom() < 40
    panel.show_tab(panel.structures_tab)
    QApplication.processEvents()
    assert panel._message.isVisible()


def test_the_window_stays_alive_while_it_works(
    viewer: Any, panel: Panel, run: Callable[[], None], qtbot: Any, head: Volume, tmp_path: Path
) -> None:
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    beats: list[float] = []
    timer = QTimer(panel)
    timer.timeout.connect(lambda: beats.append(time.monotonic()))
    timer.start(10)
    qtbot.wait(1000)
    idle = max(np.diff(beats))  # how busy the machine is with other things
    beats.clear()
    panel.segment_tab._run_button.click()
    # Adding the first labels layer at the end is napari's own drawing; the heart must beat until then, and after it.
    job = panel.segment_tab.model.run.job
    while job.is_running:
        QApplication.processEvents()
    running, beats[:] = np.diff(beats), []
    qtbot.waitUntil(lambda: any(s.voxels for s in panel.structures_tab.model.structures), timeout=10_000)
    viewer.layers[-1].data_setitem((np.array([0]), np.array([0]), np.array([0])), 3)
    beats.clear()
    panel.structures_tab.model.save(tmp_path / "saved.seg.nrrd", "nrrd")
    qtbot.waitUntil(lambda: "Saved" in panel._message.text(), timeout=60_000)
    panel.structures_tab.model.compare(tmp_path / "saved.seg.nrrd")
    qtbot.waitUntil(lambda: "differ" in panel._message.text(), timeout=60_000)
    timer.stop()
    gaps = np.sort(np.concatenate([running, np.diff(beats)]))
    assert len(gaps) > 50
    assert gaps[-3] < 0.2 + idle  # napari adds a layer, and a busy machine may miss one
    assert gaps[-1] < 1 + idle


@pytest.mark.parametrize("what", ["panel", "viewer"])
def test_closing_during_a_run_ends_it(
    what: str, viewer: Any, qtbot: Any, head: Volume, tmp_path: Path, monkeypatch: Any
) -> None:
    began, ended = threading.Event(), threading.Event()

    def endless(volume: Volume, bundle: Any, options: Any = None, *, progress: Any) -> None:
        began.set()
        try:
            while True:
                progress("segmenting", 1, 1000)
                time.sleep(0.02)
        finally:
            ended.set()

    monkeypatch.setattr(segment_run, "segment", endless)
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    # Held by the window alone, as in life.
    viewer.window.add_plugin_dock_widget("napari-seg", "Segmentation")[1].segment_tab._run_button.click()
    qtbot.waitUntil(began.is_set, timeout=10_000)
    if what == "panel":
        viewer.window.remove_dock_widget("all")
    else:
        viewer.close()
    qtbot.waitUntil(ended.is_set, timeout=10_000)


def test_the_shipped_model_gives_what_the_command_line_gives(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    brain = read(mni152_path())
    grid = Grid.around((-27, -21, -14), (40, 56, 40), (1, 1, 1)).reoriented("LSP")
    path = phantoms.write_nifti(Volume(resample(brain.array, brain.grid, grid), grid), tmp_path / "crop.nii.gz")
    assert main(["predict", str(path), "-o", str(tmp_path), "--device", "cpu"]) == 0

    viewer = make_napari_viewer(show=True)
    _, panel = viewer.window.add_plugin_dock_widget("napari-seg", "Segmentation")
    viewer.open(str(path), plugin="napari-seg")
    panel.segment_tab._run_button.click()
    qtbot.waitUntil(lambda: panel.segment_tab.model.run is None, timeout=120_000)
    assert [s.name for s in panel.structures_tab.model.structures] == ["anterior hippocampus", "posterior hippocampus"]
    panel.structures_tab.model.save(tmp_path / "saved.nii.gz", "nifti")
    qtbot.waitUntil(lambda: "Saved" in panel._message.text(), timeout=60_000)

    ours, theirs = read(tmp_path / "saved.nii.gz"), read(tmp_path / "crop_seg.nii.gz")
    assert theirs.array.max() == 2
    np.testing.assert_array_equal(ours.array, theirs.array)
    np.testing.assert_array_equal(ours.grid.affine, theirs.grid.affine)


def test_a_broken_file_is_one_line_for_a_person(viewer: Any, tmp_path: Path) -> None:
    from napari.utils.notifications import notification_manager

    path = tmp_path / "text.nii.gz"
    path.write_text("no scan")
    notification_manager.records.clear()
    assert viewer.open(str(path), plugin="napari-seg") == []
    (record,) = notification_manager.records
    assert re.fullmatch(r"[^.].*\(file\.\w+\)", record.message)  # the code comes last
    assert not record.message.startswith("file.")
    assert "\n" not in record.message


def test_a_window_of_the_network_that_takes_long_does_not_keep_stop_waiting(
    viewer: Any, panel: Panel, qtbot: Any, head: Volume, tmp_path: Path, monkeypatch: Any
) -> None:
    began, ended = threading.Event(), threading.Event()

    def long(volume: Volume, bundle: Any, options: Any = None, *, progress: Any) -> Segmentation:
        progress("segmenting", 0, 1)
        began.set()
        time.sleep(3)  # as a network does, that nobody can interrupt
        ended.set()
        return thresholded(volume, bundle)

    monkeypatch.setattr(segment_run, "segment", long)
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    before = list(viewer.layers)
    panel.segment_tab._run_button.click()
    qtbot.waitUntil(began.is_set, timeout=10_000)
    panel.segment_tab._stop_button.click()
    assert not ended.is_set()
    assert panel.segment_tab._run_button.text() == "Run"
    assert panel.segment_tab._run_button.isEnabled()
    qtbot.waitUntil(ended.is_set, timeout=10_000)
    qtbot.wait(500)
    assert list(viewer.layers) == before
    panel.segment_tab._run_button.click()  # and the next one runs
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=10_000)


def test_too_little_memory_leaves_napari_alive(
    viewer: Any, panel: Panel, run: Callable[[], None], head: Volume, tmp_path: Path, monkeypatch: Any
) -> None:
    def greedy(*_: Any, **__: Any) -> None:
        np.empty(2**60, np.uint8)

    monkeypatch.setattr(segment_run, "segment", greedy)
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    run()
    assert "too little memory" in panel._message.text()
    assert panel.segment_tab._run_button.isEnabled()


@pytest.mark.parametrize(("orientation", "tilt"), [("RAS", (0, 0, 0)), ("PIR", (9, -6, 4)), ("LSA", (25, 18, -30))])
def test_a_mark_is_drawn_in_its_place_in_all_three_planes(
    viewer: Any, qtbot: Any, orientation: str, tilt: tuple[float, float, float], tmp_path: Path
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = phantoms.rotation(*tilt) @ np.diag([0.7, 1.3, 2.1])
    affine[:3, 3] = (-31.0, 12.5, 40.25)
    grid = Grid((60, 40, 30), affine).reoriented(orientation)
    array = np.zeros(grid.shape, np.int16)
    center = grid.to_index(Grid((60, 40, 30), affine).to_world((42, 11, 21)))
    mark = tuple(int(n) for n in np.rint(center))
    array[tuple(slice(n - 1, n + 2) for n in mark)] = 1000
    path = phantoms.write_nifti(Volume(array[None], grid, name="marked"), tmp_path / "marked.nii.gz")
    (image,) = viewer.open(str(path), plugin="napari-seg")
    image.interpolation2d = "nearest"
    x, y, z = phantoms.rotation(*tilt).T @ grid.to_world(mark)
    world = np.array([-z, -y, -x])
    for order in PLANES.values():
        viewer.dims.order = order
        viewer.dims.set_point(range(3), world)
        viewer.reset_view()
        qtbot.wait(50)
        shot = viewer.screenshot(canvas_only=True, flash=False)[..., 0]
        found = np.argwhere(shot > 200).mean(axis=0)
        middle = (np.array(shot.shape) - 1) / 2
        expected = middle + (world[list(order[1:])] - np.array(viewer.camera.center[1:])) * viewer.camera.zoom
        np.testing.assert_allclose(found, expected, atol=2)


def test_planes_are_opened_shared_and_closed(
    viewer: Any, panel: Panel, qtbot: Any, head: Volume, tmp_path: Path
) -> None:
    (image,) = viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    planes = commands.linked_planes()
    qtbot.waitUntil(lambda: set(planes.views) == {"coronal", "sagittal"}, timeout=20_000)
    qtbot.wait(400)
    point = image.data_to_world((4, 12, 8))
    viewer.dims.set_point(range(3), point)
    qtbot.waitUntil(lambda: planes._point.text() == f"{planes.model.position_text}, oblique", timeout=5_000)
    shot = planes.views["coronal"].qt_viewer.screenshot(flash=False)
    assert (shot[..., 0] > 60).mean() > 0.02  # the head is drawn
    yellow = (shot[..., 0] > 120) & (shot[..., 2] < 90)
    assert yellow.any()  # and the crosshair
    assert planes.views["coronal"]._markers.texts == ("R", "L", "S", "I")
    assert panel._markers.texts == ("R", "L", "A", "P")
    planes.model.show_in_main("coronal")
    qtbot.waitUntil(lambda: "axial" in planes.views, timeout=20_000)
    assert not planes.views["coronal"].isVisible()
    labels, gone = (viewer.add_labels(np.ones(image.data.shape, np.uint8), scale=image.scale) for _ in range(2))
    viewer.layers.remove(gone)  # before its copies are made
    shown = [plane.viewer.layers for plane in planes.views.values()]
    qtbot.waitUntil(lambda: all(layers[-1].data is labels.data for layers in shown), timeout=5_000)
    assert all(len(layers) == 2 for layers in shown)
    viewer.add_labels(labels.data)
    planes.close_views()  # while copies wait
    qtbot.wait(300)
    assert not any(shown)


def test_the_last_scan_is_closed_and_the_next_opened_while_planes_are_open(
    viewer: Any, qtbot: Any, head: Volume, tmp_path: Path
) -> None:
    path = str(phantoms.write_nifti(head, tmp_path / "head.nii.gz"))
    viewer.open(path, plugin="napari-seg")
    planes = commands.linked_planes()
    qtbot.waitUntil(lambda: set(planes.views) == {"coronal", "sagittal"}, timeout=20_000)
    qtbot.wait(300)
    lines = [planes._main._line, *(plane.crosshair._line for plane in planes.views.values())]
    assert all(line.visible for line in lines)
    viewer.layers.clear()
    assert not any(line.visible for line in lines)  # at once: one more drawing would end napari
    qtbot.wait(100)

    def all_show(count: int) -> bool:
        return all(len(plane.viewer.layers) == count for plane in planes.views.values())

    viewer.open(path, plugin="napari-seg")
    qtbot.waitUntil(lambda: all_show(1) and all(line.visible for line in lines), timeout=5_000)
    (first,) = viewer.layers
    viewer.open(path, plugin="napari-seg")
    viewer.layers.remove(first)  # while planes wait for the next one: they are empty, the main canvas is not
    assert not any(plane.crosshair._line.visible and not plane.viewer.layers for plane in planes.views.values())
    qtbot.waitUntil(lambda: all_show(1) and all(line.visible for line in lines), timeout=5_000)


def test_keys_reach_the_canvas_of_a_linked_plane(viewer: Any, qtbot: Any, head: Volume, tmp_path: Path) -> None:
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    viewer._new_labels()
    labels = viewer.layers[-1]
    planes = commands.linked_planes()
    qtbot.waitUntil(lambda: set(planes.views) == {"coronal", "sagittal"}, timeout=20_000)
    for plane in planes.views.values():
        qtbot.keyClick(plane.qt_viewer.canvas.native, Qt.Key.Key_2)
        assert labels.mode == "paint"
        plane.viewer.layers[-1].paint((4, 5, 6), 3)
        assert labels.data.any()
        qtbot.keyClick(plane.qt_viewer.canvas.native, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        assert not labels.data.any()
        assert not brush_circle(viewer).box  # nothing of a brush may be drawn in an empty canvas, it would end napari
        assert not brush_circle(plane.viewer).box
        qtbot.keyClick(plane.qt_viewer.canvas.native, Qt.Key.Key_6)
        assert labels.mode == "pan_zoom"
    viewer.layers.clear()
    qtbot.wait(200)


def test_one_of_several_volumes_is_chosen_below_the_list(
    viewer: Any, panel: Panel, qtbot: Any, head: Volume, tmp_path: Path
) -> None:
    (tmp_path / "study").mkdir()
    phantoms.write_nifti(head, tmp_path / "study" / "alone.nii.gz")
    times = np.stack([head.array[0] + 100 * n for n in range(3)], axis=-1)
    nib.save(nib.Nifti1Image(times, head.grid.affine), tmp_path / "study" / "times.nii.gz")
    tab = panel.study_tab
    tab.model.list_path(tmp_path / "study")
    qtbot.waitUntil(lambda: not tab.model.is_listing, timeout=20_000)
    alone, several = tab._items
    assert alone.isSelected()
    assert not tab._volume_box.isVisible()
    tab._tree.setCurrentItem(several)
    assert tab._volume_box.isVisible()
    assert (tab._volume_box.maximum(), tab._volume_label.text()) == (2, "Volume, 0 to 2")
    tab._volume_box.setValue(2)
    qtbot.mouseClick(tab._open_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=20_000)
    assert viewer.layers[0].name == "times, volume 2"
    assert viewer.layers[0].data.max() == times[..., 2].max()
    tab._tree.setCurrentItem(alone)
    tab._tree.setCurrentItem(several)
    assert tab._volume_box.value() == 0


def test_work_left_behind_is_offered_and_restored(
    viewer: Any, qtbot: Any, head: Volume, tmp_path: Path, monkeypatch: Any
) -> None:
    (image,) = viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    placement = placement_of(image)
    layer = layer_of(labels_layer(thresholded(read(tmp_path / "head.nii.gz"), None), placement, "mine"))
    state_of(layer).edits = 1
    root = Path(os.environ[FOLDER_VARIABLE])
    kept = Autosave(root)
    kept.write_copies(kept.due([layer]))
    end(kept)
    panel = commands.panel()
    assert "mine" in panel._unsaved_label.text()
    assert panel._unsaved_frame.isVisible()
    panel._restore()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=10_000)
    assert viewer.layers[1].name == "mine (restored)"
    np.testing.assert_array_equal(viewer.layers[1].data, layer.data)
    qtbot.waitUntil(lambda: not panel._unsaved_frame.isVisible(), timeout=10_000)
    assert len(panel.guard.autosave.left_behind()) == 0
    assert len(list(panel.guard.autosave.folder.glob("*.nii.gz"))) == 1  # should this one end next


def test_only_the_work_that_is_named_is_discarded_or_restored(
    viewer: Any, qtbot: Any, head: Volume, tmp_path: Path
) -> None:
    root = Path(os.environ[FOLDER_VARIABLE])

    def left_behind(name: str) -> Path:
        layer = layer_of(labels_layer(thresholded(head, None), place(head.grid), name))
        state_of(layer).edits = 1
        kept = Autosave(root)
        kept.write_copies(kept.due([layer]))
        return end(kept)

    old = left_behind("of the morning")
    panel = commands.panel()
    new = left_behind("of another window")
    assert "of the morning" in panel._unsaved_label.text()
    panel._discard()
    assert new.exists()
    assert not old.exists()
    assert "of another window" in panel._unsaved_label.text()
    shutil.rmtree(new)  # the other window restored it
    panel._restore()
    assert "These copies are gone" in panel._message.text()
    assert not panel._unsaved_frame.isVisible()

    mine = left_behind("mine")
    panel._offer_unsaved()
    panel.guard._is_writing_copies = True  # as while other copies are written
    panel._restore()
    assert panel._unsaved_frame.isVisible()
    qtbot.waitUntil(lambda: [layer.name for layer in viewer.layers] == ["mine (restored)"], timeout=10_000)
    qtbot.waitUntil(panel._unsaved_frame.isEnabled, timeout=10_000)
    assert mine.exists()
    panel.guard._on_copies_written()
    qtbot.waitUntil(lambda: not panel._unsaved_frame.isVisible(), timeout=10_000)
    assert not mine.exists()


def test_a_result_does_not_interrupt_a_brush(
    viewer: Any, panel: Panel, run: Callable[[], None], head: Volume, tmp_path: Path
) -> None:
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    viewer._new_labels()
    mine = viewer.layers[-1]
    mine.mode = "paint"
    point, tab = viewer.dims.point, panel._tabs.currentWidget()
    run()
    assert viewer.layers.selection.active is mine
    assert viewer.dims.point == point
    assert panel._tabs.currentWidget() is tab


def test_every_command_of_the_palette_can_be_called(viewer: Any, monkeypatch: Any) -> None:
    from napari._app_model import get_app_model

    for name in ("getOpenFileName", "getSaveFileName"):
        monkeypatch.setattr(QFileDialog, name, staticmethod(lambda *_: ("", "")))
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", staticmethod(lambda *_: ""))
    app = get_app_model()
    ours = sorted(name for name in dict(app.commands) if name.startswith("napari-seg") and "mni152" not in name)
    assert len(ours) >= 15
    for name in ours:
        app.commands.execute_command(name).result()


def test_menu_commands_lead_to_their_tabs(viewer: Any, head: Volume, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", staticmethod(lambda *_: ""))
    for command, tab in {
        commands.open_study: "study_tab",
        commands.segment: "segment_tab",
        commands.structures: "structures_tab",
        commands.batch: "batch_tab",
        commands.train: "train_tab",
    }.items():
        command()
        panel = commands.panel()
        assert panel._tabs.currentWidget() is getattr(panel, tab)
    commands.export_nifti()  # there is nothing to save: it is said
    assert "output.no_geometry" in panel._message.text()


@pytest.fixture
def corrected(viewer: Any, panel: Panel, run: Callable[[], None], head: Volume, tmp_path: Path) -> Any:
    """A result with a stroke that is not saved."""
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    run()
    layer = viewer.layers[-1]
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 3)
    return layer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers to the next questions, the last one first; a question without an answer fails the test."""
    prepared: list[Any] = []
    monkeypatch.setattr(QMessageBox, "exec", lambda box: prepared.pop())
    return prepared


BUTTONS = QMessageBox.StandardButton


def close(viewer: Any) -> bool:
    """Returns whether a window that its button is about to close may close; it stays open, for the fixture to close."""
    return not closing.guard_of(viewer).eventFilter(main_window(viewer), QCloseEvent())


def test_closing_asks_for_unsaved_corrections(
    viewer: Any, panel: Panel, corrected: Any, answers: list[Any], qtbot: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    assert panel.structures_tab._labels_box.currentText() == f"• {corrected.name}"
    assert panel._tabs.tabText(2) == "Structures •"
    assert "•" not in corrected.name + suggested_name(corrected, "nifti")
    answers += [BUTTONS.Cancel] * 2
    assert not QMainWindow.close(main_window(viewer))  # as the button of the window does
    main_window(viewer).close(quit_app=True)  # Ctrl-Q
    assert not answers
    assert main_window(viewer).isVisible()
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / suggested_name(corrected, "nifti")).write_text("another file")
    monkeypatch.setattr(closing, "ask_folder", lambda *_: None)
    answers.append(BUTTONS.SaveAll)  # but no folder is chosen
    assert not close(viewer)
    monkeypatch.setattr(closing, "ask_folder", lambda *_: folder)
    panel.guard.write_copies()
    qtbot.waitUntil(lambda: panel.guard.autosave.folder.exists(), timeout=10_000)
    answers.append(BUTTONS.SaveAll)
    assert close(viewer)
    assert not answers
    assert (folder / suggested_name(corrected, "nifti")).read_text() == "another file"
    (saved,) = (path for path in folder.glob("*.nii.gz") if path.stat().st_size > 50)
    assert read(saved).array.max() == 3
    assert not state_of(corrected).is_unsaved
    qtbot.waitUntil(lambda: not list(Path(os.environ[FOLDER_VARIABLE]).glob("*")), timeout=10_000)


def test_what_is_discarded_is_not_offered_again(
    viewer: Any, panel: Panel, corrected: Any, answers: list[Any], qtbot: Any
) -> None:
    panel.guard.write_copies()
    qtbot.waitUntil(lambda: panel.guard.autosave.folder.exists(), timeout=10_000)
    answers.append(BUTTONS.Discard)
    assert close(viewer)
    assert not answers
    assert not panel.guard.autosave.folder.exists()


def test_what_was_removed_before_is_kept_when_other_work_is_discarded(
    viewer: Any, panel: Panel, corrected: Any, answers: list[Any], qtbot: Any
) -> None:
    other = viewer._new_labels() or viewer.layers[-1]
    other.name = "removed before"
    other.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    viewer.layers.remove(other)
    qtbot.waitUntil(panel._unsaved_frame.isVisible, timeout=10_000)
    answers.append(BUTTONS.Discard)  # the question names one layer, and not this one
    assert close(viewer)
    (left,) = panel.guard.autosave.left_behind()
    assert left.names == ("removed before",)


def test_work_that_can_not_be_saved_keeps_the_window_open(
    viewer: Any, panel: Panel, corrected: Any, answers: list[Any], tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    said: list[str] = []
    monkeypatch.setattr(closing, "ask_folder", lambda *_: tmp_path)
    monkeypatch.setattr(closing, "export", fail)
    monkeypatch.setattr(QMessageBox, "warning", lambda *texts: said.append(texts[2]))
    answers.append(BUTTONS.SaveAll)
    assert not close(viewer)
    assert len(said) == 1
    assert QApplication.overrideCursor() is None


def test_nothing_saved_is_kept_by_a_thread_that_ends_later(
    viewer: Any, panel: Panel, corrected: Any, answers: list[Any], tmp_path: Path, monkeypatch: Any
) -> None:
    viewer._new_labels()
    viewer.layers[-1].data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    monkeypatch.setattr(closing, "ask_folder", lambda *_: tmp_path)
    started: list[Any] = []
    monkeypatch.setattr(panel.guard.jobs, "start", lambda work, **callbacks: started.append(work))
    answers.append(BUTTONS.SaveAll)
    assert close(viewer)
    for work in started:  # the window is gone: nobody hears of their end
        work(None)
    assert not list(Path(os.environ[FOLDER_VARIABLE]).glob("*/*"))


def test_the_window_asks_also_when_the_panel_is_closed(
    viewer: Any, corrected: Any, answers: list[Any], qtbot: Any
) -> None:
    guard = closing.guard_of(viewer)
    guard.write_copies()
    qtbot.waitUntil(lambda: guard.autosave.folder.exists(), timeout=10_000)
    viewer.window.remove_dock_widget("all")
    assert guard.autosave.folder.exists()  # the work lies nowhere else
    answers.append(BUTTONS.Cancel)
    assert not close(viewer)
    assert not answers
    assert "•" in commands.panel()._tabs.tabText(2)  # and so knows the panel that is opened next


def test_nobody_is_asked_who_can_not_answer(
    viewer: Any, panel: Panel, corrected: Any, answers: list[Any], qtbot: Any
) -> None:
    root = Path(os.environ[FOLDER_VARIABLE])
    main_window(viewer).hide()
    for _ in range(2):  # the second time all is kept already
        assert close(viewer)
        assert len(list(root.glob("*/*.nii.gz"))) == 1
    main_window(viewer).show()
    viewer.close()  # by a program
    qtbot.waitUntil(lambda: len(list(root.glob("*/*.nii.gz"))) == 1, timeout=10_000)


def test_no_question_without_corrections(viewer: Any, panel: Panel, corrected: Any, answers: list[Any]) -> None:
    viewer.layers.selection = {corrected}
    viewer.layers.save(os.environ[FOLDER_VARIABLE] + "-labels.nii.gz", selected=True)  # napari's own File > Save
    assert panel._tabs.tabText(2) == "Structures"
    assert close(viewer)


def test_a_layer_that_is_removed_with_corrections_can_be_restored(
    viewer: Any, panel: Panel, corrected: Any, answers: list[Any], qtbot: Any
) -> None:
    labels = corrected.data.copy()
    viewer.layers.remove(corrected)
    qtbot.waitUntil(panel._unsaved_frame.isVisible, timeout=10_000)
    assert corrected.name in panel._unsaved_label.text()
    panel._restore()
    qtbot.waitUntil(lambda: not panel._unsaved_frame.isVisible(), timeout=10_000)
    np.testing.assert_array_equal(viewer.layers[-1].data, labels)
    answers.append(BUTTONS.Discard)  # it still is not saved
    assert close(viewer)


@pytest.fixture
def trained(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainTab]:
    """The Train tab during a training that ends when its file `stop` appears."""

    def work(wish: Wish, job: Any) -> Trained:
        write_run(wish.output / "training", epochs=6, stage="training")
        state = read_state(wish.output / "training")
        job.post(tab.model._on_state, state)
        while not job.is_stopping:
            time.sleep(0.01)
        return Trained("stopped and saved; run the same command again to continue", None)

    tab = panel.train_tab
    monkeypatch.setattr(tab.model, "_train", work)
    panel.show_tab(tab)
    tab.model.choose_dataset(tmp_path)
    tab.model.choose_output(tmp_path / "model")
    yield tab
    tab.model.stop()


def test_a_training_is_seen_and_stopped(trained: TrainTab, panel: Panel, qtbot: Any) -> None:
    tab = trained
    assert tab._start_button.isEnabled()
    assert not tab._curves.isVisible()
    tab._start_button.click()
    qtbot.waitUntil(lambda: tab._curves.isVisible() and tab._preview.isVisible(), timeout=10_000)
    assert tab._progress_label.text().startswith("Epoch 6 of 10, 8 s left")
    assert tab._progress_bar.value() == 600
    assert tab._stop_button.isEnabled()
    assert not tab._start_button.isEnabled()
    assert not tab._dataset_button.isEnabled()
    pixels = np.array([pixel.getRgb()[:3] for pixel in _colours(tab._curves)])
    assert len(np.unique(pixels, axis=0)) > 20  # something is drawn
    tab._stop_button.click()
    qtbot.waitUntil(lambda: tab.model.job is None, timeout=10_000)
    assert "Stopped and saved; press Resume to continue" in panel._message.text()
    assert not tab._progress_bar.isVisible()


def test_closing_asks_while_a_training_runs(viewer: Any, trained: TrainTab, answers: list[Any], qtbot: Any) -> None:
    assert close(viewer)
    trained._start_button.click()
    qtbot.waitUntil(lambda: trained.model.state is not None, timeout=10_000)
    answers.append(BUTTONS.Cancel)
    assert not close(viewer)
    assert trained.model.is_at_work
    answers.append(BUTTONS.Close)
    assert close(viewer)
    assert answers == []
    trained.model.stop()
    qtbot.waitUntil(lambda: trained.model.job is None, timeout=10_000)
    assert close(viewer)


def test_closing_asks_while_a_batch_runs(
    viewer: Any, panel: Panel, answers: list[Any], qtbot: Any, head: Volume, tmp_path: Path, monkeypatch: Any
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(volume: Volume, bundle: Any, options: Any = None, *, progress: Any = None) -> Segmentation:
        has_begun.set()
        may_end.wait(10)
        return thresholded(volume, bundle)

    monkeypatch.setattr("napari_seg.inference.segment.segment", slow)
    tab = panel.batch_tab
    panel.show_tab(tab)
    (tmp_path / "scans").mkdir()
    phantoms.write_nifti(head, tmp_path / "scans" / "head.nii.gz")
    tab.model.choose_inputs(tmp_path / "scans")
    tab._run_button.click()
    qtbot.waitUntil(has_begun.is_set, timeout=60_000)
    answers.append(BUTTONS.Cancel)
    assert not close(viewer)
    assert tab.model.is_running
    tab._stop_button.click()
    assert tab._stop_button.text() == "Stop now"
    may_end.set()
    qtbot.waitUntil(lambda: tab.model.run is None, timeout=60_000)
    assert [row.state for row in tab.model.rows] == ["done"]
    assert tab._cases.index(0, 3).data().startswith("left ball ")
    assert not tab._stop_button.isEnabled()
    assert answers == []
    assert close(viewer)


def test_closing_the_panel_alone_asks_too(
    viewer: Any, panel: Panel, trained: TrainTab, answers: list[Any], qtbot: Any
) -> None:
    trained._start_button.click()
    qtbot.waitUntil(lambda: trained.model.state is not None, timeout=10_000)
    job, dock = trained.model.job, panel.parent()
    assert isinstance(dock, QDockWidget)
    for is_closed, answer in ((False, BUTTONS.Cancel), (True, BUTTONS.Close)):
        answers.append(answer)
        dock.findChild(QPushButton, "QTitleBarCloseButton").click()
        assert answers == []
        assert trained.model.is_at_work is not is_closed
    assert panel.parent() is None
    qtbot.waitUntil(lambda: not job.is_running, timeout=10_000)


def _colours(widget: Any) -> list[Any]:
    image = widget.grab().toImage()
    return [image.pixelColor(x, y) for x in range(0, image.width(), 3) for y in range(0, image.height(), 3)]


def test_prompts_are_copied_without_an_edit_and_dropped_without_a_question(
    viewer: Any, panel: Panel, qtbot: Any, head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    panel.edit_tab.model.add_structure("ball")
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=30_000)
    labels = viewer.layers[-1]
    state_of(labels).mark_saved(state_of(labels).edits)
    kept_data.keep(labels, "notes", [1, 2, 3])
    written: list[int] = []
    panel.guard.write_copies(written.append)
    qtbot.waitUntil(lambda: written == [1], timeout=30_000)
    folder = panel.guard.autosave.folder
    assert len(list(folder.glob("*.nii.gz"))) == 1
    monkeypatch.setattr(closing.UnsavedGuard, "_ask", lambda *_: pytest.fail("there is no unsaved correction"))
    assert panel.guard._may_close()
    assert not folder.exists()
