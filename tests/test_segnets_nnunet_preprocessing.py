"""nnU-Net's preprocessing in a training: the label map lies on the image of the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Invertd, LoadImaged, ResampleToMatchd
from phantoms import oblique_grid

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.nnunet_preprocessing import NnunetNetwork, NnunetPreprocessd


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("reorient", [False, True])
@pytest.mark.parametrize("flip", [1, -1])
def test_the_label_map_lies_on_the_image(tmp_path: Path, transpose: tuple, reorient: bool, flip: int) -> None:
    grid = oblique_grid((20, 26, 14))
    affine = grid.affine @ np.diag([flip, 1, 1, 1])
    labels = np.zeros(grid.shape, np.uint8)
    labels[3:15, 5:20, 2:12] = 1
    labels[3:9, 5:12, 2:7] = 0  # no symmetry
    for name, array in (("image", labels * 100.0 + 1), ("label", labels)):
        array = np.pad(array[1:-1, 1:-1, 1:-1], 1)  # a border of zeros, which is cropped
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    how: dict[str, Any] = {"method": "spline", "order": 1, "order_z": 0, "separate_z": False}
    preprocessing = Compose(
        [
            LoadImaged("image", image_only=True, ensure_channel_first=True),
            NnunetPreprocessd("image", (1.2, 1.4, 1.6), transpose, [{"scheme": "none"}], how, how, reorient=reorient),
        ]
    )
    case = {"image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    prepared = preprocessing(case)
    read = LoadImaged("label", image_only=True, ensure_channel_first=True)
    inside = np.asarray(prepared["image"]) > 51
    for mode, dice in (("bilinear", 0.999), ("nearest", 0.95)):  # the nearest voxel moves a border by half a voxel
        found = np.asarray(ResampleToMatchd("label", key_dst="image", mode=mode)(read(prepared))["label"]) > 0.5
        assert 2 * (inside & found).sum() / (inside.sum() + found.sum()) > dice
    # and back on the voxels of the scan
    prepared["pred"] = prepared["image"].clone()
    back = Invertd("pred", preprocessing, "image", nearest_interp=False)(prepared)["pred"]
    again = np.asarray(back)[0] > 51
    assert 2 * (again & (labels > 0)).sum() / (again.sum() + labels.sum()) > 0.97


def test_logits_are_averaged_over_networks_and_mirror_images() -> None:
    torch.manual_seed(0)
    networks = [torch.nn.Conv2d(1, 2, 3, padding=1) for _ in range(2)]
    plane = torch.randn(3, 1, 6, 5)
    with torch.no_grad():
        found = NnunetNetwork(networks, mirror_axes=(1, 2), sees_slices=True)(plane[:, :, None])
        each = [net(plane.flip(axes)).flip(axes) for net in networks for axes in ([], [2], [3], [2, 3])]
    assert torch.allclose(found, torch.stack(each).mean(0)[:, :, None], atol=1e-6)
