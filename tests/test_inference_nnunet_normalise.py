"""Normalisation by nnU-Net's schemes, some planes at a time."""

from __future__ import annotations

import numpy as np
import pytest

from napari_seg.bundles.nnunet.configuration import Normalisation
from napari_seg.errors import InputError
from napari_seg.inference.nnunet.normalise import Normaliser


@pytest.fixture(scope="module")
def channel() -> np.ndarray:
    return np.random.default_rng(0).integers(5, 250, (50, 9, 8)).astype(np.int16)


def normalised(channel: np.ndarray, how: Normalisation, mask: np.ndarray | None = None) -> np.ndarray:
    """Return a channel normalised in parts, and check that its range is known beforehand."""
    normaliser = Normaliser.of(channel, how, mask)
    parts = [normaliser.planes(channel[n : n + 20], slice(n, n + 20)) for n in range(0, len(channel), 20)]
    found = np.concatenate(parts)
    assert found.dtype == np.float32
    assert np.allclose(normaliser.ranges, (found.min(), found.max()), rtol=1e-5, atol=1e-6)
    for axis in range(3):
        others = tuple(n for n in range(3) if n != axis)
        ranges = Normaliser.of(channel, how, mask, axis).ranges
        assert np.allclose(ranges, (found.min(others), found.max(others)), rtol=1e-5, atol=1e-6)
    return found


def test_ct_is_clipped_before_it_is_scaled(channel: np.ndarray) -> None:
    found = normalised(channel, Normalisation("ct", 100.0, 50.0, 20.0, 200.0))
    assert np.allclose(found, (channel.clip(20, 200) - 100.0) / 50)


def test_z_score_uses_the_whole_image_or_the_mask(channel: np.ndarray) -> None:
    found = normalised(channel, Normalisation("z-score"))
    assert np.allclose(found, (channel - channel.mean()) / channel.std(), atol=1e-5)
    mask = np.zeros(channel.shape, bool)
    mask[4:30, 2:, 1:] = True
    shown = np.where(mask, channel, 0)
    found = normalised(shown, Normalisation("z-score", inside_mask=True), mask)
    values = channel[mask]
    assert np.allclose(found[mask], (values - values.mean()) / values.std(), atol=1e-5)
    assert (found[~mask] == 0).all()
    assert np.allclose(
        normalised(shown, Normalisation("z-score"), mask), (shown - shown.mean()) / shown.std(), atol=1e-5
    )


def test_the_other_schemes(channel: np.ndarray) -> None:
    assert np.allclose(normalised(channel, Normalisation("none")), channel)
    assert np.allclose(normalised(channel, Normalisation("rgb")), channel / 255)
    found = normalised(channel, Normalisation("rescale"))
    assert (found.min(), found.max()) == (0, 1)


def test_constant_images_do_not_divide_by_zero() -> None:
    for scheme in ("z-score", "rescale"):
        assert (normalised(np.full((20, 4, 4), 7, np.int16), Normalisation(scheme)) == 0).all()


@pytest.mark.parametrize("value", [-1, 256])
def test_values_that_are_no_colours_are_refused(channel: np.ndarray, value: int) -> None:
    wrong = channel.copy()
    wrong[3, 3, 3] = value
    with pytest.raises(InputError, match="expects colours from 0 to 255") as caught:
        Normaliser.of(wrong, Normalisation("rgb"), None)
    assert caught.value.code == "data.range"
