"""The fastest backend is chosen, and a request that can't be met is refused with its reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from monai.transforms import Compose
from torch import nn

from napari_seg.bundles import precision as precisions
from napari_seg.bundles.load import load_model
from napari_seg.bundles.model import Model
from napari_seg.bundles.precision import Precision, has_bfloat16
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import EnvironmentFault
from napari_seg.inference.backends import choose
from napari_seg.inference.backends import openvino as compiled
from napari_seg.inference.backends.cache_folder import CACHE_VARIABLE
from napari_seg.inference.backends.choose import make_backend
from napari_seg.inference.backends.openvino import OpenVINOBackend
from napari_seg.inference.backends.torch import TorchBackend
from napari_seg.inference.options import BackendName

SHAPE = (2, 1, 16, 24, 16)
CPU = torch.device("cpu")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=1).eval()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    compiled.cached_compile.cache_clear()
    return tmp_path / "cache"


def model_of(network: nn.Module) -> Model:
    return Model(network, Compose([]), SimpleInferer(), CPU)


def openvino_is_there() -> bool:
    return importlib.util.find_spec("openvino") is not None


needs_openvino = pytest.mark.skipif(not openvino_is_there(), reason='needs the extra "openvino"')


@needs_openvino
def test_what_is_quickest_is_taken(network: nn.Module) -> None:
    assert isinstance(make_backend("auto", model_of(network), SHAPE, flop=1e9), TorchBackend)
    assert isinstance(make_backend("torch", model_of(network), SHAPE, flop=1e15), TorchBackend)
    assert isinstance(make_backend("auto", model_of(network), SHAPE, flop=1e15), OpenVINOBackend)
    # the next scan takes what is compiled, and two backends at a time do not share input and output
    model = model_of(network)
    one, other = (make_backend("openvino", model, SHAPE, 1e9) for _ in range(2))
    assert compiled.cached_compile.cache_info().hits == 1
    first, second = torch.randn(SHAPE), torch.randn(SHAPE)
    answer = one(first)
    kept = answer.clone()
    other(second)
    torch.testing.assert_close(answer, kept)
    other.close()
    torch.testing.assert_close(one(first), kept)


@needs_openvino
def test_a_network_that_openvino_cant_read_runs_in_torch() -> None:
    class Strange(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(image.numpy().copy()) if image.sum() > 1 else torch.linalg.svd(image)[1]

    network = Strange().eval()
    assert isinstance(make_backend("auto", model_of(network), SHAPE, flop=1e15), TorchBackend)
    with pytest.raises(EnvironmentFault, match=r"environment\.backend: OpenVINO can't run .*--backend torch"):
        make_backend("openvino", model_of(network), SHAPE, flop=1e15)


def test_without_openvino_torch_runs(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    assert isinstance(make_backend("auto", model_of(network), SHAPE, flop=1e15), TorchBackend)
    with pytest.raises(EnvironmentFault, match=r"pip install \"napari-seg\[openvino\]\""):
        make_backend("openvino", model_of(network), SHAPE, flop=1e15)


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_shipped_bundle_runs_on_every_backend(
    backend: BackendName, precision: Precision, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # any processor can imitate bfloat16 in torch, which OpenVINO does not do
    if precision == "bfloat16" and not has_bfloat16(CPU):
        if backend == "openvino":
            pytest.skip("this processor has no bfloat16")
        monkeypatch.setattr(precisions, "has_bfloat16", lambda device: True)
    model = load_model(read_bundle(), "cpu", precision)
    exact = load_model(read_bundle(), "cpu").network
    windows = torch.randn(1, 1, 48, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = exact(windows)
        found = make_backend(backend, model, tuple(windows.shape), 1e9)(windows).float()
    tolerance = (1e-4 if precision == "float32" else 3e-2) * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
