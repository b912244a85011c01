"""Dialogs that ask for the user's consent: to the code of a model, and to its licence.

Foreign text is shown as plain text only: markup in a name could hide a warning. Cancel is the default.
"""

from qtpy.QtCore import Qt
from qtpy.QtGui import QFont, QFontDatabase
from qtpy.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFrame,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_seg.bundles.content import MAX_LINES
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.store.licence import Licence
from napari_seg.errors import counted, printable
from napari_seg.plugin.controls import number_item, table
from napari_seg.plugin.models.permission import Permission
from napari_seg.plugin.models.rows import LICENCE_KINDS

_LICENCE_MEANS = {
    "open": "You may use, change and share the model as long as you keep its notices.",
    "non-commercial": "You may not use the model for commercial purposes.",
    "research": "You may use the model for research only.",
    "unknown": "napari-seg does not recognise this licence: read what it allows.",
}

_FILE_WIDTH = 30
_TEXT_WIDTH = 64
_WHY_WIDTH = 36
"""Widths of columns in characters."""

_MEASURED_ROWS = 50
_MAX_REASONS = 3


class TrustDialog(QDialog):
    """Asks for consent to the code of a bundle: shows what would run, and what consent means.

    Args:
        bundle: the bundle.
        permission: what was found in it.
        parent: the dialog lies on it.
    """

    def __init__(self, bundle: Bundle, permission: Permission, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Trust this model?")
        is_changed = permission.kind == "changed"
        found = (
            "The code of this model, or a file that it can read, changed since you trusted it, or was not checked then."
            if is_changed
            else "This model contains program code, or files that can act like it."
        )
        layout = QVBoxLayout(self)
        layout.addWidget(_text(f"{bundle.name} {bundle.version}".strip(), is_bold=True))
        layout.addWidget(_text(printable(str(bundle.root))))
        layout.addWidget(_text(found, is_bold=is_changed))
        reasons = permission.reasons[:_MAX_REASONS]
        for reason in reasons:
            layout.addWidget(_text(f"• {reason}"))
        if len(permission.reasons) > len(reasons):
            more = counted(len(permission.reasons) - len(reasons), "more reason")
            layout.addWidget(_text(f"• and {more} of this kind; see the table"))
        if permission.runs_as_written:
            layout.addWidget(_text("MONAI would run it exactly as written, outside napari-seg's own inference."))
        layout.addWidget(_text(_count_of(permission)))
        layout.addWidget(_lines_table(permission), 1)
        layout.addWidget(_text("Content (SHA-256 of everything in the model that can act):"))
        self._digest = QLineEdit(permission.digest, readOnly=True)
        self._digest.setFont(_monospaced())
        self._digest.setCursorPosition(0)
        layout.addWidget(self._digest)
        layout.addWidget(
            _text(
                "If you trust this content, its code can do on this computer whatever you can: read and change your "
                "files, and send them over the network. Your consent holds for exactly this content; if any of it "
                "changes, you are asked again. Trust it only if you know where it comes from."
            )
        )
        layout.addWidget(_buttons(self, "Trust this content"))
        self.resize(1040, 640)


class LicenceDialog(QDialog):
    """Asks for consent to the licence of a model before it is downloaded.

    Args:
        licence: the licence.
        parent: the dialog lies on it.
    """

    def __init__(self, licence: Licence, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Accept the licence?")
        layout = QVBoxLayout(self)
        layout.addWidget(_text(licence.model, is_bold=True))
        layout.addWidget(_text(f"Licence: {licence.name or 'not named'} ({LICENCE_KINDS[licence.kind].lower()})"))
        layout.addWidget(_text(_LICENCE_MEANS[licence.kind], is_bold=licence.kind != "open"))
        text = QPlainTextEdit(readOnly=True, tabChangesFocus=True)
        text.setPlainText(printable(licence.text) or "The text of the licence is inside the download.")
        text.setFont(_monospaced())
        layout.addWidget(text, 1)
        layout.addWidget(_text("No weights have been downloaded yet. You are asked once for each licence of a model."))
        layout.addWidget(_buttons(self, "Accept and download"))
        self.resize(760, 560)


def _count_of(permission: Permission) -> str:
    if not permission.lines:
        return "No single line stands out; read the files of the folder."
    used = sum(line.is_used for line in permission.lines)
    rest = len(permission.lines) - used
    unread = f", and {rest} in files that a segmentation does not read" if rest else ""
    limit = f" (the first {MAX_LINES} are shown)" if len(permission.lines) >= MAX_LINES else ""
    return f"Code in {counted(used, 'place')}{unread}{limit}. A module runs whole: the lines shown of it are hints."


def _lines_table(permission: Permission) -> QWidget:
    """Return a table of the lines; long ones are broken, so that nothing that would run is cut off."""
    widget = table("File", "Line", "Text", "Why", stretched=3)
    widget.setAccessibleName("Code of the model")
    widget.setTabKeyNavigation(False)
    widget.setWordWrap(True)
    widget.setVerticalScrollMode(widget.ScrollMode.ScrollPerPixel)  # one expression may be higher than the table
    widget.setRowCount(len(permission.lines))
    widget.horizontalHeader().setResizeContentsPrecision(_MEASURED_ROWS)
    line_height = widget.fontMetrics().lineSpacing()
    for number, line in enumerate(permission.lines):
        why = line.why if line.is_used else f"{line.why}; a segmentation does not read it"
        cells = (_broken(line.file, _FILE_WIDTH), str(line.line or ""), _broken(line.text, _TEXT_WIDTH), why)
        for column, text in enumerate(cells):
            item = number_item(text) if column == 1 else QTableWidgetItem(text)
            if column < 3:
                item.setFont(_monospaced())
            widget.setItem(number, column, item)
        height = max(cells[0].count("\n"), cells[2].count("\n"), len(why) // _WHY_WIDTH) + 1
        widget.setRowHeight(number, height * line_height + 8)  # Qt would lay out every text, which takes seconds
    if permission.lines:
        widget.selectRow(0)
    return widget


def _broken(text: str, width: int) -> str:
    """Return a text with a line break after each number of characters."""
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))


def _monospaced() -> QFont:
    return QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)


def _text(text: str, is_bold: bool = False) -> QLabel:
    label = QLabel(text, wordWrap=True, textFormat=Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setFrameShape(QFrame.Shape.NoFrame)
    if is_bold:
        font = label.font()
        font.setBold(True)
        label.setFont(font)
    return label


def _buttons(dialog: QDialog, accept: str) -> QDialogButtonBox:
    """Return the buttons of a question; Return and Escape both mean Cancel."""
    buttons = QDialogButtonBox()
    yes = buttons.addButton(accept, QDialogButtonBox.ButtonRole.AcceptRole)
    no = buttons.addButton("Cancel", QDialogButtonBox.ButtonRole.RejectRole)
    yes.setAutoDefault(False)
    no.setDefault(True)
    buttons.accepted.connect(dialog.accept)
    buttons.rejected.connect(dialog.reject)
    return buttons
