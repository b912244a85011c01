"""The picture beside a result: its planes show the patient the right way round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_seg.errors import Notice
from napari_seg.evaluation.overlay import PANEL_PIXELS, _caption, _window, draw_comparison, draw_overlay
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, Source, Volume


def test_planes_show_left_on_the_right_front_on_top_and_head_up(tmp_path: Path) -> None:
    grid = Grid.around((0, 0, 0), (60, 60, 60), (2, 2, 2)).reoriented("PSL")
    x, y, z = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    array = np.zeros(grid.shape, np.int16)
    array[(abs(x + 16) < 4) & (abs(y) < 4) & (abs(z) < 4)] = 1000  # to the left
    array[(abs(x) < 4) & (abs(y - 16) < 4) & (abs(z) < 4)] = 1000  # in front
    array[(abs(x) < 4) & (abs(y) < 4) & (abs(z - 16) < 4)] = 1000  # above
    labels = ((abs(x) < 3) & (abs(y) < 3) & (abs(z) < 3)).astype(np.uint8)
    red = Segment(1, "middle", (255, 0, 0))
    path = tmp_path / "overlay.png"
    draw_overlay(Volume(array[None], grid), Segmentation(labels, grid, (red,)), path, "phantom")

    picture = np.asarray(Image.open(path)).astype(int)
    top = 2 * 8 + 24 + 26
    half, reach = PANEL_PIXELS // 2, round(16 / 60 * PANEL_PIXELS)

    def shade(column: int, right: int, down: int) -> int:
        y0, x0 = top + half + down, 8 + column * (PANEL_PIXELS + 8) + half + right
        return int(picture[y0, x0].mean())

    sagittal, coronal, axial = 0, 1, 2
    bright = {
        (sagittal, -reach, 0),
        (sagittal, 0, -reach),
        (coronal, reach, 0),
        (coronal, 0, -reach),
        (axial, reach, 0),
        (axial, 0, -reach),
    }
    for column in (sagittal, coronal, axial):
        for right, down in ((reach, 0), (-reach, 0), (0, reach), (0, -reach)):
            assert (shade(column, right, down) > 200) == ((column, right, down) in bright)
        y0, x0 = top + half, 8 + column * (PANEL_PIXELS + 8) + half
        assert picture[y0, x0, 0] > picture[y0, x0, 1]  # the segment's red


@pytest.mark.parametrize("shape", [(448, 448, 20), (640, 640, 10), (64, 64, 64)])
def test_the_grey_window_is_that_of_all_slices(shape: tuple[int, int, int]) -> None:
    array = np.zeros(shape, np.int16)
    array[:, :, 1:] = np.arange(shape[0])[:, None, None]  # the first slice is empty, as after a registration
    low, high = _window(array)
    assert (low, high) == (pytest.approx(0, abs=0.02 * shape[0]), pytest.approx(shape[0], rel=0.05))


def test_a_nearly_empty_scan_is_shown_between_its_extremes() -> None:
    array = np.zeros((60, 60, 60), np.float32)
    array[30, 30, 30] = 5
    assert _window(array) == (0, 5)
    array[0, 0, 0] = np.nan
    assert _window(array) == (0, 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_2d_image_is_shown_whole_in_pixels(tmp_path: Path, channels: int) -> None:
    """Two objects in opposite corners; in colour, the space between them is blue."""
    grid = Grid((200, 100, 1), np.eye(4))
    array = np.full((channels, *grid.shape), 200, np.uint8)
    array[:, 50:150] = 100
    array[:-1, 50:150] = 20 if channels == 3 else 100
    labels = np.zeros(grid.shape, np.uint8)
    labels[:20, :20] = labels[180:, 80:] = 1
    result = Segmentation(labels, grid, (Segment(1, "nucleus", (255, 0, 0)),), notices=())
    volume = Volume(array, grid, source=Source("image2d"))
    draw_overlay(volume, result, tmp_path / "x.png")
    sheet = np.asarray(Image.open(tmp_path / "x.png")).astype(int)
    top, width = 2 * 8 + 24, 3 * PANEL_PIXELS + 2 * 8
    image = sheet[top : top + width // 2, 8 : 8 + width]
    for row, column in ((0.1, 0.05), (0.9, 0.95)):
        red, green, _ = image[int(row * width / 2), int(column * width)]
        assert red > green + 30
    for row, column in ((0.05, 0.5), (0.5, 0.5), (0.95, 0.5)):  # the picture as it is, without letters
        red, green, blue = image[int(row * width / 2), int(column * width)]
        assert (red == green, blue > red + 50) == (True, channels == 3)
    assert len(np.unique(image[:, width // 4 + 5 : 3 * width // 4 - 5].reshape(-1, 3), axis=0)) == 1
    assert _caption(result.segments[0], 800, result, True) == "nucleus   800 pixels"


def test_an_empty_result_with_notices_still_gives_a_picture(tmp_path: Path) -> None:
    grid = Grid((8, 8, 8), np.eye(4))
    result = Segmentation(np.zeros(grid.shape, np.uint8), grid, (), notices=(Notice("a.b", "long " * 60),))
    draw_overlay(Volume(np.zeros((1, 8, 8, 8), np.uint8), grid), result, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[1] > 60


def test_many_structures_are_shown_together_above_their_names(tmp_path: Path) -> None:
    grid = Grid((40, 30, 20), np.diag([1.0, 1, 2, 1]))
    random = np.random.default_rng(0)
    labels = random.integers(0, 101, grid.shape).astype(np.uint8)
    table = tuple(Segment(n, f"structure_{n}", (n, 255 - n, 50)) for n in range(1, 101))
    volume = Volume(np.zeros((1, *grid.shape), np.uint8), grid)
    draw_overlay(volume, Segmentation(labels, grid, table), tmp_path / "x.png")
    picture = np.asarray(Image.open(tmp_path / "x.png"))
    assert picture.shape[0] < 2200
    shown = {tuple(color) for color in picture.reshape(-1, 3)}
    assert {segment.color for segment in table} <= shown


def tinted(panels: np.ndarray) -> list[int]:
    """Return the number of red pixels in each of the three panels of a row."""
    red = panels[..., 0].astype(int) - panels[..., 2] > 20
    return [int(red[:, n * (PANEL_PIXELS + 8) : (n + 1) * (PANEL_PIXELS + 8)].sum()) for n in range(3)]


def test_a_structure_in_two_pieces_is_seen_in_all_planes(tmp_path: Path) -> None:
    """Two balls 220 mm apart, as in both lungs; the second one is larger."""
    grid = Grid((80, 60, 60), np.diag([4.0, 4, 4, 1]))
    i, j, k = np.indices(grid.shape, sparse=True)
    labels = np.zeros(grid.shape, np.uint8)
    for at, radius in ((12, 3), (67, 4)):
        labels[(i - at) ** 2 + (j - 30) ** 2 + (k - 30) ** 2 <= radius**2] = 1
    volume = Volume(np.full((1, *grid.shape), 100, np.int16), grid)
    draw_overlay(volume, Segmentation(labels, grid, (Segment(1, "nodule", (255, 0, 0)),)), tmp_path / "x.png")
    top = 2 * 8 + 24 + 26
    panels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))[top : top + PANEL_PIXELS, 8:]
    assert min(tinted(panels)) > 0.5 * np.pi * (16 * PANEL_PIXELS / 110) ** 2


def test_a_figure_shows_a_place_that_differs() -> None:
    """Two missed lesions, one flat in the axial direction and one in the sagittal direction."""
    grid = Grid((80, 60, 80), np.diag([4.0, 4, 4, 1]))
    labels = np.zeros(grid.shape, np.uint8)
    labels[7:17, 25:35, 10:13] = 1
    labels[65:68, 25:35, 60:70] = 1
    reference = Segmentation(labels, grid, (Segment(1, "lesion", (0, 255, 0)),))
    volume = Volume(np.full((1, *grid.shape), 100, np.int16), grid)
    sheet = draw_comparison(volume, Segmentation(np.zeros_like(labels), grid, ()), reference)
    assert min(tinted(np.asarray(sheet))) > 500
