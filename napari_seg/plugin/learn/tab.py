"""The Learn tab in Qt: accept corrected cases, choose the next one, improve the model."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from qtpy.QtWidgets import QFrame, QVBoxLayout, QWidget

from napari_seg.plugin import shortcuts
from napari_seg.plugin.controls import scrolled
from napari_seg.plugin.learn.accept_section import AcceptSection
from napari_seg.plugin.learn.improve_section import ImproveSection
from napari_seg.plugin.learn.model import LearnModel
from napari_seg.plugin.learn.which_next_section import WhichNextSection

if TYPE_CHECKING:
    from napari.components import ViewerModel

ACCEPT_KEY = "Control-Shift-A"

_tabs: WeakSet[LearnTab] = WeakSet()


class LearnTab(QWidget):
    """Tab for the loop of correction and training: Accept, Which next?, Improve."""

    def __init__(self, model: LearnModel) -> None:
        super().__init__()
        self.model = model
        self.accept_section = AcceptSection(model.accepting)
        self.which_next_section = WhichNextSection(model.which_next)
        self.improve_section = ImproveSection(model.improving)
        body = QWidget()
        layout = QVBoxLayout(body)
        layout.setContentsMargins(0, 0, 4, 0)
        for number, section in enumerate((self.accept_section, self.which_next_section, self.improve_section)):
            if number:
                line = QFrame()
                line.setFrameShape(QFrame.Shape.HLine)
                layout.addWidget(line)
            layout.addWidget(section)
        layout.addStretch(1)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 6, 2, 6)
        outer.addWidget(scrolled(body, 120), 1)
        _tabs.add(self)
        shortcuts.register("napari-seg:accept", _accept, "Accept the selected labels as a case", ACCEPT_KEY)

    def accept(self) -> None:
        """Accept the selected labels."""
        self.accept_section.accept()


def _accept(viewer: ViewerModel) -> None:
    """Accept the selected labels as a case of the training set."""
    for tab in list(_tabs):
        if not tab.model.session.is_closed and tab.model.session.viewer is viewer:
            tab.accept()
