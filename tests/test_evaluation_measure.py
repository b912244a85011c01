"""What a table says of structures: hand-computed, and as counting each label by itself gives it."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from napari_seg.evaluation.measure import measure


def test_worked_out_by_hand() -> None:
    labels = np.zeros((4, 3, 5), np.uint8)
    labels[1, 0:2, 3] = 2
    labels[2, 2, 4] = 5
    image = np.arange(60, dtype=np.int16).reshape(4, 3, 5)
    found = measure(labels, image)
    assert set(found) == {2, 5}
    assert found[2].voxels == 2
    assert found[2].mean_intensity == (18 + 23) / 2
    assert found[2].center in [(1, 0, 3), (1, 1, 3)]
    assert (found[5].voxels, found[5].mean_intensity, found[5].center) == (1, 44, (2, 2, 4))


@pytest.mark.parametrize("turned", [False, True])
def test_as_each_label_by_itself(turned: bool) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, (11, 7, 13)).astype(np.uint16)
    image = rng.normal(size=labels.shape)
    if turned:
        labels, image = labels.transpose(2, 0, 1)[::-1], image.transpose(2, 0, 1)[::-1]
    found = measure(labels, image)
    for label in range(1, 9):
        mask = labels == label
        assert found[label].voxels == mask.sum()
        assert found[label].mean_intensity == pytest.approx(image[mask].mean())
        assert mask[found[label].center]
    assert isnan(measure(labels)[1].mean_intensity)


def test_the_center_of_a_hollow_structure_lies_in_it() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:8, 1:8, 1:8] = 1
    labels[2:7, 2:7, 2:7] = 0
    assert labels[measure(labels)[1].center] == 1
    labels[:] = 0
    labels[0], labels[8] = 1, 1  # nothing in the plane of its centroid
    assert labels[measure(labels)[1].center] == 1


def test_nothing_is_found_in_nothing() -> None:
    assert measure(np.zeros((2, 3, 4), np.uint8)) == {}
