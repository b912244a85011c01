"""Split skip connections: the same logits in less memory, in whatever release of OpenVINO is installed."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

openvino = pytest.importorskip("openvino")

from napari_seg.inference.backends import openvino as module  # noqa: E402
from napari_seg.inference.backends.openvino import OpenVINOBackend, compile_network  # noqa: E402

SHAPE = (2, 1, 16, 24, 16)


class Skipping(nn.Module):
    """The smallest U-Net: its decoder concatenates two maps of 3 and 4 channels; `more` uses that a second time."""

    def __init__(self, more: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4) if norm else nn.Identity(), nn.LeakyReLU()
        )
        self.down, self.up = nn.Conv3d(4, 8, 3, stride=2, padding=1), nn.ConvTranspose3d(8, 3, 2, stride=2)
        self.last, self.more = nn.Conv3d(7, 2, 3, padding=1), more

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skip = self.first(image)
        joined = torch.cat([self.up(self.down(skip)), skip], dim=1)
        logits = self.last(joined)
        return logits + joined.mean(dim=1, keepdim=True) if self.more else logits


@pytest.mark.parametrize("more", [False, True])
@torch.inference_mode()
def test_concatenated_maps_are_convolved_one_by_one(more: bool) -> None:
    torch.manual_seed(0)
    network, windows = Skipping(more).eval(), torch.randn(SHAPE)
    operations = module._trace(network, SHAPE).get_ordered_ops()
    names = [o.get_type_name() for o in operations if len(o.get_output_partial_shape(0)) == len(SHAPE)]
    assert names.count("Convolution") == (3 if more else 4)
    assert ("Concat" in names) == more
    found = OpenVINOBackend(compile_network(network, SHAPE), SHAPE)(windows)
    torch.testing.assert_close(found, network(windows), rtol=1e-4, atol=1e-4)


class Nested(nn.Module):
    """Concatenates the convolution of concatenated maps, as U-Net++ does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.middle, self.last = nn.Conv3d(5, 3, 3, padding=1, bias=False), nn.Conv3d(7, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skip = self.first(image)
        return self.last(torch.cat([skip, self.middle(torch.cat([image, skip], dim=1))], dim=1))


@torch.inference_mode()
def test_nested_skips_are_split() -> None:
    torch.manual_seed(0)
    network, windows = Nested().eval(), torch.randn(SHAPE)
    found = OpenVINOBackend(compile_network(network, SHAPE), SHAPE)(windows)
    torch.testing.assert_close(found, network(windows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [(0, 0, 0), (8, 12, 8)])
@torch.inference_mode()
def test_a_voxel_without_a_finite_value_spreads_no_further_than_in_torch(
    value: float, place: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    network, shape = Skipping(norm=False).eval(), (1, 1, 32, 32, 32)
    windows = torch.randn(shape)
    windows[(0, 0, *place)] = value
    expected = network(windows)
    found = OpenVINOBackend(compile_network(network, shape), shape)(windows)
    assert not found[..., : place[0] + 2, :, :].isfinite().all()
    far = (..., slice(place[0] + 10, None))
    assert expected[far].isfinite().all()
    torch.testing.assert_close(found[far], expected[far], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_installed_release_needs_less_memory_for_split_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    # if this fails with a new release of OpenVINO, its graphs or its order of operations have changed: see skips.py
    torch.manual_seed(0)
    shape, channels = (1, 1, 64, 64, 64), (16, 32, 64)
    network = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=channels, norm_name="instance").eval()
    counts, memory, split = [], [], module.split_skips
    for change in (lambda model: counts.append(split(model)), lambda model: None):
        monkeypatch.setattr(module, "split_skips", change)
        traced = module._trace(network, shape)
        compiled = module.compile_for(traced, shape, torch.float32)
        memory.append(module._timed_inference(compiled, torch.zeros(shape))[1].memory)
    assert counts == [2], f"openvino {openvino.__version__} expresses skip connections in another way"
    assert memory[0] < 0.8 * memory[1], f"openvino {openvino.__version__} gains nothing from split skips: {memory}"
