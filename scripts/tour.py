"""Walk through the plugin in a real napari window with real clicks and keys, and take a screenshot after each step.

    xvfb-run -a -s "-screen 0 1680x1000x24" python scripts/tour.py study/ -o tour/
    xvfb-run -a -s "-screen 0 1680x1000x24" python scripts/tour.py -o docs/images     the images of the docs
    xvfb-run -a -s "-screen 0 1680x1000x24" python scripts/tour.py --bare             time napari without the plugin

The walk opens a folder of DICOM or NIfTI, or the MNI152 head without one. It clicks only what a user could click, and
answers the file dialogs of the system. It prints the duration of each step and the longest time that the window did
not respond.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "xcb")

_DRAW_SECONDS = 0.5

_BUSY_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, help="a folder; the MNI152 head if left out")
    parser.add_argument("-o", "--output", type=Path, help="folder of the screenshots and the saved labels")
    parser.add_argument("--theme", choices=["dark", "light"], default="dark", help="of napari")
    parser.add_argument("--bare", action="store_true", help="only show two arrays of a head's size in napari alone")
    args = parser.parse_args()
    if args.output is None and not args.bare:
        parser.error("the following arguments are required: -o/--output")
    if not args.bare:
        args.output.mkdir(parents=True, exist_ok=True)

    import napari
    from napari.settings import get_settings

    from napari_seg.plugin.napari_private import main_window

    get_settings().appearance.theme = args.theme
    viewer = napari.Viewer(show=True)
    main_window(viewer).resize(1600, 950)
    tour = Tour(viewer, args.output)
    tour.bare() if args.bare else tour.walk(args.study)
    tour.close()


class Tour:
    """One walk.

    Args:
        viewer: a napari viewer with a window.
        output: folder of the screenshots and the saved files.
    """

    def __init__(self, viewer: Any, output: Path) -> None:
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import QApplication

        self.viewer = viewer
        self.output = output
        self.app = QApplication.instance()
        self.count = 0
        self.beat = time.perf_counter()
        self.longest = 0.0
        self.timer = QTimer()
        self.timer.timeout.connect(self._on_beat)
        self.timer.start(10)

    def walk(self, study: Path | None) -> None:
        """Take all steps, one after the other."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        panel = self.open_panel()
        self.screenshot("panel")
        if study is not None:
            self.answer("getExistingDirectory", str(study))
            QTest.mouseClick(panel.study_tab._folder_button, Qt.MouseButton.LeftButton)
            self.wait(lambda: not panel.study_tab.model.is_listing, "look at the study")
            self.screenshot("study")
            QTest.mouseClick(panel.study_tab._open_button, Qt.MouseButton.LeftButton)
        else:
            self.viewer.open_sample("napari-seg", "mni152")
        self.wait(lambda: panel.session.scan is not None, "open the scan")
        assert self.is_painted()
        self.command("segment")
        self.look_at_models(panel)
        if panel.segment_tab.model.obstacle:
            self.draw_ball(panel)
        else:
            self.run_model(panel)
        self.wait(lambda: any(s.voxels for s in panel.structures_tab.model.structures), "measure")
        self.screenshot("structures")

        brush = panel.session.labels.selected_label
        self.click_row(panel, 0)
        panel.session.labels.selected_label = brush
        planes = self.open_planes()
        self.viewer.reset_view()
        self.screenshot("linked_planes")

        layer = panel.session.labels
        before = self.voxels(panel)
        self.paint(layer)
        self.wait(lambda: self.voxels(panel) != before, "measure what was painted")
        self.screenshot("painted")
        QTest.keyClick(self.canvas(), Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        self.wait(lambda: self.voxels(panel) == before, "measure what was undone")
        self.screenshot("undone")

        reference = self.output / "reference.nii.gz"
        self.save(panel, "nifti", reference)
        self.paint(layer)
        self.wait(lambda: self.voxels(panel) != before, "measure what was painted")
        self.answer("getOpenFileName", (str(reference), ""))
        self.command("compare")
        self.wait(lambda: "differ" in panel._message.text(), "compare")
        self.viewer.layers.selection.active = layer
        self.screenshot("compared")
        self.save(panel, "nifti", self.output / "corrected.nii.gz")
        if panel.structures_tab._export_actions["seg"].isEnabled():
            self.save(panel, "seg", self.output / "corrected_seg.dcm")
        self.screenshot("saved")
        self.click_tab(panel, panel.batch_tab)
        self.screenshot("batch")
        planes.close_views()

    def bare(self) -> None:
        """Add an image and labels of a head's size to napari without the plugin."""
        import numpy as np

        values = np.random.default_rng(0).integers(0, 1000, (192, 256, 256), np.int16)
        labels = (values % 5).astype(np.uint8)
        self.watch("show an image in napari alone", partial(self.viewer.add_image, values, contrast_limits=(0, 1000)))
        self.watch("show labels in napari alone", partial(self.viewer.add_labels, labels))

    def look_at_models(self, panel: Any) -> None:
        """Open the window of all models, search it and close it; nothing is downloaded."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        QTest.mouseClick(panel.segment_tab._models_button, Qt.MouseButton.LeftButton)
        dialog = panel.segment_tab._models
        self.wait(lambda: len(dialog.model.rows) > 1, "list the models")
        QTest.keyClicks(dialog._words, "spleen")
        self.screenshot("models")
        QTest.keyClick(dialog, Qt.Key.Key_Escape)

    def run_model(self, panel: Any) -> None:
        """Run the selected model, with screenshots before and during the run."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        self.wait(lambda: "Estimate:" in panel.segment_tab._estimate_label.text(), "estimate")
        self.screenshot("segment")
        QTest.mouseClick(panel.segment_tab._run_button, Qt.MouseButton.LeftButton)
        model = panel.segment_tab.model
        job = model.run.job
        self.wait(lambda: job.progress.stage == "Segmenting" or model.run is None, "find the place")
        self.screenshot("running")
        self.wait(lambda: model.run is None, "segment")

    def draw_ball(self, panel: Any) -> None:
        """Draw labels by hand, if no model fits the scan."""
        import numpy as np

        self.viewer._new_labels()
        layer = panel.session.labels
        middle = [n // 2 for n in layer.data.shape]
        box = tuple(slice(n // 2 - n // 8, n // 2 + n // 8) for n in layer.data.shape)
        far = sum([((g - m) / (n / 8)) ** 2 for g, m, n in zip(np.ogrid[box], middle, layer.data.shape, strict=True)])
        layer.data[box] = far < 1
        layer.data = layer.data
        layer.selected_label = 2  # what is painted then is another structure
        self.click_tab(panel, panel.structures_tab)

    # actions of a user

    def command(self, name: str) -> Any:
        """Run a command of napari's menus, as its palette does."""
        from napari._app_model import get_app_model

        answer = get_app_model().commands.execute_command(f"napari-seg.{name}").result()
        self.settle()
        return answer

    def open_panel(self) -> Any:
        """Open the panel through the command of the Layers > Segment menu."""
        from napari_seg.plugin import commands

        panel: Any = self.watch("open the panel", commands.panel)
        return panel

    def open_planes(self) -> Any:
        """Open the linked planes through the command of the Layers > Visualize menu."""
        planes = self.command("linked_planes")
        self.wait(lambda: len(planes.views) == 2, "open the linked planes")
        self.wait_ms(400)
        return planes

    def click_tab(self, panel: Any, tab: Any) -> None:
        """Click on the name of a tab."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        bar = panel._tabs.tabBar()
        place = bar.tabRect(panel._tabs.indexOf(tab)).center()
        QTest.mouseClick(bar, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
        self.settle()

    def click_row(self, panel: Any, row: int) -> None:
        """Click on the name of a structure."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        table = panel.structures_tab._table
        place = table.visualItemRect(table.item(row, 2)).center()
        left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        self.watch("click a structure", lambda: QTest.mouseClick(table.viewport(), left, none, place))

    def paint(self, layer: Any) -> None:
        """Choose the brush and draw a short line near the middle of the canvas."""
        from qtpy.QtCore import QPoint, Qt
        from qtpy.QtTest import QTest

        layer.brush_size = 8
        canvas = self.canvas()
        QTest.keyClick(canvas, Qt.Key.Key_2)
        middle = canvas.rect().center()
        place = QPoint(middle.x() - canvas.width() // 10, middle.y())
        QTest.mouseMove(canvas, place)
        QTest.mousePress(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
        for step in range(1, 8):
            QTest.mouseMove(canvas, QPoint(place.x() + 6 * step, place.y()))
            self.settle()
        end = QPoint(place.x() + 42, place.y())
        QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, end)
        self.settle()

    def save(self, panel: Any, kind: str, path: Path) -> None:
        """Save through the menu of the Save as button."""
        self.answer("getSaveFileName", (str(path), ""))
        panel.structures_tab._export_actions[kind].trigger()
        self.wait(lambda: panel._message.text().startswith(("Saved", "✕")), f"save as {kind}")
        print(f"  {panel._message.text()}", flush=True)

    def answer(self, dialog: str, answer: object) -> None:
        """Set the answer of a file dialog."""
        from qtpy.QtWidgets import QFileDialog

        setattr(QFileDialog, dialog, staticmethod(lambda *_, **__: answer))

    # waiting and measuring

    def canvas(self) -> Any:
        from napari_seg.plugin.napari_private import native_canvas, qt_viewer_of

        return native_canvas(qt_viewer_of(self.viewer))

    def is_painted(self) -> bool:
        """Return whether a scan is visible in the canvas."""
        self.settle()
        return bool((self.viewer.screenshot(canvas_only=True, flash=False)[..., :3] > 60).mean() > 0.02)

    def voxels(self, panel: Any) -> list:
        return [structure.voxels for structure in panel.structures_tab.model.structures]

    def settle(self) -> None:
        self.app.processEvents()

    def wait_ms(self, milliseconds: float) -> float:
        """Handle events for some time; return the time at which the window was last busy."""
        busy = begin = time.perf_counter()
        while time.perf_counter() < begin + milliseconds / 1000:
            start = time.perf_counter()
            self.settle()
            if (now := time.perf_counter()) - start > _BUSY_SECONDS:
                busy = now
            time.sleep(0.005)
        return busy

    def wait(self, until: Callable[[], bool], what: str, seconds: float = 600) -> None:
        """Handle events until a condition holds, and print the duration."""
        self.longest, start = 0.0, time.perf_counter()
        self.beat = start
        while not until():
            if time.perf_counter() - start > seconds:
                raise SystemExit(f"{what}: did not happen within {seconds:.0f} s")
            self.settle()
            time.sleep(0.005)
        self.report(what, self.drawn() - start)

    def watch(self, what: str, act: Callable[[], object]) -> object:
        """Act in the main thread, and print the duration until the window is idle again."""
        self.settle()
        self.longest, start = 0.0, time.perf_counter()
        self.beat = start
        answer = act()
        self.report(what, self.drawn() - start)
        return answer

    def drawn(self) -> float:
        """Give the window time to draw; return the time at which it was done."""
        self._on_beat()
        return self.wait_ms(1000 * _DRAW_SECONDS)

    def report(self, what: str, seconds: float) -> None:
        print(f"{what}: {seconds:.2f} s; the window did not respond for {self.longest:.2f} s at most", flush=True)

    def screenshot(self, name: str) -> None:
        """Save a screenshot of the whole window."""
        self.wait_ms(400)
        self.count += 1
        path = self.output / f"{self.count:02}_{name}.png"
        self.app.primaryScreen().grabWindow(0).save(str(path))

    def close(self) -> None:
        self.timer.stop()
        self.viewer.close()
        self.settle()

    def _on_beat(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self.beat)
        self.beat = now


if __name__ == "__main__":
    main()
