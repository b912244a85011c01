"""The Study tab in Qt: a tree of the scans and labels in a folder."""

from typing import TYPE_CHECKING

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QPalette
from qtpy.QtWidgets import QLabel, QSpinBox, QTreeWidget, QTreeWidgetItem, QVBoxLayout, QWidget
from superqt import QElidingLabel

from napari_seg.plugin.controls import DetailsPane, NameColumn, ask_file, ask_folder, button, plain_tip, row
from napari_seg.plugin.study.entries import Entry
from napari_seg.plugin.study.model import StudyModel

if TYPE_CHECKING:
    from napari_seg.formats.scan import Scan

_MARKS = {"process": "✓", "warn": "⚠", "refuse": "✕", "skip": "–"}


class StudyTab(QWidget):
    """Tab to choose a folder or a file, list its series, and open them."""

    def __init__(self, model: StudyModel) -> None:
        super().__init__()
        self.model = model
        self._path = QElidingLabel()
        self._path.setElideMode(Qt.TextElideMode.ElideMiddle)
        self._folder_button = button("Open folder…", "Choose a folder of DICOM, NIfTI or NRRD files.", self.ask_folder)
        self._file_button = button("Open file…", "Choose one file.", self._on_file)
        self._tree = QTreeWidget()
        self._tree.setHeaderLabels(["Series", "Verdict", "Type", "Size", "mm"])
        self._tree.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self._tree.setRootIsDecorated(True)
        self._tree.setUniformRowHeights(True)
        self._tree.setIndentation(12)
        self._tree.setIconSize(QSize(12, 12))
        header = self._tree.header()
        header.setMinimumSectionSize(30)
        NameColumn(self._tree, header, 0, min_width=170)
        self._details = DetailsPane(self._tree)
        self._volume_label = QLabel(textFormat=Qt.TextFormat.PlainText)
        self._volume_box = QSpinBox(toolTip="Number of the volume (time, echo or direction), from 0.")
        self._open_button = button("Show series", "Show the selected series in the window.", self._open_chosen)
        self._labels_button = button(
            "Open as labels", "Show the file as labels, not as a scan: it holds a label map.", self._open_as_labels
        )
        layout = QVBoxLayout(self)
        layout.addLayout(row(self._folder_button, self._file_button))
        layout.addWidget(self._path)
        layout.addWidget(self._details, 1)
        layout.addLayout(row(self._volume_label, self._volume_box))
        layout.addLayout(row(self._open_button, self._labels_button))
        self._tree.itemDoubleClicked.connect(lambda item, _: self._open_item(item))
        self._tree.itemSelectionChanged.connect(self._refresh_choice)
        model.changed.connect(self._refresh)
        self._items: list[QTreeWidgetItem] = []
        self._chosen: Scan | None = None
        self._refresh()

    def ask_folder(self) -> None:
        """Ask for a folder and list its scans."""
        if (path := ask_folder(self, "Open a study")) is not None:
            self.model.list_path(path)

    def _on_file(self) -> None:
        if (path := ask_file(self, "Open a scan")) is not None:
            self.model.list_path(path)

    def _open_chosen(self) -> None:
        for item in self._tree.selectedItems():
            self._open_item(item)

    def _open_as_labels(self) -> None:
        for item in self._tree.selectedItems():
            entry = item.data(0, Qt.ItemDataRole.UserRole)
            if entry is not None and entry.can_be_labels and not self.model.is_loading:
                self.model.open_labels(entry, entry.scan.files[0])

    def _open_item(self, item: QTreeWidgetItem) -> None:
        entry = item.data(0, Qt.ItemDataRole.UserRole)
        if entry is not None and entry.can_open and not self.model.is_loading:
            self.model.open(entry, self._volume_box.value())

    def _refresh(self) -> None:
        model = self.model
        self._path.setText("" if model.path is None else f"{model.path}{'  …' if model.is_listing else ''}")
        if len(model.entries) < len(self._items) or not model.entries:
            self._tree.clear()
            self._items = []
        for item, entry in zip(self._items, model.entries, strict=False):
            if item.data(0, Qt.ItemDataRole.UserRole) is not entry:
                self._fill(item, entry)
        for entry in model.entries[len(self._items) :]:
            item = QTreeWidgetItem(self._folder(entry.folder))
            self._fill(item, entry)
            self._items.append(item)
        if self._items and not self._tree.selectedItems():
            first = next((i for i in self._items if i.data(0, Qt.ItemDataRole.UserRole).can_open), None)
            if first is not None:
                first.setSelected(True)
        self._refresh_choice()

    def _refresh_choice(self) -> None:
        """Show the details, the choices and the buttons of the selected series."""
        chosen = [item.data(0, Qt.ItemDataRole.UserRole) for item in self._tree.selectedItems()]
        self._details.show_text("\n".join(one.details for one in chosen if one is not None))
        entry = next((one for one in chosen if one is not None and one.can_open), None)
        volumes = 0 if entry is None else entry.volumes
        scan = None if entry is None else entry.scan
        if scan is not self._chosen:
            self._chosen = scan
            self._volume_box.setValue(0)
        for widget in (self._volume_label, self._volume_box):
            widget.setVisible(volumes > 0)
        if volumes:
            self._volume_label.setText(f"Volume, 0 to {volumes - 1}")
            self._volume_box.setMaximum(volumes - 1)
        is_labels, is_tilted = (False, False) if entry is None else (entry.labels is not None, entry.is_tilted)
        text = "Show labels" if is_labels else "Straighten and show" if is_tilted else "Show series"
        text = "Open session" if entry is not None and entry.session is not None else text
        self._labels_button.setVisible(entry is not None and entry.can_be_labels)
        self._labels_button.setEnabled(not self.model.is_loading)
        self._open_button.setEnabled(entry is not None and not self.model.is_loading)
        self._open_button.setText("Loading …" if self.model.is_loading else text)

    def _fill(self, item: QTreeWidgetItem, entry: Entry) -> None:
        verdict = entry.verdict
        mark = _MARKS["warn" if entry.can_open and verdict.verdict == "refuse" else verdict.verdict]
        for column, text in enumerate(
            (entry.title, f"{mark} {entry.short}", verdict.modality, entry.size, entry.spacing)
        ):
            item.setText(column, text)
            why = f"{verdict.name}: {entry.words}" + (f" ({verdict.code})" if verdict.code else "")
            item.setToolTip(column, plain_tip(why))
            if not entry.can_open:  # grey, but selectable: the details give the reason
                item.setForeground(column, self.palette().brush(QPalette.ColorGroup.Disabled, QPalette.ColorRole.Text))
        item.setData(0, Qt.ItemDataRole.UserRole, entry)

    def _folder(self, name: str) -> QTreeWidgetItem:
        """Return the branch of a folder; the root for the chosen folder itself."""
        root = self._tree.invisibleRootItem()
        if name == ".":
            return root
        for n in range(root.childCount()):
            if root.child(n).text(0) == name and root.child(n).data(0, Qt.ItemDataRole.UserRole) is None:
                return root.child(n)
        branch = QTreeWidgetItem(root, [name])
        branch.setFirstColumnSpanned(True)
        branch.setExpanded(True)
        return branch
