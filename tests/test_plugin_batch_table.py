"""The table of the Batch tab: filters and changes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_seg.plugin.batch.table import CaseTable
from napari_seg.plugin.batch.watch import Row

pytestmark = pytest.mark.window


def test_a_filter_shows_some_rows_and_follows_their_changes(qtbot: Any) -> None:
    owner = QWidget()
    qtbot.addWidget(owner)
    rows = [Row(1, "a", "waiting"), Row(2, "b", "failed", "it broke")]
    table = CaseTable(lambda: rows, lambda row: "open it", owner)
    inserted: list[tuple[int, int]] = []
    changed: list[tuple[int, int]] = []
    resets: list[None] = []
    table.rowsInserted.connect(lambda _, first, last: inserted.append((first, last)))
    table.dataChanged.connect(lambda first, last, _: changed.append((first.row(), last.row())))
    table.modelReset.connect(lambda: resets.append(None))

    def texts() -> list[list[str]]:
        return [[table.index(row, column).data() for column in range(4)] for row in range(table.rowCount())]

    table.refresh(0, 1)
    assert (inserted, changed, resets) == ([(0, 1)], [], [])
    assert texts() == [["·", "a", "", "waiting"], ["✕", "b", "", "it broke"]]
    rows[0] = Row(1, "a", "done", "ball 1.00 ml", 3.2, notices=("odd",))
    rows.append(Row(3, "c", "running", "reading …"))
    table.refresh(0, 2)
    assert (inserted, changed, resets) == ([(0, 1), (2, 2)], [(0, 1)], [])
    assert texts()[0] == ["⚠", "a", "3", "ball 1.00 ml"]
    assert table.index(0, 1).data(Qt.ItemDataRole.ToolTipRole) == ("<qt>a<br>ball 1.00 ml<br>odd<br>open it</qt>")
    assert table.counts() == {
        "All": 3,
        "Running": 1,
        "Waiting": 0,
        "Done": 1,
        "Failed": 1,
        "Skipped": 0,
        "With notices": 1,
    }

    table.filter_by("Failed")
    assert [line[1] for line in texts()] == ["b"]
    assert table.place_of(0) == 1
    assert (table.number_of(1), table.number_of(0)) == (0, None)
    rows[2] = Row(3, "c", "failed", "it broke too")
    table.refresh(2, 2)
    assert [line[1] for line in texts()] == ["b", "c"]
    assert inserted[-1] == (1, 1)
    rows[1] = Row(2, "b", "waiting")
    table.refresh(1, 1)
    assert [line[1] for line in texts()] == ["c"]
    rows.clear()
    table.refresh(-1, -1)
    assert texts() == []


def test_names_of_a_strangers_manifest_are_no_markup(qtbot: Any) -> None:
    owner = QWidget()
    qtbot.addWidget(owner)
    rows = [Row(1, "<img src='//host/share/a.png'>\x1b[2J", "failed", "<b>broke</b>")]
    table = CaseTable(lambda: rows, lambda row: "", owner)
    table.refresh(0, 0)
    tip = table.index(0, 1).data(Qt.ItemDataRole.ToolTipRole)
    assert "<img" not in tip
    assert "<b>" not in tip
    assert "\x1b" not in tip + table.index(0, 1).data()
