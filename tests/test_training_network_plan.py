"""Strides, kernels and depth against what the rules give by hand."""

from __future__ import annotations

import sys

import pytest

from napari_seg.bundles.read import shipped_root
from napari_seg.training.network_plan import SIZES, halvings, kernel_sizes, plan_network, total_stride

sys.path.insert(0, str(shipped_root()))


def test_small_isotropic_crops_keep_the_network_of_the_shipped_model() -> None:
    import inspect

    from segnets import UNet

    arguments, why = plan_network("S", [1, 1, 1], [40, 56, 40])
    defaults = {name: inspect.signature(UNet).parameters[name].default for name in arguments}
    assert arguments == defaults | {"channels": list(defaults["channels"])}
    assert "4 levels, the lowest of 3 x 4 x 3 voxels" in why


def test_thick_slices_are_halved_only_when_pixels_have_grown_to_them() -> None:
    # pixels of 0.8 mm: 1.6, 3.2, then 3.2 is over half of 5; slices stay 5, 5, then 10
    strides = halvings([0.8, 0.8, 5], [112, 112, 16])
    assert strides == [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 1]]
    assert total_stride(strides) == [32, 32, 4]
    # 1.6 and 5: not mixed; 3.2 and 5: mixed from here on
    assert kernel_sizes([0.8, 0.8, 5], strides) == [[3, 3, 1], *[[3, 3, 3]] * 4]
    arguments, why = plan_network("M", [0.8, 0.8, 5], [112, 112, 16])
    assert arguments["strides"] == [1, [2, 2, 1], [2, 2, 1], 2, 2, [2, 2, 1]]
    assert arguments["kernels"] == [[3, 3, 1], [3, 3, 1], 3, 3, 3, 3]
    assert "halved later" in why


def test_the_order_of_axes_does_not_matter() -> None:
    for patch, spacing in (([16, 112, 112], [5, 0.8, 0.8]), ([112, 16, 112], [0.8, 5, 0.8])):
        coarse = spacing.index(5)
        expected = [[1 if axis == coarse else 2 for axis in range(3)]] * 2
        assert halvings(spacing, patch)[:2] == expected


@pytest.mark.parametrize(
    ("patch", "lowest"),
    [
        ([64, 64, 64], [4, 4, 4]),  # four halvings
        ([128, 128, 128], [4, 4, 4]),  # five
        ([256, 256], [4, 4]),  # six
        ([160, 96, 96], [5, 6, 6]),  # 96: 48, 24, 12, 6, and 3 would be too few for the fifth
        ([32, 40, 32], [2, 3, 2]),  # the first four may go down to 2
        ([8, 8, 8], [2, 2, 2]),
        ([3, 3, 3], [2, 2, 2]),  # a network has a level at least
    ],
)
def test_the_lowest_map_keeps_a_few_voxels(patch: list[int], lowest: list[int]) -> None:
    total = total_stride(halvings([1] * len(patch), patch))
    found = [-(-edge // step) for edge, step in zip(patch, total, strict=True)]
    assert found == lowest


def test_every_size_builds_and_grows() -> None:
    import torch
    from segnets import UNet

    counts = {}
    for size in SIZES:
        for dims, patch, spacing in ((3, [96, 96, 24], [1, 1, 4]), (2, [256, 192], [1, 1])):
            arguments, _ = plan_network(size, spacing, patch)
            with torch.device("meta"):
                network = UNet(dims, 2, 3, **arguments)
                assert network.eval()(torch.zeros(1, 2, *patch)).shape == (1, 3, *patch)
            counts[size, dims] = sum(p.numel() for p in network.parameters())
    for dims in (2, 3):
        assert counts["S", dims] < counts["M", dims] < counts["L", dims] == counts["XL", dims]
