"""What shapes alone tell of a network, and that it is enough to tell one from another."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import DiNTS, DynUNet, TopologyInstance, UNet
from torch import nn

from napari_seg.inference.dry_run import identity, network_cost, operations

SHAPE = (1, 1, 16, 16, 16)


def test_a_windows_cost_is_computed_by_hand() -> None:
    net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv3d(8, 5, 1, bias=False))
    cost = network_cost(net, torch.zeros(1, 1, 16, 16, 16))
    voxels = 16**3
    assert cost.classes == 5
    assert cost.flop == 2 * voxels * (27 * 8 + 8 * 5)
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


class Branches(nn.Module):
    """Two maps of one shape, of which one is joined; numbers of all kinds that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(1, 4, 3, padding=1)
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.joined = 0
        self.factor = 1.0
        self.listed = [1.0, 2.0, 3.0, 4.0]
        self.attribute = torch.ones(4, 1, 1, 1)
        self.stride = 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        both = self.one(image), self.other(image)
        joined = both[0] + both[self.joined] - self.mean[:, None, None, None]
        joined = joined * self.factor * torch.tensor(self.listed, device=image.device)[:, None, None, None]
        joined *= image.new_tensor(self.listed[::-1])[:, None, None, None]
        return nn.functional.avg_pool3d(joined, 3, self.stride, 1) + self.attribute.to(image.device)


def weight(network: Branches) -> None:
    network.one.weight.data[0, 0, 0, 0, 0] += 1e-6


def listed(network: Branches) -> None:
    network.listed[2] = 3.5


def factor(network: Branches) -> None:
    network.factor = 2.0


def joined(network: Branches) -> None:
    network.joined = 1


def hidden_buffer(network: Branches) -> None:
    network.mean[0] = 1


def attribute(network: Branches) -> None:
    network.attribute = torch.zeros(4, 1, 1, 1)


def size(network: Branches) -> None:
    network.stride = 2


def twice(network: Branches) -> None:
    network.other = network.one


@pytest.mark.parametrize("change", [weight, listed, factor, joined, hidden_buffer, attribute, size, twice])
def test_networks_that_answer_differently_are_told_apart(change: Callable[[Branches], None]) -> None:
    network = Branches().eval()
    other = copy.deepcopy(network)
    assert identity(other, SHAPE) == identity(network, SHAPE)
    change(other)
    assert identity(other, SHAPE) != identity(network, SHAPE)


def test_a_networks_identity_is_the_same_in_every_process() -> None:
    script = f"""
import torch
from napari_seg.inference.dry_run import identity
torch.manual_seed(0)
print(identity(torch.nn.Conv3d(1, 2, 1), {SHAPE}))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    torch.manual_seed(0)
    assert found.strip() == identity(nn.Conv3d(1, 2, 1), SHAPE)


def test_a_network_that_makes_tensors_of_numbers_is_told_too() -> None:
    cells = TopologyInstance(spatial_dims=3, device="cpu")
    network = DiNTS(cells, 1, 2).eval()
    assert identity(network, (1, 1, 64, 64, 64)) == identity(network, (1, 1, 64, 64, 64))


def test_what_shapes_dont_tell_is_not_guessed() -> None:
    class Looks(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * (2 if image.max() > 0 else 1)

    class Forgets(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * torch.as_tensor([2.0], device=image.device)

    for network in (Looks(), Forgets()):
        with pytest.raises(Exception, match=r"meta tensors|shapes don't tell"):
            identity(network, SHAPE)


def test_operations_do_not_tell_the_size_they_are_done_with() -> None:
    network = UNet(3, 1, 3, (8, 16, 32), (2, 2)).eval()
    assert operations(network, (1, 1, 16, 16, 16)) == operations(network, (1, 1, 32, 64, 32))
    assert operations(nn.LeakyReLU(0.1), SHAPE) != operations(nn.LeakyReLU(0.2), SHAPE)
