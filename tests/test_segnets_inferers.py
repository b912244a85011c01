"""Test averaging at test time against means computed by hand."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from torch import nn

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.inferers import MultiScale, TestTimeAveraging, with_overlap


def pointwise(image: torch.Tensor) -> torch.Tensor:
    return torch.cat([image, image**2, -image], dim=1)


def seeded_conv() -> nn.Module:
    torch.manual_seed(5)
    return nn.Conv2d(1, 3, 3, padding=1)


@pytest.mark.parametrize("inferer", [SimpleInferer(), SlidingWindowInferer((6, 6, 6), overlap=0.5)])
def test_averaging_changes_nothing_for_a_network_of_single_voxels(inferer: Any) -> None:
    image = torch.randn(2, 1, 7, 5, 6)
    averaged = TestTimeAveraging(inferer, shifts=3, mirror_axes=(0, 2))(image, pointwise)
    assert torch.allclose(averaged, pointwise(image).log_softmax(dim=1), atol=1e-5)
    assert torch.allclose(averaged.exp().sum(dim=1), torch.ones(2, 7, 5, 6), atol=1e-5)


def test_shifts_and_mirrors_are_the_mean_by_hand() -> None:
    network, image = seeded_conv(), torch.randn(1, 1, 6, 5)
    first = F.pad(image, (0, 3, 0, 1))  # at the canvas's near corner
    other = F.pad(image, (3, 0, 1, 0))  # 1 and 3 voxels further
    with torch.no_grad():
        expected = (
            network(first).softmax(1)[..., :6, :5]
            + network(first.flip(3)).flip(3).softmax(1)[..., :6, :5]
            + network(other).softmax(1)[..., 1:, 3:]
            + network(other.flip(3)).flip(3).softmax(1)[..., 1:, 3:]
        ) / 4
        averaging = TestTimeAveraging(SimpleInferer(), shifts=[(0, 0), (1, 3)], mirror_axes=[1])
        assert torch.allclose(averaging(image, network).exp(), expected, atol=1e-6)


def test_a_number_of_shifts_runs_that_many_copies_along_the_diagonal() -> None:
    sizes = []

    def network(image: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(image.shape[2:]))
        return pointwise(image)

    TestTimeAveraging(SimpleInferer(), shifts=4)(torch.randn(1, 1, 8, 9, 10), network)
    assert sizes == [(11, 12, 13)] * 4


def test_a_confident_network_gives_no_minus_infinity() -> None:
    logits = TestTimeAveraging(SimpleInferer(), shifts=2)(torch.full((1, 1, 4, 4), 500.0), pointwise)
    assert torch.isfinite(logits).all()


def test_scales_are_the_mean_by_hand() -> None:
    network, image = seeded_conv(), torch.randn(1, 1, 8, 6)

    def resized(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(features, size=size, mode="bilinear", align_corners=False)

    with torch.no_grad():
        halved = resized(network(resized(image, (4, 3))), (8, 6)).softmax(1)
        expected = (halved + network(image).softmax(1)) / 2
        assert torch.allclose(MultiScale(SimpleInferer(), (0.5, 1.0))(image, network).exp(), expected, atol=1e-6)
        nested = TestTimeAveraging(MultiScale(SimpleInferer(), (0.5, 1.0)), shifts=1)
        assert torch.allclose(nested(image, copy.deepcopy(network)).exp(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [SlidingWindowInferer, SliceInferer])
def test_windows_of_a_validation_are_few(kind: type[SlidingWindowInferer]) -> None:
    calls = 0

    def network(windows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += len(windows)
        return windows

    inferer = kind(roi_size=(8, 8) if kind is SliceInferer else (8, 8, 8), overlap=0.5)
    image, counts = torch.rand(1, 1, 32, 32, 32), []
    for windows in (inferer, with_overlap(inferer, 0.125)):
        calls = 0
        assert torch.allclose(windows(image, network), image, atol=1e-5)
        counts.append(calls)
    around = TestTimeAveraging(inferer)
    assert with_overlap(around, 0.125) is around
    assert inferer.overlap == 0.5
    assert counts == ([32 * 7**2, 32 * 5**2] if kind is SliceInferer else [7**3, 5**3])
