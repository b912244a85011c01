"""Dialog before the first use of an interactive network: its licence, and the server that gets the scan."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QDialog, QDialogButtonBox, QFormLayout, QLabel, QLineEdit, QVBoxLayout, QWidget

from napari_seg.editing.interactive_network import NetworkLicence

_LOCAL_SERVER = "http://127.0.0.1:1527"


class Connection(NamedTuple):
    """Server that a person has entered.

    Attributes:
        server: its address.
        api_key: its key; "" if it has none.
        unencrypted: whether the scan may travel to another machine over http.
    """

    server: str
    api_key: str
    unencrypted: bool


class NetworkDialog(QDialog):
    """Shows the licence of a network's weights, and asks for its server; it can be confirmed after acceptance only."""

    def __init__(self, name: str, licence: NetworkLicence, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle(name)
        text = QLabel(
            f"<p>{escape(licence.summary)}</p>"
            f'<p>Licence: <a href="{escape(licence.url, quote=True)}">{escape(licence.name)}</a></p>'
            "<p>The scan is sent to this server:</p>",
            textFormat=Qt.TextFormat.RichText,
            wordWrap=True,
            openExternalLinks=True,
        )
        self.server = QLineEdit(_LOCAL_SERVER)
        self.api_key = QLineEdit(echoMode=QLineEdit.EchoMode.Password)
        self.unencrypted_box = QCheckBox("Allow http to another machine")
        self.unencrypted_box.setToolTip(
            "Without encryption, others in the network can read the scan and the key on their way. Use it only in a "
            "network that you trust."
        )
        self.accepted_box = QCheckBox("I have read the licence and accept it")
        form = QFormLayout()
        form.addRow("Server", self.server)
        form.addRow("Key", self.api_key)
        form.addRow("", self.unencrypted_box)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        self.ok = buttons.button(QDialogButtonBox.StandardButton.Ok)
        self.ok.setText("Connect")
        self.ok.setEnabled(False)
        self.accepted_box.toggled.connect(self.ok.setEnabled)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.addWidget(text)
        layout.addLayout(form)
        layout.addWidget(self.accepted_box)
        layout.addWidget(buttons)

    @classmethod
    def ask(cls, name: str, licence: NetworkLicence, parent: QWidget) -> Connection | None:
        """Return the server that a person connects to; None if the licence is not accepted or the dialog cancelled."""
        dialog = cls(name, licence, parent)
        if not dialog.exec() or not dialog.accepted_box.isChecked():
            return None
        is_unencrypted = dialog.unencrypted_box.isChecked()
        return Connection(dialog.server.text().strip(), dialog.api_key.text(), is_unencrypted)
