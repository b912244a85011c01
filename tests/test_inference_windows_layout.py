"""Where windows lie, and what their voxels weigh: nnU-Net's rules. Those of MONAI are tested with the inferer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from napari_seg.bundles.windows import WindowSettings
from napari_seg.errors import InputError
from napari_seg.inference.windows.covering import layouts
from napari_seg.inference.windows.layout import Windows


def settings(size: tuple[int, int, int], overlap: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> WindowSettings:
    return WindowSettings(size, overlap, mode="nnunet")


@pytest.mark.parametrize("layout", ["bundle", "even"])
def test_windows_lie_where_nnunet_lays_them(layout: str) -> None:
    (windows,) = layouts(layout, (110, 64, 65), settings((64, 64, 64)))  # type: ignore[arg-type]
    assert windows.starts == ((0, 23, 46), (0,), (0, 1))
    (windows,) = layouts(layout, (100, 101, 102), settings((32, 32, 32), (0.2, 0.2, 0.2)))  # type: ignore[arg-type]
    # (100 - 32) / (32 * 0.8) = 2.66, so four windows; halves are rounded to even
    assert windows.starts == ((0, 23, 45, 68), (0, 23, 46, 69), (0, 23, 47, 70))
    (windows,) = layouts(layout, (41, 32, 32), settings((32, 32, 32), (0.8, 0.5, 0.5)))  # type: ignore[arg-type]
    assert windows.starts[0] == (0, 4, 9)  # 4.5 becomes 4


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_a_scan_that_is_too_small_for_its_padding_is_refused(mode: str) -> None:
    for length in range(1, 13):
        windows = Windows.over((12, length, 9), WindowSettings((12, 12, 12), (0.5, 0.5, 0.5), padding_mode=mode))
        image = torch.zeros(1, *windows.image_shape)
        if length > 4 or (length == 4 and mode == "circular"):
            assert windows.pad(image).shape == (1, 12, 12, 12)
            continue
        with pytest.raises(InputError, match=rf"data\.too_small: the scan has 12 x {length} x 9 voxels"):
            windows.pad(image)


def test_an_odd_voxel_of_padding_comes_last() -> None:
    windows = Windows.over((21, 40, 32), settings((32, 32, 32)))
    assert windows.before == (5, 0, 0)
    assert windows.starts[0] == (0,)


def test_every_slice_is_a_window_of_its_own() -> None:
    windows = Windows.over((7, 60, 40), settings((1, 40, 40), (0.0, 0.5, 0.5)))
    assert windows.starts == ((0, 1, 2, 3, 4, 5, 6), (0, 20), (0,))
    assert windows.weights().shape == (1, 40, 40)


@pytest.mark.parametrize("size", [(24, 32, 17), (1, 40, 30)])
def test_the_weights_are_a_filtered_peak(size: tuple[int, int, int]) -> None:
    peak = np.zeros(size)
    peak[tuple(n // 2 for n in size)] = 1
    expected = gaussian_filter(peak, [n / 8 for n in size], mode="constant")
    expected = (10 * expected / expected.max()).astype(np.float16)  # as nnU-Net keeps it
    expected[expected == 0] = expected[expected > 0].min()
    found = Windows.over(size, settings(size)).weights().numpy()
    assert found.dtype == np.float32
    assert np.allclose(10 * found, expected.astype(np.float32), rtol=1e-3, atol=0)
    assert (np.abs(10 * found - expected) < 1e-6).mean() > 0.99
    assert found.min() > 0
