"""What shapes alone tell of a network: its cost and its operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet, UNet
from torch import nn

from napari_seg.inference.backends.cost import dry_cost, network_cost

SHAPE = (1, 1, 16, 16, 16)


class Function(nn.Module):
    """A network of one function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.function(image)


def test_a_windows_cost_is_computed_by_hand() -> None:
    net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv3d(8, 5, 1, bias=False))
    cost = network_cost(net, torch.zeros(1, 1, 16, 16, 16))
    voxels = 16**3
    assert cost.classes == 5
    assert cost.flop == 2 * voxels * (27 * 8 + 8 * 5)
    # each operation reads its input and its weights, and writes its output
    assert cost.values == voxels * (1 + 1 + 1 + 8 + 8 + 8 + 8 + 5) + 27 * 8 + 8 * 5
    # the ReLU holds what goes in and what comes out, and the window is still there
    assert cost.peak_bytes == 4 * voxels * (1 + 8 + 8)


def test_costs_of_real_networks_need_no_memory_of_their_size() -> None:
    cost = network_cost(UNet(3, 1, 105, (16, 32, 64), (2, 2)), torch.zeros(1).expand(1, 1, 512, 512, 512))
    assert cost.classes == 105
    assert cost.peak_bytes > 4 * 105 * 512**3


def test_counting_leaves_the_network_as_it_is() -> None:
    net = DynUNet(3, 1, 3, [3] * 3, [1, 2, 2], [2, 2])  # which knows its blocks under several names
    window = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        before = net.eval()(window)
        network_cost(net, window)
        assert not any(value.is_meta for value in net.state_dict().values())
        torch.testing.assert_close(net(window), before)


def test_a_network_that_looks_at_values_is_measured() -> None:
    class Looks(nn.Module):
        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [image.repeat(1, 3, 1, 1, 1) * (2 if image.max() > 0 else 1)]

    assert network_cost(Looks(), torch.zeros(1, 1, 8, 8, 8)).classes == 3
    traced = torch.jit.trace(nn.Conv3d(1, 4, 3, padding=1), torch.zeros(1, 1, 8, 8, 8))
    assert network_cost(traced, torch.zeros(1, 1, 8, 8, 8)).classes == 4


def test_operations_do_not_tell_the_size_they_are_done_with() -> None:
    network = UNet(3, 1, 3, (8, 16, 32), (2, 2)).eval()
    assert dry_cost(network, (1, 1, 16, 16, 16)).operations == dry_cost(network, (1, 1, 32, 64, 32)).operations
    assert dry_cost(nn.LeakyReLU(0.1), SHAPE).operations != dry_cost(nn.LeakyReLU(0.2), SHAPE).operations


def test_operations_tell_what_is_computed() -> None:
    def operations(change: Callable[[torch.Tensor, int], torch.Tensor], length: int) -> str:
        network = Function(lambda image: change(image, int(image.shape[2])))
        return dry_cost(network, (1, 1, length, 16, 16)).operations

    weights = torch.ones(1, 1, 3, 3, 3, device="meta")
    for change in (
        lambda image, n: F.conv3d(image, weights, padding=n // 8, dilation=n // 8),
        lambda image, n: image * torch.tensor(float(n)),
        lambda image, n: F.pad(image, [0, 0, 0, 0, n % 5, 0])[..., n % 5 :, :, :],
        lambda image, n: torch.roll(image, [n], [2]),
        lambda image, n: torch.add(image, image, alpha=n),
        lambda image, n: F.pad(image, [1] * 6, "replicate" if n == 16 else "reflect")[..., 1:-1, 1:-1, 1:-1],
        lambda image, n: image.to(torch.int32 if n == 16 else torch.int64).float(),
        lambda image, n: image + F.adaptive_avg_pool3d(image, n // 16).mean(),
    ):
        assert operations(change, 16) != operations(change, 32)
