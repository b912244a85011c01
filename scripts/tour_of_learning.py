"""Walk through the loop of correction and training in a real napari window, with real clicks and keys.

    xvfb-run -a -s "-screen 0 1680x1000x24" python scripts/tour_of_learning.py study/ -o tour/

The walk segments the MNI152 head and accepts it as it is. Then it opens a folder of DICOM or NIfTI, segments the scan,
refines a structure with clicks, fills another one between painted slices, takes a step back, accepts the case, improves
the model for some minutes, and segments the scan again with the new model. It takes a screenshot after each step, and
prints the duration of each step and the longest time that the window did not respond.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tour import Tour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder with a scan that the shipped model segments")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the screenshots and the new model")
    parser.add_argument("--minutes", type=float, default=2, help="minutes of training; default 2")
    parser.add_argument("--theme", choices=["dark", "light"], default="dark", help="of napari")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    import napari
    from napari.settings import get_settings

    from napari_seg.plugin.napari_private import main_window

    get_settings().appearance.theme = args.theme
    viewer = napari.Viewer(show=True)
    main_window(viewer).resize(1600, 950)
    tour = TourOfLearning(viewer, args.output)
    tour.learn(args.study, args.minutes)
    tour.close()


class TourOfLearning(Tour):
    """One walk through the loop."""

    def learn(self, study: Path, minutes: float) -> None:
        """Take all steps, one after the other."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        panel = self.open_panel()
        (self.output / "accepted").mkdir(exist_ok=True)
        self.viewer.open_sample("napari-seg", "mni152")
        self.wait(lambda: panel.session.scan is not None, "open the first scan")
        self.segment(panel)
        self.accept(panel, 1)
        self.viewer.layers.clear()

        self.answer("getExistingDirectory", str(study))
        self.click_tab(panel, panel.study_tab)
        QTest.mouseClick(panel.study_tab._folder_button, Qt.MouseButton.LeftButton)
        self.wait(lambda: not panel.study_tab.model.is_listing, "look at the study")
        QTest.mouseClick(panel.study_tab._open_button, Qt.MouseButton.LeftButton)
        self.wait(lambda: panel.session.scan is not None, "open the second scan")
        self.segment(panel)
        self.wait(lambda: any(s.voxels for s in panel.structures_tab.model.structures), "measure")
        planes = self.open_planes()
        self.refine(panel)
        self.fill_between(panel)
        self.accept(panel, 2)
        planes.close_views()
        self.improve(panel, minutes)
        self.segment(panel)
        self.screenshot("segmented_again")

    def segment(self, panel: Any) -> None:
        """Run the chosen model."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        self.click_tab(panel, panel.segment_tab)
        model = panel.segment_tab.model
        self.wait(lambda: not model.obstacle, "check the model")
        QTest.mouseClick(panel.segment_tab._run_button, Qt.MouseButton.LeftButton)
        self.wait(lambda: model.run is None, "segment", 1800)
        self.screenshot("segmented")

    def refine(self, panel: Any) -> None:
        """Refine the first structure with two clicks: one in it, one on what it does not hold; apply, undo, redo."""
        from qtpy.QtCore import Qt

        self.click_tab(panel, panel.edit_tab)
        model, layer = panel.edit_tab.model, panel.session.labels
        self.click_row(panel, 0)
        self.click_tab(panel, panel.edit_tab)
        self.screenshot("edit")
        inside, outside = self.near(layer, layer.selected_label)
        before = np.array(layer.data)
        self.press(Qt.Key.Key_I)
        self.click(layer, outside)
        self.wait(lambda: model.preview is not None and model.job is None, "refine with a click")
        self.screenshot("one_click")
        self.click(layer, inside, Qt.MouseButton.RightButton)
        self.wait(lambda: model.job is None, "refine with a second click")
        self.screenshot("two_clicks")
        self.press(Qt.Key.Key_Return)
        self.wait(lambda: (layer.data != before).any(), "apply")
        refined = np.array(layer.data)
        changed = {int(label) for label in np.unique(before[before != refined])} - {0, int(layer.selected_label)}
        assert not changed, f"other structures changed: {changed}"
        assert refined[outside] == layer.selected_label
        assert refined[inside] != layer.selected_label
        self.press(Qt.Key.Key_Escape)
        self.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        self.wait(lambda: np.array_equal(layer.data, before), "undo in one step")
        self.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
        self.wait(lambda: np.array_equal(layer.data, refined), "redo")

    def fill_between(self, panel: Any) -> None:
        """Paint a new structure in three slices, and fill between them."""
        from qtpy.QtCore import Qt
        from qtpy.QtWidgets import QInputDialog

        model, layer = panel.edit_tab.model, panel.session.labels
        QInputDialog.getText = staticmethod(lambda *_, **__: ("cyst", True))
        panel.edit_tab._new_button.click()
        self.settle()
        label = layer.selected_label
        axis = self.viewer.dims.order[0]
        middle = int(self.viewer.dims.current_step[axis])
        for step in (-6, 0, 6):
            self.viewer.dims.set_current_step(axis, middle + step)
            self.settle()
            self.paint(layer)
        self.viewer.dims.set_current_step(axis, middle + 3)
        painted = int((layer.data == label).sum())
        self.press(Qt.Key.Key_1)
        self.press(Qt.Key.Key_N)
        self.wait(lambda: model.preview is not None and model.job is None, "fill between slices")
        self.screenshot("fill_between")
        self.press(Qt.Key.Key_Return)
        self.wait(lambda: int((layer.data == label).sum()) > painted, "apply the filling")
        self.screenshot("filled")
        self.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        self.wait(lambda: int((layer.data == label).sum()) == painted, "undo the filling")
        for _ in range(3):
            self.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        self.wait(lambda: not (layer.data == label).any(), "undo the painting")

    def accept(self, panel: Any, count: int) -> None:
        """Accept the selected labels."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        self.click_tab(panel, panel.learn_tab)
        self.answer("getExistingDirectory", str(self.output / "accepted"))
        section = panel.learn_tab.accept_section
        QTest.mouseClick(section._folder_button, Qt.MouseButton.LeftButton)
        self.wait(lambda: not section.model.obstacle, "be ready to accept")
        QTest.mouseClick(section.accept_button, Qt.MouseButton.LeftButton)
        self.wait(lambda: section._summary.text().startswith(f"{count} case"), "accept")
        print(f"  {panel._message.text()}", flush=True)
        self.screenshot("accepted")

    def improve(self, panel: Any, minutes: float) -> None:
        """Improve the model for some minutes, and choose the new one."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        self.click_tab(panel, panel.learn_tab)
        section = panel.learn_tab.improve_section
        self.answer("getExistingDirectory", str(self.output / "improved"))
        QTest.mouseClick(section._output_button, Qt.MouseButton.LeftButton)
        section._minutes.setValue(minutes)
        self.wait(lambda: not section.model.obstacle, "be ready to improve")
        QTest.mouseClick(section._start_button, Qt.MouseButton.LeftButton)
        self.wait(lambda: section.model.job is not None, "start the improvement")
        self.wait_ms(20_000)
        self.screenshot("improving")
        self.wait(lambda: section.model.job is None, "improve", 3600)
        print(f"  {section._status.text()}\n  {panel._message.text()}", flush=True)
        assert section.model.result is not None
        self.screenshot("improved")
        QTest.mouseClick(section._use_button, Qt.MouseButton.LeftButton)
        self.settle()

    # actions of a user

    def press(self, key: Any, modifiers: Any = None) -> None:
        """Press a key in the canvas."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        self.canvas().setFocus()
        QTest.keyClick(self.canvas(), key, Qt.KeyboardModifier.NoModifier if modifiers is None else modifiers)
        self.settle()

    def click(self, layer: Any, voxel: tuple[int, ...], button: Any = None) -> None:
        """Click on a voxel of the slice that the view shows."""
        from qtpy.QtCore import QPoint, Qt
        from qtpy.QtTest import QTest

        from napari_seg.plugin.napari_private import qt_viewer_of

        qt_viewer, dims = qt_viewer_of(self.viewer), self.viewer.dims
        world = layer.data_to_world(voxel)
        dims.set_point(range(3), world)
        self.settle()
        scene = qt_viewer.canvas.view.scene
        to_canvas = scene.node_transform(qt_viewer.canvas._scene_canvas.scene)
        x, y = to_canvas.map(np.array(world)[list(dims.order[:0:-1])])[:2]
        button = Qt.MouseButton.LeftButton if button is None else button
        QTest.mouseClick(self.canvas(), button, Qt.KeyboardModifier.NoModifier, QPoint(int(x), int(y)))
        self.settle()

    def near(self, layer: Any, label: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return a voxel of a structure near its border in its middle slice, and a background voxel outside of it."""
        from scipy.ndimage import distance_transform_edt

        axis = self.viewer.dims.order[0]
        mask = layer.data == label
        index = int(np.median(np.nonzero(mask)[axis]))
        plane, labels = np.take(mask, index, axis), np.take(layer.data, index, axis)
        depth, distance = distance_transform_edt(plane), distance_transform_edt(~plane)
        inside = np.unravel_index(int(np.abs(np.where(plane, depth, np.inf) - 2).argmin()), plane.shape)
        free = np.where((labels == 0) & ~plane, distance, np.inf)
        outside = np.unravel_index(int(np.abs(free - 2).argmin()), plane.shape)
        return tuple(np.insert(inside, axis, index).tolist()), tuple(np.insert(outside, axis, index).tolist())


if __name__ == "__main__":
    main()
