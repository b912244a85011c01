"""How the plugin's widgets lie in a real napari window: needs a screen, or Xvfb."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from qtpy.QtCore import QEvent, QPoint, Qt
from qtpy.QtGui import QHelpEvent
from qtpy.QtWidgets import QApplication

from napari_seg.plugin import commands
from napari_seg.plugin.autosave import FOLDER_VARIABLE
from napari_seg.plugin.batch.table import FILTERS
from napari_seg.plugin.batch.watch import Row
from napari_seg.plugin.controls import box
from napari_seg.plugin.job import Jobs
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.volume import Volume

pytestmark = pytest.mark.window


@pytest.fixture
def viewer(make_napari_viewer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "unsaved"))
    monkeypatch.setattr(
        SegmentModel, "start_estimate", lambda self: None
    )  # which begins a process that outlives the test
    return make_napari_viewer(show=True)


def test_both_docks_fit_on_a_small_screen(viewer: Any, qtbot: Any, head: Volume, tmp_path: Path) -> None:
    panel = commands.panel()
    window = viewer.window._qt_window
    window.resize(1280, 720)
    viewer.theme = "light"
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    planes = commands.linked_planes()
    qtbot.waitUntil(lambda: len(planes.views) == 2, timeout=20_000)
    tab = panel.segment_tab
    panel.show_tab(tab)
    QApplication.processEvents()
    assert window.minimumSizeHint().width() <= 1280
    assert (window.width(), window.height()) == (1280, 720)

    # Run stays where it is, whatever is written below it, and nothing of the card is cut off
    place = tab._run_button.mapTo(panel, tab._run_button.rect().topLeft())
    tab._estimate_label.setText("one line\n" * 9)
    tab._card.setText("<p>a line</p>" * 60 + "<p>the last one</p>")
    qtbot.waitUntil(lambda: tab._card.height() >= tab._card.heightForWidth(tab._card.width()), timeout=3_000)
    assert tab._run_button.mapTo(panel, tab._run_button.rect().topLeft()) == place
    assert (window.width(), window.height()) == (1280, 720)

    # an empty corner of a side plane has the colour of the light theme, as that of the main canvas
    views = [viewer.window._qt_viewer, planes.views["coronal"].qt_viewer]
    for layer in [*viewer.layers, *planes.views["coronal"].viewer.layers]:
        layer.visible = False
    qtbot.wait(200)
    corners = [np.asarray(view.screenshot(flash=False))[5, 5, :3] for view in views]
    np.testing.assert_array_equal(*corners)
    assert corners[0].min() > 200


def test_verdicts_are_read_in_full_below_the_list(viewer: Any, qtbot: Any, head: Volume, tmp_path: Path) -> None:
    panel = commands.panel()
    viewer.window._qt_window.resize(1280, 720)
    folder = tmp_path / "study"
    phantoms.write_series(head, folder / "series")
    (folder / "broken.nii.gz").write_text("no scan")
    tab = panel.study_tab
    panel.show_tab(tab)
    tab.model.list_path(folder)
    qtbot.waitUntil(lambda: not tab.model.is_listing and len(tab._items) == 2, timeout=20_000)
    QApplication.processEvents()
    metrics = tab._tree.fontMetrics()
    for item in tab._items:
        assert metrics.horizontalAdvance(item.text(1)) < tab._tree.columnWidth(1)
    broken = next(item for item in tab._items if item.data(0, Qt.ItemDataRole.UserRole).scan.files[0].suffix == ".gz")
    tab._tree.clearSelection()
    broken.setSelected(True)
    entry = broken.data(0, Qt.ItemDataRole.UserRole)
    assert entry.verdict.message in tab._details.text()
    assert not tab._open_button.isEnabled()


def test_the_segment_tab_says_that_it_estimates(viewer: Any, head: Volume, tmp_path: Path) -> None:
    panel = commands.panel()
    panel.show_tab(panel.segment_tab)
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    assert "Estimating" in panel.segment_tab._estimate_label.text()


def test_no_warning_of_colours_leaks_from_threads() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jobs = Jobs(on_error=print)
        jobs.start(lambda _: None)
        text = "Conversion from CIE-LAB, via XYZ to sRGB color space resulted in 20 negative Z values"
        warnings.warn(text, UserWarning, stacklevel=1)
        jobs.wait()
    assert not caught


def test_what_failed_in_a_batch_is_read_in_full_below_the_table(viewer: Any) -> None:
    panel = commands.panel()
    tab, reason = panel.batch_tab, "its compressed stream has no end; copy or export it again (file.truncated)"
    panel.show_tab(tab)
    tab.model.rows = [Row(1, "first", "waiting"), Row(2, "second", "running")]
    tab.model.rows_changed.emit(0, 1)
    tab._table.selectRow(1)
    tab.model.rows[1] = Row(2, "second", "failed", reason)
    tab.model.rows_changed.emit(1, 1)
    assert reason in tab._details.text()
    assert "first" not in tab._details.text()

    tab._filter.setCurrentIndex(list(FILTERS).index("Failed"))
    assert [tab._cases.index(row, 1).data() for row in range(tab._cases.rowCount())] == ["second"]
    assert tab._filter.currentText() == "Failed (1)"
    tab._table.selectRow(0)
    tab.model.rows[0] = Row(1, "first", "failed", "it broke", notices=("odd",))
    tab.model.rows_changed.emit(0, 0)
    assert reason in tab._details.text()  # the same scan is selected, now in the second line


def test_planes_show_the_whole_scan_when_they_get_another_size(
    viewer: Any, qtbot: Any, head: Volume, tmp_path: Path
) -> None:
    viewer.window._qt_window.resize(1280, 720)
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    planes = commands.linked_planes()
    qtbot.waitUntil(lambda: len(planes.views) == 2, timeout=20_000)
    for ndisplay in (3, 2):
        viewer.dims.ndisplay = ndisplay
        qtbot.waitUntil(lambda: len(planes.views) == 3, timeout=20_000)
        qtbot.wait(600)
        for view in planes.views.values():
            if not view.isHidden():
                zoom = view.viewer.camera.zoom
                view.viewer.reset_view()
                assert zoom == pytest.approx(view.viewer.camera.zoom, rel=0.02)


@pytest.mark.parametrize("how", ["closed", "hidden"])
def test_the_canvas_gets_the_width_of_planes_that_are_closed(
    viewer: Any, qtbot: Any, head: Volume, tmp_path: Path, how: str
) -> None:
    panel = commands.panel()
    viewer.window._qt_window.resize(1280, 720)
    viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    planes = commands.linked_planes()
    qtbot.waitUntil(lambda: len(planes.views) == 2, timeout=20_000)
    (dock,) = (dock for name, dock in viewer.window._wrapped_dock_widgets.items() if "planes" in name)
    (dock.title.close_button if how == "closed" else dock.title.hide_button).click()
    qtbot.waitUntil(lambda: viewer.window._qt_viewer.width() > 500, timeout=3_000)
    assert panel.width() <= 400


def test_windows_are_offered_for_every_scan(viewer: Any, head: Volume, tmp_path: Path) -> None:
    panel = commands.panel()
    (layer,) = viewer.open(str(phantoms.write_nifti(head, tmp_path / "head.nii.gz")), plugin="napari-seg")
    chosen = panel._window_box
    assert [chosen.itemText(n) for n in range(chosen.count())] == ["Automatic", "Full range"]
    assert chosen.currentText() == "Automatic"
    chosen.setCurrentText("Full range")
    assert tuple(layer.contrast_limits) == (layer.data.min(), layer.data.max())
    layer.contrast_limits = (10, 20)
    panel._refresh()
    assert chosen.currentIndex() == -1  # set by hand
    hounsfield = viewer.add_image(np.where(layer.data > 50, layer.data, -1000), scale=layer.scale, units="mm")
    assert panel.session.scan is hounsfield
    assert chosen.findText("Lung") >= 0


def test_long_entries_are_cut_in_the_middle(qtbot: Any) -> None:
    name = "Hippocampus, anterior and posterior, of the left and the right side"
    images = []
    for end in ("side", "head"):
        widget = box("Models.")
        qtbot.addWidget(widget)
        widget.addItem(name.replace("side", end))
        widget.resize(160, 24)
        images.append(widget.grab().toImage())
    assert images[0] != images[1]  # both ends are to be seen
    QApplication.sendEvent(widget, QHelpEvent(QEvent.Type.ToolTip, QPoint(), QPoint()))
    assert name.replace("side", "head") in widget.toolTip()


@pytest.mark.parametrize("width", [300, 360, 500])
def test_all_tabs_are_in_sight_in_a_narrow_panel(viewer: Any, width: int) -> None:
    panel = commands.panel()
    window = viewer.window._qt_window
    window.resize(1280, 720)
    (dock,) = (one for one in viewer.window._dock_widgets.values() if one.isAncestorOf(panel))
    window.resizeDocks([dock], [width], Qt.Orientation.Horizontal)
    QApplication.processEvents()
    assert panel.width() == width
    bar = panel._tabs.tabBar()
    assert bar.count() == 7
    for tab in range(7):
        bar.setCurrentIndex(tab)
        assert all(bar.rect().contains(bar.tabRect(one)) for one in range(7))
        assert bar.tabToolTip(tab).startswith(panel._titles()[tab])
