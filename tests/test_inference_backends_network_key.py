"""A network's key changes with whatever changes what it computes, and is missing where that can't be seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from napari_seg.inference.backends.network_key import network_digest


def network(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv3d(1, 2, 3, **{"padding": 1, **changes})
    return nn.Sequential(convolution, nn.InstanceNorm3d(2, affine=True), nn.LeakyReLU(0.1)).eval()


def test_equal_networks_have_equal_digests() -> None:
    assert network_digest(network()) == network_digest(network())
    assert len(network_digest(network()) or "") == 64


def changed_weight(found: nn.Module) -> None:
    found[0].weight.data[0, 0, 0, 0, 0] += 1e-6


def changed_attribute(found: nn.Module) -> None:
    found[2].negative_slope = 0.2


def changed_mode(found: nn.Module) -> None:
    found.train()


def changed_type(found: nn.Module) -> None:
    found.half()


def changed_order(found: nn.Module) -> None:
    found[1], found[2] = found[2], found[1]


def changed_buffer(found: nn.Module) -> None:
    found.register_buffer("shift", torch.ones(1))


@pytest.mark.parametrize(
    "change", [changed_weight, changed_attribute, changed_mode, changed_type, changed_order, changed_buffer]
)
def test_every_change_changes_the_digest(change: Callable[[nn.Module], None]) -> None:
    found = network()
    change(found)
    assert network_digest(found) not in (None, network_digest(network()))


def test_shared_modules_differ_from_equal_ones() -> None:
    one, other = nn.Conv3d(1, 1, 1), nn.Conv3d(1, 1, 1)
    other.load_state_dict(one.state_dict())
    assert network_digest(nn.Sequential(one, one)) != network_digest(nn.Sequential(one, other))


class Own(nn.Module):
    """Code of no known package: what it computes follows from no version."""


def with_own_class(found: nn.Module) -> None:
    found.append(Own())


def with_own_forward(found: nn.Module) -> None:
    found.forward = lambda image: image


def with_a_hook(found: nn.Module) -> None:
    found[0].register_forward_hook(lambda module, inputs, output: output + 1)


def with_a_hidden_tensor(found: nn.Module) -> None:
    found[0].factors = [torch.ones(1)]


@pytest.mark.parametrize("change", [with_own_class, with_own_forward, with_a_hook, with_a_hidden_tensor])
def test_networks_that_only_a_trace_shows_have_no_digest(change: Callable[[nn.Module], None]) -> None:
    found = network()
    change(found)
    assert network_digest(found) is None
