"""The window in which structures are chosen: needs a screen, or Xvfb."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialogButtonBox

from napari_seg.bundles.totalsegmentator.table import structures_of, task_of
from napari_seg.plugin.segment.choice import StructureChoice
from napari_seg.plugin.segment.choice_dialog import StructuresDialog

pytestmark = pytest.mark.window


@pytest.fixture
def dialog(qtbot: Any) -> StructuresDialog:
    dialog = StructuresDialog(StructureChoice(structures_of(task_of("total"))), "TotalSegmentator total")
    qtbot.addWidget(dialog)
    dialog.show()
    return dialog


def visible(dialog: StructuresDialog) -> list[str]:
    items = [dialog._list.item(n) for n in range(dialog._list.count())]
    return [item.text() for item in items if not item.isHidden()]


def test_structures_are_found_and_ticked(dialog: StructuresDialog, qtbot: Any) -> None:
    assert len(visible(dialog)) == 117
    ok = dialog._buttons.button(QDialogButtonBox.StandardButton.Ok)
    dialog._none_button.click()
    assert not ok.isEnabled()
    assert "Choose at least one structure." in ok.toolTip()
    qtbot.keyClicks(dialog._words, "kidney left")
    assert visible(dialog) == ["kidney_left", "kidney_cyst_left"]
    dialog._items["kidney_left"].setCheckState(Qt.CheckState.Checked)
    assert dialog.model.names == ("kidney_left",)
    assert dialog._summary.text() == "1 of 117 chosen; 2 shown"
    qtbot.keyClick(dialog._words, Qt.Key.Key_Return)  # accepts, and changes no choice
    assert dialog.model.names == ("kidney_left",)
    assert ok.isEnabled()


def test_nothing_listed_can_be_chosen(dialog: StructuresDialog, qtbot: Any) -> None:
    qtbot.keyClicks(dialog._words, "no such organ")
    assert visible(dialog) == []
    assert not dialog._all_button.isEnabled()
    assert dialog.model.names == ()
