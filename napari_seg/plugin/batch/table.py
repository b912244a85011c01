"""The cases of a batch as a model of a Qt table, which shows some or all of them; fast for tens of thousands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt
from qtpy.QtWidgets import QWidget

from napari_seg.plugin.batch.watch import Row
from napari_seg.plugin.controls import plain_tip

_HEADS = ("", "Scan", "s", "Result")
_MARKS = {"waiting": "·", "running": "▶", "stopped": "–", "done": "✓", "failed": "✕", "skipped": "–"}

FILTERS: dict[str, Callable[[Row], bool]] = {
    "All": lambda row: True,
    "Running": lambda row: row.state == "running",
    "Waiting": lambda row: row.state in ("waiting", "stopped"),
    "Done": lambda row: row.state == "done",
    "Failed": lambda row: row.state == "failed",
    "Skipped": lambda row: row.state == "skipped",
    "With notices": lambda row: bool(row.notices),
}
"""Title of a choice of rows -> whether it contains a row."""


class CaseTable(QAbstractTableModel):
    """The rows of a batch that a filter lets through.

    Args:
        rows: returns all rows.
        hint: returns what a double-click on a row opens.
        parent: owner of this object.
    """

    def __init__(self, rows: Callable[[], list[Row]], hint: Callable[[Row], str], parent: QWidget) -> None:
        super().__init__(parent)
        self._rows = rows
        self._hint = hint
        self._filter = "All"
        self._shown: list[int] = []
        """Places of the shown rows among all rows."""

    def counts(self) -> dict[str, int]:
        """Return title of a filter -> number of rows that it lets through."""
        rows = self._rows()
        return {title: sum(map(lets_through, rows)) for title, lets_through in FILTERS.items()}

    def place_of(self, number: int) -> int:
        """Return the place among all rows of a row of the table."""
        return self._shown[number]

    def number_of(self, place: int) -> int | None:
        """Return the row of the table that shows a row; None if the filter holds it back."""
        try:
            return self._shown.index(place)
        except ValueError:
            return None

    def filter_by(self, title: str) -> None:
        """Show the rows that a filter lets through."""
        self._filter = title
        self.beginResetModel()
        self._shown = self._let_through()
        self.endResetModel()

    def refresh(self, first: int, last: int) -> None:
        """Show rows that are new or have changed.

        Args:
            first: place of the first of them; -1 if rows were dropped.
            last: place of the last.
        """
        shown = self._let_through()
        old = len(self._shown)
        if first < 0 or shown[:old] != self._shown:
            self.beginResetModel()
            self._shown = shown
            self.endResetModel()
            return
        if len(shown) > old:
            self.beginInsertRows(QModelIndex(), old, len(shown) - 1)
            self._shown = shown
            self.endInsertRows()
        changed = [number for number, place in enumerate(shown[:old]) if first <= place <= last]
        if changed:
            self.dataChanged.emit(self.index(changed[0], 0), self.index(changed[-1], len(_HEADS) - 1))

    def _let_through(self) -> list[int]:
        lets_through = FILTERS[self._filter]
        return [place for place, row in enumerate(self._rows()) if lets_through(row)]

    # of Qt

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008
        """Return the number of rows."""
        return 0 if parent.isValid() else len(self._shown)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008
        """Return the number of columns."""
        return 0 if parent.isValid() else len(_HEADS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return the head of a column."""
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return _HEADS[section]
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return the content of a cell."""
        row = self._rows()[self._shown[index.row()]]
        if role == Qt.ItemDataRole.DisplayRole:
            return self._text(row, index.column())
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column() == 2:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role == Qt.ItemDataRole.ToolTipRole:
            return plain_tip("\n".join(filter(None, [row.title, row.text or row.state, *row.notices, self._hint(row)])))
        return None

    @staticmethod
    def _text(row: Row, column: int) -> str:
        if column == 0:
            return "⚠" if row.notices else _MARKS[row.state]
        if column == 1:
            return row.title
        if column == 2:
            return f"{row.seconds:.0f}" if row.seconds else ""
        return row.text or row.state
