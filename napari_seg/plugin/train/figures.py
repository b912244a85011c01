"""Figures of a run in Qt: its learning curves, and the worst and best cases of its best validation."""

from pathlib import Path

from qtpy.QtCore import QByteArray, QEvent, QRectF, QSize, Qt, QUrl
from qtpy.QtGui import QDesktopServices, QPainter, QPalette, QPixmap, QResizeEvent
from qtpy.QtSvg import QSvgRenderer
from qtpy.QtWidgets import QLabel, QSizePolicy, QWidget

from napari_seg.training.curves import Palette, draw_curves
from napari_seg.training.history import RunState

_CURVES_HEIGHT = 300.0
_MIN_WIDTH = 240


class CurvesView(QWidget):
    """The learning curves of a run, in the colours of the theme."""

    def __init__(self) -> None:
        super().__init__()
        self._state: RunState | None = None
        self._live: list[tuple[float, float]] = []
        self._drawing = QSvgRenderer()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.hide()

    def show_run(self, state: RunState | None, live: list[tuple[float, float]]) -> None:
        """Show a run; hide the curves if there is nothing to draw."""
        self._state, self._live = state, list(live)
        self._draw()

    def _draw(self) -> None:
        """Draw the run for the present width and theme."""
        svg = ""
        if self._state is not None:
            colours = Palette(*(_mixed(self.palette(), share) for share in (1.0, 0.65, 0.2)))
            width = float(max(self.width(), _MIN_WIDTH))
            svg = draw_curves([self._state], colours, width, _CURVES_HEIGHT, self._live)
        self.setVisible(bool(svg))
        if svg:
            self._drawing.load(QByteArray(svg.encode()))
            self.setFixedHeight(round(self._drawing.viewBoxF().height()))
            self.update()

    def resizeEvent(self, event: QResizeEvent) -> None:  # Qt's name
        """Draw again for the new width."""
        if event.size().width() != event.oldSize().width():
            self._draw()

    def changeEvent(self, event: QEvent) -> None:  # Qt's name
        """Draw again after the theme has changed."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.StyleChange):
            self._draw()

    def paintEvent(self, event: object) -> None:  # Qt's name
        """Paint the drawing."""
        painter = QPainter(self)
        self._drawing.render(painter, QRectF(self.rect()))
        painter.end()


def _mixed(palette: QPalette, share: float) -> str:
    """Return the colour of the text, mixed into that of the window, as CSS."""
    text, window = (palette.color(role) for role in (QPalette.ColorRole.WindowText, QPalette.ColorRole.Window))
    pairs = zip(text.getRgb()[:3], window.getRgb()[:3], strict=True)
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


class PreviewView(QLabel):
    """The worst and best cases of the best validation, as wide as the tab."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setToolTip(
            "Worst and best validation cases: the reference is outlined solid, the prediction dashed. Click to enlarge."
        )
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self._file: tuple[Path, float] | None = None
        self._image = QPixmap()
        self.hide()

    def show_file(self, state: RunState | None) -> None:
        """Show the image of a run; it is read again when it was written again."""
        preview = None if state is None or state.preview is None else (state.preview, state.preview_time)
        if preview == self._file:
            return
        self._file = preview
        self._image = QPixmap() if preview is None else QPixmap(str(preview[0]))
        self.setVisible(not self._image.isNull())
        self._fit()

    def mouseReleaseEvent(self, event: object) -> None:  # Qt's name
        """Open the image in the system's viewer."""
        if self._file is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._file[0])))

    def resizeEvent(self, event: object) -> None:  # Qt's name
        """Fit the image to the new width."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        if self._image.isNull() or self.width() < 2:
            return
        ratio = self.devicePixelRatioF()
        size = QSize(round(self.width() * ratio), 10**6)
        scaled = self._image.scaled(
            size, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        )
        scaled.setDevicePixelRatio(ratio)
        self.setPixmap(scaled)
        self.setFixedHeight(round(scaled.height() / ratio))
