"""nnU-Net's plans of data sets that are published, and its rules by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.nnunet_plan import feature_values, make_nnunet_plan, target_spacing, topology

HIPPOCAMPUS = Fingerprint(
    cases=260,
    measured=10,
    is_2d=False,
    channels=("MRI",),
    modality="MR",
    values=(1, 2),
    shapes=np.array([[35.0, 50, 36]] * 10),
    spacings_mm=np.ones((10, 3)),
    foreground={"low": 0.0, "high": 1.0, "mean": 0.5, "std": 0.2},
)
"""The Decathlon's Task04, whose plan nnU-Net's paper lists: patch 40 x 56 x 40, batch 9."""
THICK = replace(
    HIPPOCAMPUS,
    cases=100,
    channels=("CT",),
    shapes=np.array([[512.0, 512, 60]] * 10),
    spacings_mm=np.array([[0.8, 0.8, 5.0]] * 8 + [[0.8, 0.8, 2.5]] * 2),
    foreground={"low": -120.0, "high": 280.0, "mean": 80.0, "std": 40.0},
)


def test_the_published_plan_of_the_hippocampus() -> None:
    plan, configuration = make_nnunet_plan(HIPPOCAMPUS, 3)
    assert plan.settings["patch_size"] == [40, 56, 40]
    assert plan.settings["batch_size"] == 9
    assert plan.network["channels"] == [32, 64, 128, 256]
    assert plan.network["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert plan.network["kernels"] == [[3, 3, 3]] * 4
    assert plan.network["residual"] is False
    assert plan.network["deep_supervision"] is True
    # 0.33 of 9 are 3; the rest anywhere, which is mostly background
    assert plan.settings["crop#transforms#0#ratios"] == [6.0, 1.5, 1.5]
    assert plan.settings["loss_function#weights"] == [0.666667, 0.333333, 0.0]
    assert plan.options == ["crops_balanced", "sgd_poly"]
    assert configuration["batch_dice"] is False
    assert plan.settings["max_epochs"] == 1000
    # 208 cases: 11 patches of each make 254 steps of 9
    assert plan.settings["patches_per_case"] == 11
    assert set(plan.settings) | set(plan.options) == set(plan.why)


def test_regions_share_the_patches_by_their_parts() -> None:
    """Three nested regions have three parts and no background channel."""
    plan, _ = make_nnunet_plan(HIPPOCAMPUS, 3, parts=3)
    assert plan.settings["crop#transforms#0#ratios"] == [6.0, 1.0, 1.0, 1.0]
    assert "loss#include_background" not in plan.settings
    one, _ = make_nnunet_plan(HIPPOCAMPUS, 1, parts=1)
    assert one.settings["crop#transforms#0#ratios"] == [6.0, 3.0]


def test_axes_come_back_in_order() -> None:
    plan, configuration = make_nnunet_plan(THICK, 3)
    assert plan.settings["spacing_mm"] == [0.8, 0.8, 2.5]  # the finest tenth of the thick slices
    i, j, k = plan.settings["patch_size"]
    assert [k, j, i] == configuration["patch_size"]
    assert plan.network["strides"][1] == [2, 2, 1]
    assert plan.network["kernels"][0] == [3, 3, 1]
    assert configuration["architecture"]["strides"][1] == [1, 2, 2]
    assert plan.settings["normalisation"]["a_min"] == -120
    assert configuration["batch_dice"] is True  # beside a low resolution
    assert plan.settings["loss#batch"] is True
    turned = replace(THICK, shapes=THICK.shapes[:, ::-1], spacings_mm=THICK.spacings_mm[:, ::-1])
    other, _ = make_nnunet_plan(turned, 3)
    assert other.settings["patch_size"] == [k, i, j]  # equal axes are taken in the file's reverse order


def test_slices_and_pictures() -> None:
    slices, configuration = make_nnunet_plan(HIPPOCAMPUS, 3, dims=2)
    assert slices.options[0] == "slices_2d"
    assert slices.settings["slice_axis"] == 2
    assert len(slices.settings["patch_size"]) == 2
    assert slices.settings["slices_per_case"] == 1
    assert configuration["batch_dice"] is True
    pictures = replace(HIPPOCAMPUS, is_2d=True, channels=("R", "G", "B"), shapes=np.array([[560.0, 600]]))
    pictures = replace(pictures, spacings_mm=np.ones((1, 2)), cases=6)
    plan, _ = make_nnunet_plan(pictures, 3)
    assert plan.options == ["images_2d", "crops_balanced", "sgd_poly"]
    assert "spacing_mm" not in plan.settings


def test_borders_of_zeros_do_not_count() -> None:
    bordered = replace(HIPPOCAMPUS, shapes=HIPPOCAMPUS.shapes + 40, nonzero_shapes=HIPPOCAMPUS.shapes)
    plan, configuration = make_nnunet_plan(replace(bordered, nonzero_fraction=0.1), 3)
    assert plan.settings["patch_size"] == [40, 56, 40]
    assert plan.settings["normalisation"]["nonzero"] is True
    assert configuration["use_mask_for_norm"] == [True]


def test_topology_by_hand() -> None:
    # 20 x 12: both halved to 10 x 6; then only the first has 8 or more, but a single axis needs 12
    assert topology([1, 1], [20, 12])[0] == [[1, 1], [2, 2]]
    # 24 x 12: 12 x 6, then the first alone
    strides, kernels, patch, multiple = topology([1, 1], [23.5, 12])
    assert strides == [[1, 1], [2, 2], [2, 1]]
    assert (kernels, patch, multiple) == ([[3, 3]] * 3, [24, 12], [4, 2])


def test_feature_values_by_hand() -> None:
    # levels of 8 x 8 and 4 x 4 with 32 and 64 features: two convolutions each, and in the decoder two and an upsampling
    assert feature_values([8, 8], [[1, 1], [2, 2]], 3) == 2 * 32 * 64 + 2 * 64 * 16 + 3 * 32 * 64 + 3 * 64


def test_spacing_is_not_finer_than_the_other_axes() -> None:
    spacings = np.array([[1.0, 1.0, 4.0]] * 8 + [[1.0, 1.0, 0.5]] * 2)
    shapes = np.array([[300.0, 300, 50]] * 10)
    assert target_spacing(spacings, shapes) == pytest.approx([1, 1, 1.00001])
    assert target_spacing(spacings, shapes[:, ::-1]) == pytest.approx([1, 1, 4])
