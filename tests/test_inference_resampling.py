"""Resampling to another number of voxels: the numbers of SciPy, scikit-image and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import resize

from napari_seg.inference.resampling import Rule, nearest, operator, resampled

SHAPES = [(30, 70, 50), (40, 57, 34), (1, 80, 20), (79, 113, 65), (20, 57, 33)]


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 57, 33)) * 300


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_areas_are_resampled_as_scikit_image_does(array: np.ndarray, shape: tuple, order: int) -> None:
    expected = resize(array, shape, order, mode="edge", anti_aliasing=False, clip=False)
    for dtype, error in ((np.float32, 1e-6), (np.float64, 1e-13)):
        found = resampled(array, shape, Rule(order), dtype=dtype)
        assert found.shape == shape
        assert np.abs(found - expected).max() < error * np.ptp(array)


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_followed_too(array: np.ndarray, shape: tuple) -> None:
    image = torch.from_numpy(array)[None, None]
    linear = torch.nn.functional.interpolate(image.float(), shape, mode="trilinear", antialias=False)[0, 0].numpy()
    assert np.abs(resampled(array, shape, Rule(1, "torch")) - linear).max() < 1e-6 * np.ptp(array)
    close = torch.nn.functional.interpolate(image, shape, mode="nearest-exact")[0, 0].numpy()
    assert np.array_equal(resampled(array, shape, Rule(0, "torch")), close)


def test_each_axis_can_have_its_own_rule(array: np.ndarray) -> None:
    shape = (60, 30, 40)
    expected = np.stack([resize(p, shape[1:], 3, mode="edge", anti_aliasing=False, clip=False) for p in array])
    expected = expected[nearest(40, 60, Rule(0))]
    found = resampled(array, shape, (Rule(0), Rule(3), Rule(3)), dtype=np.float64)
    assert np.abs(found - expected).max() < 1e-13 * np.ptp(array)


def test_views_are_resampled_plane_by_plane(array: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (50, 40, 30)
    expected = resampled(np.ascontiguousarray(array.T), shape, Rule(3))
    monkeypatch.setattr("napari_seg.inference.resampling.ROWS_AT_ONCE", 7)
    seen = []

    def taken(planes: np.ndarray, part: slice) -> np.ndarray:
        seen.append(part)
        assert np.array_equal(planes, array.T[part])
        return planes.astype(np.float32) * 2

    out = np.empty(shape, np.float32)
    assert resampled(array.T, shape, Rule(3), taken=taken, out=out) is out
    assert np.allclose(out, 2 * expected, rtol=0, atol=1e-5 * np.ptp(array))
    assert len(seen) == 8
    assert max(part.stop - part.start for part in seen) < 33


def test_whole_numbers_stay_whole_where_the_nearest_voxel_is_taken() -> None:
    labels = np.random.default_rng(0).integers(0, 9, (10, 11, 12)).astype(np.uint8)
    for shape in ((5, 22, 12), (10, 11, 12)):
        found = resampled(labels, shape, Rule(0))
        assert found.dtype == np.uint8
        assert np.array_equal(found, resize(labels, shape, 0, mode="edge", anti_aliasing=False))


def test_operators_are_shared_and_can_not_be_changed() -> None:
    first = operator(10, 7, Rule(3))
    assert operator(10, 7, Rule(3)) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
