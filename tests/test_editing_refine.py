"""Structures refined from prompts."""

from __future__ import annotations

import numpy as np
from phantoms import oblique_grid

from napari_seg.editing.prompts import Prompts
from napari_seg.editing.refine import refine


def test_clicks_are_respected() -> None:
    grid = oblique_grid()
    image = np.zeros(grid.shape, np.int16)
    image[5:12, 8:18, 4:9] = 400
    labels = np.zeros(grid.shape, np.uint8)
    change = refine(labels, grid, 3, image, Prompts([(8, 12, 6)], [(6, 9, 5)]))
    change.apply(labels)
    assert labels[8, 12, 6] == 3
    assert labels[6, 9, 5] == 0
