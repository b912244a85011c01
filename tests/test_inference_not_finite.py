"""A network that float16 can't hold runs in float32; NaN and infinity in float32 mean damaged weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_models import configuration, write_model

from napari_seg.bundles import load
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import BundleError
from napari_seg.geometry import Grid
from napari_seg.inference import seconds
from napari_seg.inference.not_finite import Float16Overflow
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.second_look import second_look
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume

OPTIONS = SegmentOptions(device="cpu", backend="torch")


@pytest.fixture
def float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as on a GPU: in float16 unless float32 is requested."""
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))
    monkeypatch.setattr(load, "compute_dtype", lambda one, _: torch.float16 if one == "auto" else torch.float32)
    monkeypatch.setattr(seconds, "seconds_per_flop", lambda *_, **__: 1e-12)  # emulated float16 takes seconds


@pytest.fixture
def scan() -> Volume:
    """Large values, which networks without normalisation multiply beyond 65504."""
    array = np.random.default_rng(0).normal(size=(1, 20, 20, 20)) * 30000
    return Volume(array.astype(np.float32), Grid((20, 20, 20), np.eye(4)))


def written(folder: Path, seed: int = 1) -> Path:
    entry = configuration((16, 16, 16), (1, 1, 1), normalization_schemes=["NoNormalization"])
    return write_model(folder, "3d_fullres", entry, seed=seed)


def test_values_beyond_float16_are_computed_in_float32(float16: None, tmp_path: Path, scan: Volume) -> None:
    bundle = read_bundle(written(tmp_path))
    two = f"{bundle.root.parent}:3d_fullres+3d_fullres"
    expected = segment(scan, bundle, OPTIONS, precision="float32")
    found = segment(scan, bundle, OPTIONS)
    assert len(np.unique(found.array)) > 1
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.run["precision"] == "float32"
    assert [one.code for one in found.notices if one not in expected.notices] == ["environment.overflow"]
    both = segment(scan, two, OPTIONS)
    np.testing.assert_array_equal(both.array, expected.array)
    small = Volume(scan.array / 30000, scan.grid)
    assert segment(small, bundle, OPTIONS).run["precision"] == "float16"
    with pytest.raises(Float16Overflow, match="choose --precision float32"):
        second_look(scan, two, OPTIONS)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_float32_can_t_hold_mean_damaged_weights(tmp_path: Path, scan: Volume, value: float) -> None:
    root = written(tmp_path)
    path = root / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    content["network_weights"]["decoder.seg_layers.0.bias"][1] = value
    torch.save(content, path)
    with pytest.raises(BundleError, match=r"NaN .* or infinity; its weights are damaged"):
        segment(scan, read_bundle(root), OPTIONS)
