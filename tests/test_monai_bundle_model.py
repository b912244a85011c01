"""The shipped model on a real brain, the MNI152 template, made lopsided so that left and right can't be confused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_seg.formats.read import read
from napari_seg.inference.segment import segment
from napari_seg.localise import mni152_path
from napari_seg.volume import Segmentation, Volume


@pytest.fixture(scope="module")
def lopsided() -> Volume:
    """MNI152 with a part of the front of its LEFT hippocampus made dark, as after surgery."""
    scan = read(mni152_path())
    array = scan.array.copy()
    x, y, z = np.moveaxis(scan.grid.to_world(np.moveaxis(np.indices(scan.grid.shape), 0, -1)), -1, 0)
    array[0, (x + 26) ** 2 + (y + 12) ** 2 + (z + 20) ** 2 < 9**2] = 25
    return replace(scan, array=array)


@pytest.fixture(scope="module")
def result(lopsided: Volume) -> Segmentation:
    return segment(lopsided, device="cpu")


def test_structures_lie_on_their_own_side(result: Segmentation) -> None:
    volumes = result.volumes_ml()
    assert volumes[1] < 0.7 * volumes[3]
    for label, sign in ((1, -1), (2, -1), (3, 1), (4, 1)):
        x, y, z = result.grid.to_world(np.argwhere(result.array == label).mean(axis=0))
        assert 15 < sign * x < 35
        assert -45 < y < 0
        assert -30 < z < 5
    assert 3.0 < volumes[3] + volumes[4] < 5.0


def test_a_mirrored_brain_gives_mirrored_labels(lopsided: Volume, result: Segmentation) -> None:
    mirrored = segment(replace(lopsided, array=lopsided.array[:, ::-1]), device="cpu")
    before, after = result.volumes_ml(), mirrored.volumes_ml()
    for left, right in ((1, 3), (2, 4)):
        assert after[left] == pytest.approx(before[right], rel=0.05)
        assert after[right] == pytest.approx(before[left], rel=0.05, abs=0.05)
    swapped = np.array([0, 3, 4, 1, 2], np.uint8)[mirrored.array]
    # the template's middle column lies at x = 0 mm, so flipping the array mirrors the world
    flipped = result.array[::-1]
    overlap = 2 * ((swapped == flipped) & (flipped > 0)).sum() / ((swapped > 0).sum() + (flipped > 0).sum())
    assert overlap > 0.9
