"""Viewers of one window and the marks that are drawn in them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel

from napari_seg.plugin.placement import PLANES
from napari_seg.plugin.planes.model import PlanesModel
from napari_seg.plugin.views import ADDED, COLORS, INCLUDED, REMOVED, Marks, rgba_of, views_of


def marks() -> Marks:
    """Return marks in a label map of (4, 5, 6): one added voxel, one removed, and a scribble over the added one."""
    area = np.zeros((2, 2, 2), np.uint8)
    area[0, 0, 0], area[1, 1, 1] = ADDED, REMOVED
    scribble = np.full((1, 1, 1), INCLUDED, np.uint8)
    boxes = (slice(1, 3), slice(2, 4), slice(3, 5)), (slice(1, 2), slice(2, 3), slice(3, 4))
    return Marks((4, 5, 6), np.ones(3), np.zeros(3), ((boxes[0], area), (boxes[1], scribble)))


@pytest.mark.parametrize("plane", PLANES)
def test_marks_lie_in_their_voxels_in_every_plane(plane: str) -> None:
    order = PLANES[plane]
    axis, down, right = order
    for voxel, kind in (((1, 2, 3), INCLUDED), ((2, 3, 4), REMOVED)):
        image = rgba_of(marks(), order, voxel[axis])
        assert image is not None
        assert image.shape == ((4, 5, 6)[down], (4, 5, 6)[right], 4)
        assert tuple(image[voxel[down], voxel[right], :3]) == COLORS[kind]
        assert np.count_nonzero(image[..., 3]) == 1
    assert rgba_of(marks(), order, 0) is None


def test_only_the_border_of_an_area_is_opaque() -> None:
    area = np.full((1, 3, 3), ADDED, np.uint8)
    shown = Marks((1, 5, 5), np.ones(3), np.zeros(3), (((slice(0, 1), slice(1, 4), slice(1, 4)), area),))
    image = rgba_of(shown, (0, 1, 2), 0)
    assert image is not None
    opacity = image[..., 3]
    assert 0 < opacity[2, 2] < opacity[1, 1]
    assert opacity[0, 0] == 0


def test_linked_planes_are_views_of_their_window() -> None:
    viewer = ViewerModel()
    viewer.add_image(np.zeros((4, 5, 6)))
    views = views_of(viewer)
    assert list(views) == [viewer]
    added: list[object] = []
    views.added.connect(added.append)
    planes = PlanesModel(viewer)
    coronal = planes.open("coronal")
    planes.open("coronal")
    assert added == [coronal]
    assert set(views_of(viewer)) == {viewer, coronal}
    planes.close()
    assert list(views) == [viewer]
    assert list(views_of(ViewerModel())) != list(views)
