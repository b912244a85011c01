"""Costs counted without computing, against the same network computed."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from napari_seg.bundles.read import shipped_root
from napari_seg.training.network_cost import BASE_BYTES, COPIES, GRADIENTS, HALF, NetworkCost, measure_cost

sys.path.insert(0, str(shipped_root()))


def test_a_convolution_by_hand() -> None:
    cost = measure_cost(lambda: nn.Conv3d(2, 4, 3, padding=1), 2, [8, 8, 8])
    assert cost.parameters == 2 * 4 * 27 + 4
    # a multiplication and an addition for each weight and voxel; backward is twice that
    assert cost.operations == 3 * 2 * (2 * 4 * 27) * 8**3
    # the image is kept for the weights' gradient; the weights are counted as parameters
    assert cost.stored_bytes == 4 * 2 * 8**3


def test_stored_feature_maps_are_those_of_a_real_network() -> None:
    from segnets import UNet

    stored: dict[int, int] = {}
    network = UNet(3, 1, 3, channels=(4, 8), strides=(1, 2))
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = []

    def store(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # else its memory would be used again
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        network.eval()(torch.zeros(1, 1, 16, 16, 16))
    counted = measure_cost(lambda: UNet(3, 1, 3, channels=(4, 8), strides=(1, 2)), 1, [16, 16, 16])
    assert counted.parameters == sum(p.numel() for p in network.parameters())
    assert counted.stored_bytes == pytest.approx(sum(stored.values()), rel=0.02)


def test_memory_grows_with_cases_and_is_halved_by_mixed_precision() -> None:
    cost = NetworkCost(1000, 1, 10**6)
    assert cost.bytes(3, "cpu") == int(BASE_BYTES["cpu"] + 4 * COPIES * 1000 + 3 * (1 + GRADIENTS) * 10**6)
    assert cost.bytes(3, "cuda", amp=True) - cost.bytes(1, "cuda", amp=True) == pytest.approx(
        2 * (1 + GRADIENTS) * HALF * 10**6, abs=1
    )


@pytest.mark.parametrize("name", ["UNet", "FCN", "DeepLabV3", "DeepLabV3Plus", "MultiView"])
def test_every_network_can_be_counted(name: str) -> None:
    import segnets

    cost = measure_cost(lambda: getattr(segnets, name)(3, 1, 3), 1, [32, 32, 32])
    assert min(cost.parameters, cost.operations, cost.stored_bytes) > 0
