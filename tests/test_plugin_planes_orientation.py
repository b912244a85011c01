"""Orientation letters of a canvas, on viewer models."""

from __future__ import annotations

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Image

from napari_seg.plugin.layers import image_layers
from napari_seg.plugin.placement import PLANES
from napari_seg.plugin.planes.orientation import orientation_letters
from napari_seg.volume import Volume


def test_letters_follow_the_radiological_convention(head: Volume) -> None:
    viewer = ViewerModel()
    ((data, settings, _),) = image_layers(head)
    viewer.add_layer(Image(data, **settings))
    # napari's axes grow to I, P and L; the last one displayed runs to the right, the one before downwards
    opposite = {"I": "S", "P": "A", "L": "R"}
    for plane, order in PLANES.items():
        down, right = ("IPL"[axis] for axis in order[1:])
        viewer.dims.order = order
        assert orientation_letters(viewer, viewer.layers) == (opposite[right], right, opposite[down], down), plane
    viewer.dims.order = PLANES["axial"]
    viewer.camera.orientation2d = ("up", "left")  # as Preferences may have it
    assert orientation_letters(viewer, viewer.layers) == ("L", "R", "P", "A")
    viewer.dims.ndisplay = 3
    assert orientation_letters(viewer, viewer.layers) == ("", "", "", "")
