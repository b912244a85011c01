"""Changes of the voxel size as nnU-Net makes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import resize

from napari_seg.bundles.nnunet.configuration import Resampling
from napari_seg.inference.nnunet.spacing import resampled_channel, resampled_labels, rules_of, separate_axis
from napari_seg.inference.resampling import Rule

CUBES = (1.0, 1.0, 1.0)
THICK = (5.0, 0.8, 0.8)


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 31, 27)).astype(np.float32)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=(20, 31, 27))
    coarse = noise[::4, ::4, ::4].repeat(4, 0).repeat(4, 1).repeat(4, 2)[:20, :31, :27]
    return np.digitize(coarse, (-0.5, 0.3, 0.9)).astype(np.int32) - 1


@pytest.mark.parametrize(
    ("separate_z", "spacing", "new_spacing", "axis"),
    [
        (None, CUBES, (1.0, 2.0, 2.0), None),
        (None, THICK, CUBES, 0),
        (None, CUBES, THICK, 0),
        (None, THICK, (0.5, 0.5, 2.0), 0),  # the voxels before decide, if they are thick
        (None, (3.0, 1.0, 1.0), CUBES, None),  # a factor of 3 is not above 3
        (None, (0.2, 1.0, 1.0), CUBES, None),  # two axes of the largest size
        (None, (1.0, 1.0, 4.0), CUBES, 2),
        (True, (1.0, 1.1, 1.0), THICK, 1),
        (True, CUBES, THICK, None),
        (False, THICK, THICK, None),
    ],
)
def test_the_axis_of_thick_slices_is_found(separate_z: bool | None, spacing, new_spacing, axis) -> None:  # type: ignore[no-untyped-def]
    assert separate_axis(Resampling(separate_z=separate_z), spacing, new_spacing) == axis


def test_rules_follow_the_method() -> None:
    assert rules_of(Resampling(order=3), THICK, CUBES) == (Rule(0), Rule(3), Rule(3))
    assert rules_of(Resampling("torch"), THICK, CUBES) == (Rule(0, "torch"), Rule(1, "torch"), Rule(1, "torch"))
    assert rules_of(Resampling("none"), THICK, CUBES) == (Rule(1), Rule(1), Rule(1))


def test_splines_do_not_leave_the_range_of_the_image(array: np.ndarray) -> None:
    shape = (33, 40, 20)
    array = np.sign(array)
    expected = resize(array.astype(float), shape, 3, mode="edge", anti_aliasing=False)
    assert np.abs(expected).max() == 1
    assert resampled_channel(array, shape, Resampling(), CUBES, CUBES).max() > 1.1
    ranges = np.array([array.min(), array.max()])
    found = resampled_channel(array, shape, Resampling(), CUBES, CUBES, ranges=ranges)
    assert np.abs(found - expected).max() < 1e-5
    untouched = resampled_channel(array, array.shape, Resampling(), CUBES, CUBES, ranges=ranges)
    assert np.array_equal(untouched, array)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order_z", [0, 1])
def test_thick_slices_are_resampled_one_by_one(array: np.ndarray, axis: int, order_z: int) -> None:
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 5.0
    shape = (33, 40, 20)
    in_plane = tuple(np.delete(shape, axis))
    slices = [
        resize(one.astype(float), in_plane, 3, mode="edge", anti_aliasing=False) for one in np.moveaxis(array, axis, 0)
    ]
    expected = resize(np.stack(slices, axis), shape, order_z, mode="edge", anti_aliasing=False, clip=False)
    others = tuple(n for n in range(3) if n != axis)
    ranges = np.array([array.min(others), array.max(others)])
    found = resampled_channel(array, shape, Resampling(order_z=order_z), tuple(spacing), CUBES, ranges=ranges)
    assert np.abs(found - expected).max() < 1e-5


def test_torchs_variant_takes_the_nearest_slice(array: np.ndarray) -> None:
    image = torch.from_numpy(array)
    in_plane = torch.nn.functional.interpolate(image[:, None], (40, 20), mode="bilinear")[:, 0]
    expected = torch.nn.functional.interpolate(in_plane[None, None], (33, 40, 20), mode="nearest-exact")[0, 0]
    found = resampled_channel(array, (33, 40, 20), Resampling("torch"), THICK, CUBES)
    assert np.abs(found - expected.numpy()).max() < 1e-5


def winners(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the label of the greatest indicator by scikit-image; the nearest voxel's among equals."""
    values = np.unique(labels)
    scores = np.stack([resize((labels == v).astype(float), shape, 1, mode="edge", anti_aliasing=False) for v in values])
    close = resize(labels.astype(float), shape, 0, mode="edge", anti_aliasing=False)
    best = values[scores.argmax(0)]
    tied = np.take_along_axis(scores, np.searchsorted(values, close)[None], 0)[0] == scores.max(0)
    return np.where(tied, close, best)


@pytest.mark.parametrize("shape", [(40, 62, 54), (33, 40, 20), (20, 31, 27), (10, 15, 14)])
def test_labels_are_resampled_by_their_indicators(labels: np.ndarray, shape: tuple[int, int, int]) -> None:
    found = resampled_labels(labels, shape, Resampling(order=1), CUBES, CUBES)
    assert found.dtype == labels.dtype
    assert np.array_equal(found, winners(labels, shape))


def test_labels_of_thick_slices_are_resampled_one_by_one(labels: np.ndarray) -> None:
    slices = np.stack([winners(one, (62, 54)) for one in labels])
    expected = resize(slices.astype(float), (33, 62, 54), 0, mode="edge", anti_aliasing=False)
    assert np.array_equal(resampled_labels(labels, (33, 62, 54), Resampling(order=1), THICK, CUBES), expected)
    nearest = resize(labels.astype(float), (33, 62, 54), 0, mode="edge", anti_aliasing=False)
    assert np.array_equal(resampled_labels(labels, (33, 62, 54), Resampling(order=0), CUBES, CUBES), nearest)


def test_torchs_variant_takes_the_first_of_equal_labels(labels: np.ndarray) -> None:
    shape = (33, 62, 54)
    values = np.unique(labels)
    scores = [torch.from_numpy((labels == v).astype(np.float32))[None, None] for v in values]
    scores = [torch.nn.functional.interpolate(one * 1000, shape, mode="trilinear")[0, 0].half() for one in scores]
    expected = values[torch.stack(scores).argmax(0).numpy()]
    found = resampled_labels(labels, shape, Resampling("torch", 1), CUBES, CUBES)
    assert (found != expected).mean() < 1e-4
