"""Contrast of image layers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from napari_seg.plugin.contrast import SOFT_TISSUE_HU, contrast_limits


@pytest.mark.parametrize(
    ("array", "modality", "expected"),
    [
        (np.zeros((3, 3, 3)), "CT", SOFT_TISSUE_HU),
        (np.full((3, 3, 3), 5, np.int16), "MR", (5, 6)),
        (np.full((3, 3, 3), np.nan), "MR", (0, 1)),
        (np.r_[np.zeros(1727), 1e9].reshape(12, 12, 12), "MR", (0, 1e9)),
        (np.arange(1001).reshape(7, 11, 13), "", (1, 999)),
    ],
)
def test_contrast_limits(array: np.ndarray, modality: str, expected: tuple[float, float]) -> None:
    assert contrast_limits(array, modality) == pytest.approx(expected)
