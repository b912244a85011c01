"""Widgets and dialogs that several tabs use."""

from collections.abc import Callable
from html import escape
from pathlib import Path

from qtpy.QtCore import QAbstractTableModel, QEvent, QObject, Qt, QTimer
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSplitter,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QTableView,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_seg.plugin.job import Jobs

_DELIVER_MS = 50


def deliver_on_timer(jobs: Jobs, owner: QObject) -> None:
    """Call the callbacks of jobs in the main thread, on a timer that runs while any job runs.

    Args:
        jobs: jobs of one window.
        owner: parent of the timer; Qt deletes both together.
    """
    timer = QTimer(owner, interval=_DELIVER_MS)

    def deliver() -> None:
        jobs.deliver()
        if jobs.is_idle:
            timer.stop()

    timer.timeout.connect(deliver)
    jobs.started.connect(lambda: timer.start())


class _ElidingBox(QComboBox):
    """Combo box that elides long entries in the middle; its tool tip shows the whole entry."""

    def __init__(self, tool_tip: str) -> None:
        super().__init__(toolTip=tool_tip)
        self._tool_tip = tool_tip

    def event(self, event: QEvent) -> bool:  # Qt's name
        """Show the whole entry above the tool tip."""
        if event.type() == QEvent.Type.ToolTip:
            self.setToolTip(plain_tip("\n".join(filter(None, (self.currentText(), self._tool_tip)))))
        handled: bool = super().event(event)
        return handled

    def paintEvent(self, event: object) -> None:  # Qt's name
        """Draw the entry as Qt does, but elide it in the middle if it is too long."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        room = self.style().subControlRect(
            QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self
        )
        text = option.currentText or self.placeholderText()
        option.currentText = self.fontMetrics().elidedText(text, Qt.TextElideMode.ElideMiddle, room.width() - 4)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)


def box(tool_tip: str) -> QComboBox:
    """Return a combo box that long entries don't widen."""
    combo = _ElidingBox(tool_tip)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(12)
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return combo


def button(text: str, tool_tip: str, on_click: Callable[..., object] | None = None) -> QPushButton:
    """Return a push button."""
    widget = QPushButton(text, toolTip=tool_tip)
    if on_click is not None:
        widget.clicked.connect(lambda *_: on_click())
    return widget


def plain_tip(text: str) -> str:
    """Return a text with foreign words for a tool tip or a message box, in which Qt would follow markup.

    Markup can name files: Qt opens an image in it, also one on another computer.
    """
    return f"<qt>{escape(text).replace(chr(10), '<br>')}</qt>"


def row(*widgets: QWidget) -> QHBoxLayout:
    """Return a layout of widgets side by side."""
    layout = QHBoxLayout()
    for widget in widgets:
        layout.addWidget(widget)
    return layout


def scrolled(widget: QWidget, min_height: int = 60) -> QScrollArea:
    """Return an area that scrolls a widget vertically if it is too high."""
    area = QScrollArea(widgetResizable=True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setMinimumHeight(min_height)
    area.setWidget(widget)
    return area


class DetailsPane(QSplitter):
    """A list, and below it a text with everything about the selected row that its columns have no room for.

    Args:
        view: the table or the tree.
    """

    def __init__(self, view: QAbstractItemView) -> None:
        super().__init__(Qt.Orientation.Vertical)
        self._label = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._label.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.addWidget(view)
        self.addWidget(scrolled(self._label))
        self.setStretchFactor(0, 1)
        self.setSizes([400, 80])

    def text(self) -> str:
        """Return the text."""
        text: str = self._label.text()
        return text

    def show_text(self, text: str) -> None:
        """Replace the text."""
        self._label.setText(text)


class NameColumn(QObject):
    """Gives the column of names the remaining width of a table or a tree, but never less than a minimum.

    Args:
        view: the table or the tree.
        header: its horizontal header; the other columns fit their contents.
        column: number of the column of names.
        min_width: in pixels; if there is less, the view scrolls horizontally.
    """

    def __init__(self, view: QAbstractItemView, header: QHeaderView, column: int, min_width: int = 130) -> None:
        super().__init__(view)
        self._view, self._header, self._column, self._min_width = view, header, column, min_width
        header.setStretchLastSection(False)
        for other in range(header.count()):
            if other != column:
                header.setSectionResizeMode(other, QHeaderView.ResizeMode.ResizeToContents)
        self._timer = QTimer(self, singleShot=True, interval=0)  # after all columns have their widths
        self._timer.timeout.connect(self._fit)
        header.sectionResized.connect(lambda section, *_: None if section == column else self._timer.start())
        view.viewport().installEventFilter(self)

    def eventFilter(self, watched: object, event: QEvent) -> bool:  # Qt's name
        """Fit the column when the view is resized."""
        if event.type() == QEvent.Type.Resize:
            self._timer.start()
        return False

    def _fit(self) -> None:
        others = self._header.length() - self._header.sectionSize(self._column)
        room = self._view.viewport().width() - others
        self._header.resizeSection(self._column, max(self._min_width, room))


def table(*heads: str, stretched: int, min_width: int = 130) -> QTableWidget:
    """Return a table that selects whole rows; one column takes the remaining width.

    Args:
        heads: heads of the columns.
        stretched: number of the column that takes the remaining width.
        min_width: its minimum in pixels.
    """
    widget = QTableWidget(0, len(heads))
    widget.setHorizontalHeaderLabels(list(heads))
    _style(widget, stretched, min_width)
    return widget


def table_view(model: QAbstractTableModel, *, stretched: int) -> QTableView:
    """Return a table of a model of many rows, which looks like `table`; columns fit the rows in view."""
    widget = QTableView()
    widget.setModel(model)
    widget.horizontalHeader().setResizeContentsPrecision(0)
    widget.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
    _style(widget, stretched)
    return widget


def _style(widget: QTableView, stretched: int, min_width: int = 130) -> None:
    widget.verticalHeader().hide()
    widget.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    widget.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    widget.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    widget.setShowGrid(False)
    widget.setWordWrap(False)
    widget.setTextElideMode(Qt.TextElideMode.ElideMiddle)
    header = widget.horizontalHeader()
    header.setMinimumSectionSize(20)
    NameColumn(widget, header, stretched, min_width)


def number_item(text: str) -> QTableWidgetItem:
    """Return a read-only cell with a number, aligned to the right."""
    item = QTableWidgetItem(text)
    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
    return item


def swatch(color: tuple[int, int, int]) -> QIcon:
    """Return an icon: a square of a colour."""
    pixmap = QPixmap(16, 16)
    pixmap.fill(QColor(*color))
    return QIcon(pixmap)


def ask_folder(parent: QWidget, title: str) -> Path | None:
    """Return the folder that the user chooses; None if the dialog is cancelled."""
    path = QFileDialog.getExistingDirectory(parent, title)
    return Path(path) if path else None


def ask_file(parent: QWidget, title: str) -> Path | None:
    """Return the file that the user chooses; None if the dialog is cancelled."""
    path, _ = QFileDialog.getOpenFileName(parent, title)
    return Path(path) if path else None
