"""nnU-Net's preprocessing in a training: the label map lies on the image of the network."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged, ResampleToMatchd
from nnunet_models import bundle_of, resolved
from phantoms import oblique_grid

from napari_seg.bundles.nnunet.configuration import Normalisation, Resampling, preprocessing_arguments
from napari_seg.bundles.read import shipped_root
from napari_seg.inference.nnunet.prepare import prepare_as_nnunet
from napari_seg.inference.nnunet.spacing import resampled_labels
from napari_seg.volume import Segmentation, Volume

sys.path.insert(0, str(shipped_root()))

from segnets.nnunet_preprocessing import NnunetNetwork, NnunetPreprocessd, _resampled_labels


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


def test_labels_of_the_previous_stage_become_the_channels_of_nnunet() -> None:
    grid = oblique_grid((20, 26, 14))
    random = np.random.default_rng(0)
    array = np.pad(random.integers(1, 900, (16, 22, 12)), [(2, 2), (2, 2), (1, 1)]).astype(np.float32)
    array[2:8, 2:9, 1:5] = 0  # a corner without content, in which labels count as content
    labels = random.integers(0, 3, (5, 7, 4)).repeat(4, 0).repeat(4, 1).repeat(4, 2)[:20, :26, :14].astype(np.uint8)
    configuration = resolved(
        spacing_mm=(0.7, 1.4, 1.1),
        transpose=(1, 0, 2),
        reader="SimpleITKIOWithReorient",
        normalisation=(Normalisation("z-score", inside_mask=True),),
        previous_stage="3d_lowres",
    )
    previous = Segmentation(labels, grid, ())
    expected, _ = prepare_as_nnunet(Volume(array[None], grid), bundle_of(configuration), configuration, None, previous)
    preprocess = NnunetPreprocessd(**preprocessing_arguments(configuration))
    case = {"image": MetaTensor(torch.from_numpy(array[None]), affine=torch.from_numpy(grid.affine.copy()))}
    found = preprocess(case | {"previous": MetaTensor(torch.from_numpy(labels[None]), affine=case["image"].affine)})
    assert found.keys() == {"image"}
    assert np.allclose(found["image"][:1], expected[:1], atol=1e-5)
    assert np.array_equal(found["image"][1:], expected[1:])
    assert expected[1:].mean() > 0.3
    elsewhere = MetaTensor(torch.from_numpy(labels[None]), affine=np.eye(4))
    for other in ({}, {"previous": elsewhere}, {"previous": case["image"][:, 1:]}):
        with pytest.raises(ValueError, match="--previous_dir"):
            preprocess(case | other)


@pytest.mark.parametrize(
    "how",
    [
        Resampling("spline", 1, 0, None),
        Resampling("spline", 0, 0, False),
        Resampling("spline", 1, 1, True),
        Resampling("spline", 3, 0, False),
        Resampling("torch", 1, 0, False),
        Resampling("torch", 1, 0, True),
    ],
)
def test_label_maps_are_resampled_as_by_the_engine(how: Resampling) -> None:
    labels = np.random.default_rng(0).integers(-1, 4, (6, 9, 7)).astype(np.int32)
    old, new = (4.0, 1.0, 1.2), (3.0, 0.7, 1.5)
    shape = (8, 13, 6)
    expected = resampled_labels(labels, shape, how, old, new)
    assert np.mean(_resampled_labels(labels, shape, asdict(how), old, new) == expected) > 0.995  # all but ties


def test_logits_are_averaged_over_networks_and_mirror_images() -> None:
    torch.manual_seed(0)
    networks = [torch.nn.Conv2d(1, 2, 3, padding=1) for _ in range(2)]
    plane = torch.randn(3, 1, 6, 5)
    with torch.no_grad():
        found = NnunetNetwork(networks, mirror_axes=(1, 2), sees_slices=True)(plane[:, :, None])
        each = [net(plane.flip(axes)).flip(axes) for net in networks for axes in ([], [2], [3], [2, 3])]
    assert torch.allclose(found, torch.stack(each).mean(0)[:, :, None], atol=1e-6)
