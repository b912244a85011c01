"""Edit a structure of a million voxels in 512 x 512 x 400 in a real napari window, and print how long the window waits.

    xvfb-run -a -s "-screen 0 1680x1000x24" python scripts/tour_of_editing.py -o tour/

The scan is a phantom: a body with an organ, a neighbour, a structure that was painted in every fifth slice, and noise.
Each operation of the Edit tab and clicks compute their preview, which is applied and taken back with the keys of a
user. It prints the duration of each step and the longest time that the window did not respond.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tour_of_learning import TourOfLearning

from napari_seg import Grid, Segment, Segmentation, Volume
from napari_seg.formats.nifti import write_nifti, write_volume

SHAPE = (512, 512, 400)
SPACING_MM = (0.8, 0.8, 1.0)
ORGAN, NEIGHBOUR, PAINTED = 1, 2, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the phantom and the screenshots")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    scan, labels = write_phantom(args.output)

    import napari

    from napari_seg.plugin.napari_private import main_window

    viewer = napari.Viewer(show=True)
    main_window(viewer).resize(1600, 950)
    tour = TourOfEditing(viewer, args.output)
    tour.edit(scan, labels)
    tour.close()


def write_phantom(folder: Path) -> tuple[Path, Path]:
    """Write the scan and its labels, and return their paths."""
    paths = folder / "phantom.nii", folder / "phantom_seg.nii.gz"
    random = np.random.default_rng(0)
    values = random.normal(-1000, 20, SHAPE).astype(np.int16)
    values[ball((256, 256, 200), (220, 170, 220))] = 40
    organ = ball((200, 250, 200), (63, 58, 66))
    organ &= ~ball((200, 250, 200), (8, 8, 8))  # a hole
    organ |= ball((200, 330, 200), (4, 4, 4))  # an island
    touching = ball((268, 250, 200), (14, 14, 14)) & ~organ
    other = ball((322, 250, 200), (40, 40, 50))
    values[organ | touching] += 80
    values[other] += 140
    values += random.normal(0, 12, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[organ | touching] = ORGAN
    labels[other] = NEIGHBOUR
    painted = ball((256, 120, 200), (60, 40, 60)) & (np.arange(SHAPE[2]) % 5 == 0)
    labels[painted] = PAINTED
    colors = {"organ": (230, 80, 60), "neighbour": (60, 120, 230), "painted slices": (80, 180, 80)}
    segments = tuple(Segment(label, name, color) for label, (name, color) in enumerate(colors.items(), start=1))
    grid = Grid(SHAPE, np.diag([*SPACING_MM, 1]))
    write_volume(Volume(values[None], grid), paths[0])
    write_nifti(Segmentation(labels, grid, segments), paths[1])
    print(f"the organ has {np.count_nonzero(labels == ORGAN):,} voxels", flush=True)
    return paths


def ball(middle: tuple[int, int, int], radius: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return an ellipsoid with an irregular surface, (*SHAPE) bool."""
    axes = [(np.arange(n) - m) / r for n, m, r in zip(SHAPE, middle, radius, strict=True)]
    i, j, k = (axis.reshape([-1 if n == axis_number else 1 for n in range(3)]) for axis_number, axis in enumerate(axes))
    return np.asarray(i * i + j * j + k * k < 1 + 0.1 * np.sin(6 * i) * np.sin(5 * j + 2) * np.sin(7 * k))


class TourOfEditing(TourOfLearning):
    """One walk through the Edit tab."""

    def edit(self, scan: Path, labels: Path) -> None:
        """Take all steps, one after the other."""
        from qtpy.QtCore import Qt

        from napari_seg.plugin.edit.operations import WINDOW_OPERATIONS

        panel = self.open_panel()
        self.viewer.open([str(scan)], plugin="napari-seg")
        self.wait(lambda: panel.session.scan is not None, "open the scan")
        self.viewer.open([str(labels)], plugin="napari-seg")
        self.wait(lambda: any(s.voxels for s in panel.structures_tab.model.structures), "open and measure the labels")
        self.click_tab(panel, panel.edit_tab)
        model, layer = panel.edit_tab.model, panel.session.labels
        for operation, known in WINDOW_OPERATIONS.items():
            layer.selected_label = PAINTED if operation == "fill_between" else ORGAN
            self.settle()
            other = NEIGHBOUR if "other" in known.amounts else None
            self.take(panel, known.title, lambda operation=operation, other=other: model.run(operation, other))
        self.press(Qt.Key.Key_I)
        for number, (inside, outside) in enumerate([self.near(layer, ORGAN)] * 2):
            voxel, button = (outside, Qt.MouseButton.LeftButton) if not number else (inside, Qt.MouseButton.RightButton)
            self.take(panel, "refine by a click", lambda voxel=voxel, button=button: self.click(layer, voxel, button))
        self.press(Qt.Key.Key_Escape)
        self.wait(lambda: model.job is None, "end")

    def take(self, panel: Any, name: str, act: Callable[[], object]) -> None:
        """Compute a change, apply it and take it back; print how long each of the three takes."""
        from qtpy.QtCore import Qt

        model = panel.edit_tab.model
        self.settle()
        act()
        self.wait(lambda: model.job is None, name)
        self.screenshot(name.replace(" ", "_").lower())
        if model.preview is None:
            print(f"  {panel._message.text()}", flush=True)
            return
        self.watch(f"  apply {name}", lambda: self.press(Qt.Key.Key_Return))
        self.watch(f"  take {name} back", lambda: self.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier))


if __name__ == "__main__":
    main()
