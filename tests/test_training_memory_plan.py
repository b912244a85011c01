"""Plans that must fit into a memory of given size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import pytest

from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.memory_plan import (
    PATCHES,
    Device,
    fit_memory,
    grids_of,
    needed_bytes,
    validate_within,
    validation_cost,
)
from napari_seg.training.network_cost import BASE_BYTES, NetworkCost
from napari_seg.training.plan import TrainingPlan, make_plan

MRI = Fingerprint(
    cases=100,
    measured=10,
    is_2d=False,
    channels=("T1",),
    modality="MR",
    values=(1, 2),
    shapes=np.array([[200.0, 200, 200]] * 10),
    spacings_mm=np.ones((10, 3)),
    foreground={"low": 0.0, "high": 1.0, "mean": 0.5, "std": 0.2},
)


def cost_of(plan: TrainingPlan) -> NetworkCost:
    """A network that stores 1000 values of each voxel."""
    return NetworkCost(0, 1, 4000 * prod(plan.settings["patch_size"]))


def fit(free: float, found: Fingerprint = MRI, kind: str = "cpu", **others: Any) -> TrainingPlan:
    device = Device(kind, kind, int(BASE_BYTES[kind] + free))
    make = partial(make_plan, found, device=kind, **others)
    plan, cost = fit_memory(make, cost_of, found, device)
    assert cost is not None
    return plan


ONE_CASE = 1.35 * 4000 * 64**3


def test_a_plan_that_fits_stays() -> None:
    plan = fit(2.1 * ONE_CASE)
    assert plan.settings == make_plan(MRI).settings
    assert plan.settings["batch_size"] == 2


def test_batches_are_split_before_patches_shrink() -> None:
    plan = fit(1.1 * ONE_CASE)
    assert plan.settings["accumulation_steps"] == 2
    assert prod(plan.settings["patch_size"]) == 64**3
    plan = fit(0.5 * ONE_CASE)
    assert plan.settings["accumulation_steps"] == 2
    assert 0.3 * 64**3 < prod(plan.settings["patch_size"]) <= 0.5 * 64**3
    assert "the memory's limit" in plan.why["patch_size"]
    device = Device("cpu", "cpu", 0)
    assert needed_bytes(plan, cost_of(plan), device.kind) <= BASE_BYTES["cpu"] + 0.5 * ONE_CASE


def test_what_the_user_set_stays() -> None:
    chosen = {"patch_size": [64, 64, 64], "accumulation_steps": 1}
    plan = fit(0.5 * ONE_CASE, chosen=chosen)
    assert plan.settings["patch_size"] == [64, 64, 64]
    assert "accumulation_steps" not in plan.settings
    assert "batch_size" in plan.settings


def test_a_gpu_is_filled_up_to_a_twentieth_of_the_data() -> None:
    small = replace(MRI, shapes=np.array([[36.0, 50, 36]] * 10))
    room = fit(1e12, small, "cuda")
    # 5 of 100 cases of 36 x 50 x 36 are 3.6 patches of 40 x 56 x 40
    assert room.settings["batch_size"] == 4
    assert fit(1e12, small, "cuda", chosen={"batch_size": 3}).settings["batch_size"] == 3
    one = 1.35 * 0.55 * 4000 * 40 * 56 * 40
    assert fit(3.2 * one, small, "cuda").settings["batch_size"] == 3
    assert fit(2.2 * one, small, "cuda").settings["batch_size"] == 2


LARGE = [((200, 200, 200), (1.0, 1.0, 1.0)), ((512, 512, 800), (0.8, 0.8, 0.5))]


def test_a_validation_has_one_row_of_windows_of_the_largest_case() -> None:
    plan, network = make_plan(MRI), NetworkCost(0, 1, 0)
    of_case = partial(validation_cost, plan, network, device="cpu", channels=1)
    few, many = (of_case(LARGE, classes=classes) for classes in (7, 118))
    assert few.shape == (410, 410, 400)
    voxels, base = prod(few.shape), BASE_BYTES["cpu"]
    assert many.validation == pytest.approx(base + 1.3 * 4 * 118 * 64 * 410 * 400 + 30 * voxels)
    assert few.validation == base + 60 * voxels  # resampling the scan takes more
    assert many.evaluation > many.validation  # the scan itself has more voxels
    inverted = of_case(LARGE, classes=118, own_transforms=True)
    assert inverted.evaluation > 4 * 118 * voxels
    assert inverted.validation == many.validation
    averaged = of_case(LARGE, classes=118, options=["tta"])
    assert averaged.validation > 3 * 4 * 118 * voxels


def test_the_largest_case_decides_whether_validations_see_patches() -> None:
    cost = validation_cost(make_plan(MRI), NetworkCost(0, 1, 0), LARGE, "cpu", channels=1, classes=26)
    for free, options, expected in ((2**40, [], []), (2**31, [], [PATCHES]), (2**31, [PATCHES], [])):
        plan = make_plan(MRI)
        validate_within(plan, cost, Device("cpu", "cpu", free), options)
        assert [name for name in plan.options if name == PATCHES] == expected
        if expected:
            assert "largest case (410 x 410 x 400 voxels, 26 classes with background)" in plan.why[PATCHES]
            assert "; 2.0 GiB may be used" in plan.why[PATCHES]
    slices = make_plan(MRI, dims=2)
    validate_within(slices, cost, Device("cpu", "cpu", 0))
    assert PATCHES not in slices.options


def test_grids_are_in_the_order_of_the_patient() -> None:
    """The first axis of the file runs to the left with 3 mm, the second upwards, the third to the back."""
    affine = [[-3.0, 0, 0, 9], [0, 0, -2.0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]]
    facts = {"a": {"shape": [10, 40, 20], "affine": affine}, "b": {"shape": [30, 20], "affine": None}}
    assert grids_of([{"label": "a"}, {"label": "b"}], facts) == [
        ((10, 20, 40), (3.0, 2.0, 0.5)),
        ((30, 20), (1.0, 1.0)),
    ]
    as_stored = {"transpose": [0, 1, 2], "reorient": False}  # nnU-Net reverses the axes of the file
    assert grids_of([{"label": "a"}], facts, as_stored) == [((20, 40, 10), (2.0, 0.5, 3.0))]
    canonical = {"transpose": [0, 2, 1], "reorient": True}  # z, x, y
    assert grids_of([{"label": "a"}], facts, canonical) == [((40, 10, 20), (0.5, 3.0, 2.0))]
