"""The window Models… and its questions, in a real napari window: needs a screen, or Xvfb."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from bundles import write_threshold_bundle
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QLabel, QMessageBox, QPushButton
from web import Web

from napari_seg.bundles.places import store_root
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.store import installed as store
from napari_seg.bundles.trust import is_trusted
from napari_seg.plugin import commands
from napari_seg.plugin.autosave import FOLDER_VARIABLE
from napari_seg.plugin.models.dialog import ModelsDialog
from napari_seg.plugin.models.permission import Permission
from napari_seg.plugin.models.questions import LicenceDialog, TrustDialog
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.segment.tab import SegmentTab

pytestmark = pytest.mark.window


@pytest.fixture
def viewer(make_napari_viewer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "unsaved"))
    monkeypatch.setattr(SegmentModel, "start_estimate", lambda self: None)  # begins a process that outlives the test
    yield make_napari_viewer(show=True)
    for thread in threading.enumerate():
        if thread.name == "napari-seg job":
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def tab(viewer: Any) -> SegmentTab:
    panel = commands.panel()
    panel.show_tab(panel.segment_tab)
    return panel.segment_tab


@pytest.fixture
def window(tab: SegmentTab, qtbot: Any) -> ModelsDialog:
    tab._models_button.click()
    dialog = tab._models
    assert dialog is not None
    qtbot.waitUntil(lambda: dialog.model.jobs.is_idle and bool(dialog._listed), timeout=20_000)
    return dialog


def press(widget: Any, text: str) -> None:
    """Click the button of a question that has this text."""
    next(one for one in widget.findChildren(QPushButton) if one.text().replace("&", "") == text).click()


def test_models_are_found_with_the_keyboard(window: ModelsDialog, qtbot: Any) -> None:
    assert window._table.rowCount() == len(window.model.rows) > 20
    qtbot.keyClicks(window._words, "spleen decathlon")
    names = [one.name for one in window._listed]
    assert "spleen_ct_segmentation" in names
    assert len(names) < 10
    qtbot.keyClick(window._words, Qt.Key.Key_Down)
    assert window.model.selected_row is window._listed[1]
    assert window._table.currentRow() == 1
    qtbot.keyClick(window._words, Qt.Key.Key_Return)  # starts nothing
    assert window.isVisible()
    assert window.model.job is None
    window._ways.setCurrentIndex(window._ways.findData("refused"))
    assert {one.way for one in window._listed} == {"refused"}
    assert not window._download_button.isEnabled()
    assert "It can't run" in window._details.text()
    qtbot.keyClicks(window._words, " nothing like this")
    assert window._table.rowCount() == 0
    assert window._details.text() == "No model fits this search."
    assert not any(button.isEnabled() for button in (window._use_button, window._check_button, window._remove_button))


def test_a_model_is_added_from_a_folder_used_and_removed(
    tab: SegmentTab, window: ModelsDialog, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_threshold_bundle(tmp_path / "from" / "threshold")
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(folder))
    window._on_add_folder()
    qtbot.waitUntil(lambda: window.model.job is None and window.model.jobs.is_idle, timeout=20_000)
    assert window._message.text() == "threshold is installed."
    assert tab.model.bundle is not None
    assert tab.model.bundle.root == store_root() / "threshold"
    window._on_add_folder()
    qtbot.waitUntil(lambda: "(store.exists)" in window._message.text(), timeout=20_000)
    window._use_button.click()
    assert not window.isVisible()

    qtbot.waitUntil(tab._trust_button.isVisible, timeout=20_000)
    tab._trust_button.click()
    question = tab.findChild(TrustDialog)
    assert question.windowModality() != Qt.WindowModality.NonModal
    assert "scripts/nets.py" in question.findChild(type(window._table)).item(0, 0).text()
    qtbot.keyClick(question, Qt.Key.Key_Return)  # the default is Cancel
    qtbot.wait(100)
    bundle = tab.model.bundle
    assert not is_trusted(bundle)
    qtbot.waitUntil(lambda: tab.findChild(TrustDialog) is None, timeout=5_000)
    tab._trust_button.click()
    press(tab.findChild(TrustDialog), "Trust this content")
    qtbot.waitUntil(lambda: tab.model.runnable_bundle is bundle, timeout=20_000)
    assert is_trusted(bundle)
    assert not tab._trust_button.isVisible()

    tab._models_button.click()
    qtbot.waitUntil(lambda: window.model.jobs.is_idle, timeout=20_000)
    qtbot.keyClicks(window._words, "threshold")
    window._remove_button.click()
    press(window.findChild(QMessageBox), "Remove")
    qtbot.waitUntil(lambda: window.model.job is None and not bundle.root.exists(), timeout=20_000)
    assert tab.model.bundle is tab.model.bundles[0]
    assert not is_trusted(bundle)


@pytest.mark.parametrize(("count", "more"), [(3, ""), (4, "1 more reason of"), (1203, "1,200 more reasons of")])
def test_the_number_of_further_reasons_is_shown(tmp_path: Path, qtbot: Any, count: int, more: str) -> None:
    reasons = tuple(f"reason {number}" for number in range(count))
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold"))
    dialog = TrustDialog(bundle, Permission("needed", reasons))
    qtbot.addWidget(dialog)
    shown = [label.text() for label in dialog.findChildren(QLabel) if label.text().startswith("•")]
    assert shown[:3] == [f"• {reason}" for reason in reasons[:3]]
    assert shown[3:] == ([f"• and {more} this kind; see the table"] if more else [])


def test_a_download_shows_its_licence_and_its_progress_and_is_cancelled(
    viewer: Any, window: ModelsDialog, qtbot: Any, web: Web, tmp_path: Path
) -> None:
    root = write_threshold_bundle(tmp_path / "from" / "threshold")
    (root / "models" / "large.bin").write_bytes(os.urandom(40_000_000))
    archive = tmp_path / "threshold.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in root.rglob("*"):
            packed.write(file, file.relative_to(root).as_posix())
    web.files["/threshold.zip"] = archive.read_bytes()
    source = f"{web.url}/threshold.zip"

    window.model.add(source)
    qtbot.waitUntil(lambda: window.findChild(LicenceDialog) is not None, timeout=20_000)
    press(window.findChild(LicenceDialog), "Cancel")
    qtbot.waitUntil(lambda: window.model.job is None, timeout=20_000)
    assert "(store.licence)" in window._message.text()
    assert sum(sent for _, _, sent in web.requests) < 500_000  # no more than its table of contents

    qtbot.waitUntil(lambda: window.findChild(LicenceDialog) is None, timeout=5_000)
    window.model.add(source)
    qtbot.waitUntil(lambda: window.findChild(LicenceDialog) is not None, timeout=20_000)
    assert window._progress_bar.isVisible()
    window._cancel_button.click()  # while the licence is asked
    qtbot.waitUntil(lambda: window.model.job is None, timeout=20_000)
    assert window._message.text().startswith("Stopped.")
    assert not window._progress_bar.isVisible()
    assert sum(sent for _, _, sent in web.requests) < 500_000  # no more than its table of contents
    assert store.installed() == []

    qtbot.waitUntil(lambda: window.findChild(LicenceDialog) is None, timeout=5_000)
    window.model.add(source)
    qtbot.waitUntil(lambda: window.findChild(LicenceDialog) is not None, timeout=20_000)
    viewer.window.remove_dock_widget("all")  # its thread ends, although nobody answered
    qtbot.waitUntil(lambda: not window.isVisible(), timeout=5_000)
