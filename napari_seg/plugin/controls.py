"""Small Qt parts that several tabs are made of."""

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import QEvent, QObject, Qt, QTimer
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
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_seg.plugin.job import Jobs

_DELIVER_MS = 50


def deliver_on_timer(jobs: Jobs, owner: QObject) -> None:
    """Deliver what jobs report in the main thread, while any job runs.

    Args:
        jobs: of one window.
        owner: Qt deletes the timer together with it; nothing is delivered after that.
    """
    timer = QTimer(owner, interval=_DELIVER_MS)

    def deliver() -> None:
        jobs.deliver()
        if jobs.is_idle:
            timer.stop()

    timer.timeout.connect(deliver)
    jobs.started.connect(lambda: timer.start())


class _ElidingBox(QComboBox):
    """A list whose long entries are cut in the middle; its tool tip shows the whole entry."""

    def __init__(self, tool_tip: str) -> None:
        super().__init__(toolTip=tool_tip)
        self._tool_tip = tool_tip

    def event(self, event: QEvent) -> bool:  # Qt's name
        """Show the whole entry above what the list is for."""
        if event.type() == QEvent.Type.ToolTip:
            self.setToolTip(f"{self.currentText()}\n{self._tool_tip}" if self.currentText() else self._tool_tip)
        handled: bool = super().event(event)
        return handled

    def paintEvent(self, event: object) -> None:  # Qt's name
        """Draw the entry as Qt does, with its middle left out where there is no room for it."""
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
    """A list to choose from, that long entries don't make wide."""
    answer = _ElidingBox(tool_tip)
    answer.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    answer.setMinimumContentsLength(12)
    answer.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return answer


def button(text: str, tool_tip: str, on_click: Callable[..., object] | None = None) -> QPushButton:
    """A button that says what it does."""
    answer = QPushButton(text, toolTip=tool_tip)
    if on_click is not None:
        answer.clicked.connect(lambda *_: on_click())
    return answer


def row(*widgets: QWidget) -> QHBoxLayout:
    """Widgets side by side."""
    answer = QHBoxLayout()
    for widget in widgets:
        answer.addWidget(widget)
    return answer


def scrolled(widget: QWidget, least_height: int = 60) -> QScrollArea:
    """Return a widget in an area that scrolls up and down where it is too high."""
    answer = QScrollArea(widgetResizable=True)
    answer.setFrameShape(QFrame.Shape.NoFrame)
    answer.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    answer.setMinimumHeight(least_height)
    answer.setWidget(widget)
    return answer


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
    """Gives the column with names the room that the others leave, but never so little that names become alike.

    Args:
        view: a table or a tree.
        header: its horizontal header; the other columns fit their contents.
        column: the one with the names.
        least: width in pixels below which the others are scrolled to instead.
    """

    def __init__(self, view: QAbstractItemView, header: QHeaderView, column: int, least: int = 130) -> None:
        super().__init__(view)
        self._view, self._header, self._column, self._least = view, header, column, least
        header.setStretchLastSection(False)
        for other in range(header.count()):
            if other != column:
                header.setSectionResizeMode(other, QHeaderView.ResizeMode.ResizeToContents)
        self._timer = QTimer(self, singleShot=True, interval=0)  # once all columns have their size
        self._timer.timeout.connect(self._fit)
        header.sectionResized.connect(lambda section, *_: None if section == column else self._timer.start())
        view.viewport().installEventFilter(self)

    def eventFilter(self, watched: object, event: QEvent) -> bool:  # Qt's name
        """Fit the column into a view of another size."""
        if event.type() == QEvent.Type.Resize:
            self._timer.start()
        return False

    def _fit(self) -> None:
        others = self._header.length() - self._header.sectionSize(self._column)
        room = self._view.viewport().width() - others
        self._header.resizeSection(self._column, max(self._least, room))


def table(*heads: str, stretched: int) -> QTableWidget:
    """A table of whole rows to pick from, of which one column takes the room that is left."""
    answer = QTableWidget(0, len(heads))
    answer.setHorizontalHeaderLabels(list(heads))
    answer.verticalHeader().hide()
    answer.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    answer.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    answer.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    answer.setShowGrid(False)
    answer.setWordWrap(False)
    answer.setTextElideMode(Qt.TextElideMode.ElideMiddle)
    header = answer.horizontalHeader()
    header.setMinimumSectionSize(20)
    NameColumn(answer, header, stretched)
    return answer


def number_item(text: str) -> QTableWidgetItem:
    """A cell that holds a number: to the right."""
    answer = QTableWidgetItem(text)
    answer.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    answer.setFlags(answer.flags() & ~Qt.ItemFlag.ItemIsEditable)
    return answer


def swatch(color: tuple[int, int, int]) -> QIcon:
    """A square of a colour."""
    pixmap = QPixmap(16, 16)
    pixmap.fill(QColor(*color))
    return QIcon(pixmap)


def ask_folder(parent: QWidget, title: str) -> Path | None:
    """A folder that a person chooses; None if she does not."""
    path = QFileDialog.getExistingDirectory(parent, title)
    return Path(path) if path else None


def ask_file(parent: QWidget, title: str) -> Path | None:
    """A file that a person chooses; None if she does not."""
    path, _ = QFileDialog.getOpenFileName(parent, title)
    return Path(path) if path else None
