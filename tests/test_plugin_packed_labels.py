"""Packed labels: the same labels again, in much less memory."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari_seg.plugin.packed_labels import PackedLabels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_labels_come_back_as_they_were(dtype: type, order: str) -> None:
    labels = np.zeros((40, 50, 60), dtype)
    labels[5:20, 7:30, 9:50] = 3
    labels[1, 2, 3] = np.iinfo(dtype).max
    packed = PackedLabels.of(np.asarray(labels[:, ::-1], order=order))  # type: ignore[call-overload]
    labels[:] = 0  # the copy is its own
    found = packed.unpack()
    assert found.dtype == dtype
    assert (found[1, 47, 3], found[5, 42, 9], int((found == 3).sum())) == (np.iinfo(dtype).max, 3, 15 * 23 * 41)
    assert len(packed.content) < found.nbytes / 50
