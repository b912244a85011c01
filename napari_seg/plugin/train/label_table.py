"""The label values of a data set as a table in Qt, whose classes can be renamed."""

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QAbstractItemView, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget
from superqt.utils import signals_blocked

from napari_seg.plugin.controls import number_item, plain_tip, table
from napari_seg.plugin.train.model import TrainModel
from napari_seg.plugin.train.shown_plan import LabelRow

_CLASS = 1
_ROWS_SHOWN = 8
_TIP = (
    "Double-click to rename the class. The same name joins values; “ignore” leaves voxels out of the training; "
    "“background” makes them background; “a + b” makes two classes that overlap."
)
_TIP_SEVERAL = (
    "Double-click to rename the class in all data sets. The same name joins classes; “background” makes it background; "
    "“a + b” makes two classes that overlap."
)


class LabelTable(QWidget):
    """Table of label values: class, number of cases, fraction of the labelled voxels."""

    def __init__(self, model: TrainModel) -> None:
        super().__init__()
        self.model = model
        self._shown: tuple[list[LabelRow], int, bool] | None = None
        self._table: QTableWidget = table("Value", "Class", "Cases", "Voxels", stretched=_CLASS)
        self._table.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked)
        self._table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._table.itemChanged.connect(self._on_renamed)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)
        self.refresh()

    def _on_renamed(self, item: QTableWidgetItem) -> None:
        value, text = item.data(Qt.ItemDataRole.UserRole), item.text()
        QTimer.singleShot(0, lambda: self._rename(value, text))  # after the editor has closed

    def _rename(self, value: int, text: str) -> None:
        self._shown = None  # a name that is refused is not shown
        self.model.rename(value, text)
        self.refresh()

    def refresh(self) -> None:
        """Show the table of the plan."""
        plan = self.model.plan
        self.setVisible(bool(plan.table))
        is_free = self.model.can_rename
        if self._shown == (plan.table, plan.cases, is_free):
            return
        self._shown = (plan.table, plan.cases, is_free)
        with signals_blocked(self._table):
            self._table.setRowCount(len(plan.table))
            for number, row in enumerate(plan.table):
                self._fill(number, row, self.model.can_rename_row(row))
        self._fit()
        QTimer.singleShot(0, self._fit)  # the theme's sizes are known after the first layout

    def showEvent(self, event: object) -> None:  # Qt's name
        """Fit the height when the tab becomes visible."""
        super().showEvent(event)
        QTimer.singleShot(0, self._fit)

    def _fit(self) -> None:
        """Make the table as high as its rows, up to a number of them."""
        plan = self.model.plan
        height = self._table.rowHeight(0) if plan.table else 0
        shown = min(len(plan.table), _ROWS_SHOWN)
        head = self._table.horizontalHeader()
        header = max(head.height(), head.sizeHint().height())
        self._table.setFixedHeight(header + shown * height + 2 * self._table.frameWidth() + 2)

    def _fill(self, number: int, row: LabelRow, is_free: bool) -> None:
        name = QTableWidgetItem(row.classes)
        name.setData(Qt.ItemDataRole.UserRole, row.value)
        if not is_free:
            name.setFlags(name.flags() & ~Qt.ItemFlag.ItemIsEditable)
        value = number_item(f"⚠ {row.value}" if row.remarks else str(row.value))
        numbers = (f"{row.cases} of {self.model.plan.cases}", f"{row.fraction:.2%}")
        for column, item in enumerate([value, name, *map(number_item, numbers)]):
            tip = (_TIP_SEVERAL if self.model.more else _TIP) if is_free else ""
            tips = [*row.remarks, tip if tip and column == _CLASS else f"{row.voxels:,} voxels"]
            item.setToolTip(plain_tip("\n".join(tips)))
            self._table.setItem(number, column, item)
