"""Test-time averaging: shifted copies and mirror images of each window, chosen by a person or by the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle
from torch import nn

from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.tta import TTA
from napari_seg.errors import BundleError
from napari_seg.geometry import Grid
from napari_seg.inference.backends.averaging import averaged
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.segment import segment
from napari_seg.inference.settings import set_up
from napari_seg.volume import Volume


class Shifty(nn.Module):
    """Class 1 where a voxel is bright; every 4th plane of each axis sees half as much, as strided networks do."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        blind = torch.ones(image.shape[2:])
        blind[::4], blind[:, ::4] = 0.5, 0.5
        return torch.cat([-image, image], dim=1) * blind


@torch.inference_mode()
def test_shifted_copies_are_averaged_voxel_by_voxel() -> None:
    torch.manual_seed(0)
    windows, network = torch.randn(2, 1, 40, 36, 8), Shifty()  # the last axis is too short to be shifted
    found = averaged(network, (), 4)(windows)
    total, count = torch.zeros_like(found), torch.zeros_like(found)
    for k in range(4):
        canvas = torch.zeros(2, 1, 40 + k, 36 + k, 8)
        canvas[:, :, k:, k:] = windows
        logits = network(canvas)[:, :, :40, :36]
        total[:, :, : 40 - k, : 36 - k] += logits[:, :, k:, k:]
        count[:, :, : 40 - k, : 36 - k] += 1
    torch.testing.assert_close(found, total / count)
    shares = averaged(lambda batch: network(batch) * 3, (), 4, is_softmax=True)(windows).exp()
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 40, 36, 8))
    far = (slice(None), slice(None), slice(39, 40), slice(35, 36))  # in one copy only
    torch.testing.assert_close(shares[far], (network(windows) * 3).softmax(1)[far])
    assert averaged(network, ()) is network
    both = averaged(network, (1,), 2)(windows)
    one, other = averaged(network, (), 2)(windows), averaged(network, (1,))(windows)
    assert both.shape == one.shape
    assert not torch.allclose(both, one)
    assert not torch.allclose(both, other)


@pytest.mark.parametrize(("tta", "passes"), [(None, 1), ("none", 1), ("shifts", 4), ("mirror", 8)])
def test_a_person_chooses_the_averaging(head: Volume, tmp_path: Path, tta: TTA | None, passes: int) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "b", roi=(24, 24, 16)), trust=True)
    network, batches = load_model(bundle, "cpu").network, []
    # a dry run has no values
    hook = network.register_forward_hook(lambda _, given, __: None if given[0].is_meta else batches.append(1))
    plain = segment(head, bundle, device="cpu", backend="torch")
    windows = len(batches)
    found = segment(head, bundle, device="cpu", backend="torch", tta=tta)
    hook.remove()
    assert len(batches) - windows == passes * windows
    assert (found.array == plain.array).mean() > 0.999  # each voxel is judged for itself


def test_the_bundles_own_averaging_is_the_default(head: Volume, tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "b", roi=(24, 24, 16), own={"tta": "shifts"})
    bundle = read_bundle(root, trust=True)
    assert bundle.tta == "shifts"
    assert read_bundle().tta == "none"  # as the bundle's own inference
    plain = read_bundle(write_threshold_bundle(tmp_path / "plain", roi=(24, 24, 16)), trust=True)
    found = [set_up(head, known, SegmentOptions(device="cpu")).windows for known in (plain, bundle)]
    assert [windows and windows.passes for windows in found] == [1, 4]
    with pytest.raises(BundleError, match="expected one of none, shifts, mirror"):
        read_bundle(write_threshold_bundle(tmp_path / "odd", own={"tta": "all"}))


def test_averaging_that_means_nothing_is_refused(head: Volume, tmp_path: Path) -> None:
    scan = Volume(np.zeros((1, 8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4)))
    with pytest.raises(BundleError, match="one side of the body") as caught:
        segment(scan, device="cpu", tta="mirror")
    assert caught.value.code == "bundle.tta"
    root = write_threshold_bundle(tmp_path / "whole")
    config = root / "configs/inference.yaml"
    config.write_text(
        config.read_text().partition("inferer:")[0] + "inferer: {_target_: monai.inferers.SimpleInferer}\n"
    )
    with pytest.raises(BundleError, match="no SlidingWindowInferer"):
        segment(head, read_bundle(root, trust=True), device="cpu", tta="shifts")
