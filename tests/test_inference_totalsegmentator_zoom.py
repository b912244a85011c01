"""Resampling with coinciding corners, against SciPy to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_seg.inference.totalsegmentator.zoom import nearest, zoomed, zoomed_shape


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_numbers_are_those_of_scipy_to_the_last_bit(seed: int, dtype: type) -> None:
    random = np.random.default_rng(seed)
    array = random.integers(-1024, 3000, random.integers(1, 40, 3)).astype(dtype)
    array[: len(array) // 2] = -1000  # of a constant part, the last bit decides between -1000 and -999
    # views as they come from orientations
    array = array.transpose(random.permutation(3))[:: random.choice((-1, 1)), :, :: random.choice((-1, 1))]
    shape = tuple(int(n) for n in random.integers(1, 60, 3))
    factors = np.divide(shape, array.shape)
    linear = ndimage.zoom(array.astype(np.float64), factors, order=1, mode="nearest")
    assert np.array_equal(zoomed(array, shape, np.float64), linear)
    assert np.array_equal(zoomed(array, shape, np.int32), linear.astype(np.int32))
    picks = (nearest(n, m) for n, m in zip(array.shape, shape, strict=True))
    assert np.array_equal(array[np.ix_(*picks)], ndimage.zoom(array, factors, order=0, mode="nearest"))


def test_whole_numbers_are_truncated_towards_zero() -> None:
    line = np.array([[[-3, 0, 3]]], np.int16)
    assert zoomed(line, (1, 1, 5), np.int16).tolist() == [[[-3, -1, 0, 1, 3]]]


def test_halves_of_voxels_are_rounded_to_even() -> None:
    assert zoomed_shape((5, 7, 1), (1.5, 1.5, 0.1), (3.0, 3.0, 3.0)) == (2, 4, 1)
