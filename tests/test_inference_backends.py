"""Every backend gives torch's logits, and says clearly why it can't."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import write_threshold_bundle
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from monai.transforms import Compose
from torch import nn

from napari_seg.bundles import precision as precisions
from napari_seg.bundles.load import load_model
from napari_seg.bundles.model import Model
from napari_seg.bundles.precision import Precision, compute_dtype, has_bfloat16
from napari_seg.bundles.spec import read_bundle
from napari_seg.errors import EnvironmentFault
from napari_seg.inference.backends import base as backends
from napari_seg.inference.backends import openvino as compiled
from napari_seg.inference.backends.base import TorchBackend, make_backend
from napari_seg.inference.backends.openvino import OpenVINOBackend, compile_network
from napari_seg.inference.estimate import estimate
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume

SHAPE = (2, 1, 16, 24, 16)
CPU = torch.device("cpu")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=1).eval()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(compiled.CACHE_VARIABLE, str(tmp_path / "cache"))
    compiled.compiled_once.cache_clear()
    return tmp_path / "cache"


def model_of(network: nn.Module) -> Model:
    return Model(network, Compose([]), SimpleInferer(), CPU)


def openvino_is_there() -> bool:
    return importlib.util.find_spec("openvino") is not None


needs_openvino = pytest.mark.skipif(not openvino_is_there(), reason='needs the extra "openvino"')


@needs_openvino
@torch.inference_mode()
def test_openvino_gives_torchs_logits(network: nn.Module, own_cache: Path) -> None:
    windows = torch.randn(SHAPE)
    expected = TorchBackend(network, CPU)(windows)
    for _ in range(2):  # compiled anew, then from the cache
        backend = OpenVINOBackend(compile_network(network, SHAPE, own_cache), SHAPE)
        torch.testing.assert_close(backend(windows), expected, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(backend(windows[:1]), expected[:1], rtol=1e-3, atol=2e-3)
    assert len(list(own_cache.iterdir())) == 1


@needs_openvino
@torch.inference_mode()
def test_what_a_run_took_is_expected_of_the_next(network: nn.Module, own_cache: Path) -> None:
    network_then = compile_network(network, SHAPE, own_cache)
    backend = OpenVINOBackend(network_then, SHAPE)
    backend.close()  # a run that was stopped before its first window tells nothing
    tried = compile_network(network, SHAPE, own_cache).batch_cost
    assert tried == network_then.batch_cost
    backend = OpenVINOBackend(network_then, SHAPE)
    backend(torch.randn(SHAPE))
    backend.taken = [1.0, 3.0]
    backend.close()
    now = compile_network(network, SHAPE, own_cache)
    assert now.batch_cost == network_then.batch_cost == (2.0, tried.memory)
    torch.testing.assert_close(
        OpenVINOBackend(now, SHAPE)(torch.ones(SHAPE)), network(torch.ones(SHAPE)), rtol=1e-3, atol=2e-3
    )


@needs_openvino
def test_other_weights_code_or_shape_are_compiled_anew(network: nn.Module, own_cache: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.factor = network, 1.0

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image) * self.factor

    scaled = Scaled().eval()
    compile_network(scaled, SHAPE, own_cache)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    compile_network(scaled, SHAPE, own_cache)
    compile_network(scaled, (1, *SHAPE[1:]), own_cache)
    scaled.factor = 2.0
    again = OpenVINOBackend(compile_network(scaled, SHAPE, own_cache), SHAPE)
    assert len(list(own_cache.glob("*.blob"))) == 4
    windows = torch.randn(SHAPE)
    torch.testing.assert_close(again(windows), scaled(windows).detach(), rtol=1e-3, atol=2e-3)


@needs_openvino
@pytest.mark.parametrize("content", [b"", b"noise" * 100, None])
def test_a_damaged_cache_is_made_anew(network: nn.Module, own_cache: Path, content: bytes | None) -> None:
    compile_network(network, SHAPE, own_cache)
    (blob,) = own_cache.iterdir()
    whole = blob.read_bytes()
    blob.write_bytes(whole[: len(whole) // 2] if content is None else content)
    windows = torch.randn(SHAPE)
    found = OpenVINOBackend(compile_network(network, SHAPE, own_cache), SHAPE)(windows)
    torch.testing.assert_close(found, network(windows).detach(), rtol=1e-3, atol=2e-3)


@needs_openvino
def test_a_cache_that_cant_be_written_is_left_alone(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compile_network(network, SHAPE, tmp_path / "file")


@needs_openvino
def test_a_branch_that_tracing_would_lose_is_noticed() -> None:
    class Branching(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * 2 if image.max() > 0 else image * 3

    with pytest.raises(RuntimeError, match="does not answer what torch answers"):
        compile_network(Branching().eval(), SHAPE)


class Sized(nn.Module):
    """Does otherwise with windows of another size: by a branch, or by a number that it works out itself."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        size = int(image.shape[2])
        return image * ((2 if size > 100 else 3) if self.branch else size)


@needs_openvino
@pytest.mark.parametrize("branch", [True, False])
def test_what_follows_from_the_size_of_whole_windows_is_kept(branch: bool) -> None:
    network, shape = Sized(branch).eval(), (1, 1, 128, 32, 32)
    windows = torch.randn(shape)
    torch.testing.assert_close(OpenVINOBackend(compile_network(network, shape), shape)(windows), network(windows))


@needs_openvino
def test_torch_is_not_asked_about_whole_windows_where_smaller_ones_tell(network: nn.Module) -> None:
    lengths: set[int] = set()
    network.register_forward_pre_hook(lambda _, given: lengths.add(0 if given[0].is_meta else int(given[0].shape[2])))
    compile_network(network, (1, 1, 128, 96, 32))
    assert lengths == {0, 32, 64}


@needs_openvino
def test_a_network_of_whose_small_windows_one_voxel_is_left_is_traced_on_larger_ones() -> None:
    torch.manual_seed(0)
    deep = UNet(
        3, 1, 2, (2, 2, 2, 2, 2, 2), (2,) * 5, norm="instance"
    ).eval()  # one of 32 voxels, which has no variance
    lengths: set[tuple[int, ...]] = set()

    def note(_: nn.Module, given: tuple[torch.Tensor]) -> None:
        if not given[0].is_meta:
            lengths.add(tuple(map(int, given[0].shape[2:])))

    deep.register_forward_pre_hook(note)
    compile_network(deep, (1, 1, 128, 128, 128))
    assert lengths == {(32, 32, 32), (64, 32, 32), (128, 64, 64)}


@needs_openvino
@torch.inference_mode()
def test_logits_stay_while_the_memory_of_a_network_is_given_back(network: nn.Module) -> None:
    backend, windows = OpenVINOBackend(compile_network(network, SHAPE), SHAPE), torch.randn(SHAPE)
    for _ in range(2):
        logits = backend(windows)
        backend.rest()
        torch.testing.assert_close(logits, network(windows), rtol=1e-3, atol=2e-3)


@needs_openvino
def test_what_is_quickest_is_taken(network: nn.Module) -> None:
    assert isinstance(make_backend("auto", model_of(network), SHAPE, flop=1e9), TorchBackend)
    assert isinstance(make_backend("torch", model_of(network), SHAPE, flop=1e15), TorchBackend)
    assert isinstance(make_backend("auto", model_of(network), SHAPE, flop=1e15), OpenVINOBackend)
    # the next scan takes what is compiled, and two at a time don't share what they are asked
    model = model_of(network)
    one, other = (make_backend("openvino", model, SHAPE, 1e9) for _ in range(2))
    assert compiled.compiled_once.cache_info().hits == 1
    first, second = torch.randn(SHAPE), torch.randn(SHAPE)
    answer = one(first)
    kept = answer.clone()
    other(second)
    torch.testing.assert_close(answer, kept)
    other.close()
    torch.testing.assert_close(one(first), kept)


class Skipping(nn.Module):
    """The least U-Net: its decoder joins two maps of 3 and 4 channels; `more` joins them once more for another use."""

    def __init__(self, more: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.LeakyReLU())
        self.down, self.up = nn.Conv3d(4, 8, 3, stride=2, padding=1), nn.ConvTranspose3d(8, 3, 2, stride=2)
        self.last, self.more = nn.Conv3d(7, 2, 3, padding=1), more

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skip = self.first(image)
        joined = torch.cat([self.up(self.down(skip)), skip], dim=1)
        logits = self.last(joined)
        return logits + joined.mean(dim=1, keepdim=True) if self.more else logits


@needs_openvino
@pytest.mark.parametrize("more", [False, True])
@torch.inference_mode()
def test_joined_maps_are_convolved_each_for_itself(more: bool) -> None:
    torch.manual_seed(0)
    network, windows = Skipping(more).eval(), torch.randn(SHAPE)
    operations = compiled._traced(network, SHAPE).get_ordered_ops()
    names = [o.get_type_name() for o in operations if len(o.get_output_partial_shape(0)) == len(SHAPE)]
    assert names.count("Convolution") == (3 if more else 4)
    assert ("Concat" in names) == more
    found = OpenVINOBackend(compile_network(network, SHAPE), SHAPE)(windows)
    torch.testing.assert_close(found, network(windows), rtol=1e-4, atol=1e-4)


SIGNALLED = """
import signal, torch
from napari_seg.inference.backends.openvino import compile_network

network = torch.nn.Conv3d(1, 2, 3).eval()
older = compile_network(network, (1, 1, 8, 8, 8))
younger = compile_network(network, (1, 1, 9, 9, 9))
del older, younger
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""


@needs_openvino
def test_a_signal_after_compiled_networks_ended_is_survived() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


@needs_openvino
def test_a_network_that_openvino_cant_read_runs_in_torch() -> None:
    class Strange(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(image.numpy().copy()) if image.sum() > 1 else torch.linalg.svd(image)[1]

    network = Strange().eval()
    assert isinstance(make_backend("auto", model_of(network), SHAPE, flop=1e15), TorchBackend)
    with pytest.raises(EnvironmentFault, match=r"environment\.backend: OpenVINO can't run .*--backend torch"):
        make_backend("openvino", model_of(network), SHAPE, flop=1e15)


class Small(nn.Module):
    """Stands for a GPU: has too little memory for more than some windows, and for any before it was copied."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.convolution, self.most, self.batches = nn.Conv3d(1, 2, 3, padding=1), most, []

    def __deepcopy__(self, memo: dict) -> nn.Module:
        return self.convolution

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return self.convolution(image)


@pytest.mark.parametrize(("most", "asked"), [(9, [6]), (2, [6, 3, 1, 1, 1, 1, 1, 1]), (0, [6, 3, 1])])
@torch.inference_mode()
def test_too_little_memory_steps_down_and_changes_no_logit(most: int, asked: list[int]) -> None:
    network, windows = Small(most), torch.randn(6, 1, 8, 8, 8)
    backend = TorchBackend(network, CPU, refuge=CPU)
    for _ in range(2):
        torch.testing.assert_close(backend(windows), network.convolution(windows))
    assert network.batches[: len(asked)] == asked
    assert [notice.code for notice in backend.notices] == ["environment.gpu_memory"] * {9: 0, 2: 2, 0: 3}[most]
    assert ("processor went on" in " ".join(map(str, backend.notices))) == (most == 0)
    with pytest.raises(torch.OutOfMemoryError):
        TorchBackend(Small(0), CPU)(windows)


def test_a_hand_over_is_a_notice_of_the_result(head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Starved(TorchBackend):
        def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
            super().__init__(network, device, dtype)
            self._notice("for one window; the processor went on in its place")

    monkeypatch.setattr(backends, "TorchBackend", Starved)
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(10, 12, 8)), trust=True)
    assert [n.code for n in segment(head, bundle, device="cpu", backend="torch").notices] == ["environment.gpu_memory"]


def test_a_hand_over_in_the_coarse_pass_is_a_notice_too(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TorchBackend] = []

    class StarvedFirst(TorchBackend):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if not made:
                self._notice("for one window; the processor went on in its place")
            made.append(self)

    monkeypatch.setattr(backends, "TorchBackend", StarvedFirst)
    root = write_threshold_bundle(tmp_path / "fine", own={"coarse": {"bundle": "coarse", "margin_mm": 10}})
    write_threshold_bundle(root / "coarse")
    result = segment(head, read_bundle(root, trust=True), device="cpu", backend="torch")
    assert len(made) > 1
    assert [notice.code for notice in result.notices] == ["environment.gpu_memory"]


@pytest.mark.parametrize("refuge", [None, CPU])
@torch.inference_mode()
def test_torch_in_bfloat16_is_near_float32_and_steps_down_to_it(refuge: torch.device | None) -> None:
    network, windows = Small(9 if refuge is None else 0), torch.randn(1, 1, 8, 8, 8)
    exact = network.convolution(windows)
    backend = TorchBackend(network, CPU, torch.bfloat16, refuge=refuge)  # any processor can imitate it
    off = float((backend(windows).float() - exact).abs().max())
    if refuge is None:
        assert 0 < off < 0.02 * float(exact.abs().max())
        assert backend.name == "torch on cpu in bfloat16"
    else:
        assert off < 1e-6
        assert backend.name == "torch on cpu"


@needs_openvino
@pytest.mark.skipif(not has_bfloat16(CPU), reason="this processor has no bfloat16")
@torch.inference_mode()
def test_openvino_in_bfloat16_is_near_float32_and_kept_apart(
    network: nn.Module, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = torch.randn(SHAPE)
    exact = TorchBackend(network, CPU)(windows)
    model = Model(network, Compose([]), SimpleInferer(), CPU, torch.bfloat16)
    for _ in range(2):  # compiled anew, then from the cache
        backend = make_backend("openvino", model, SHAPE, 1e9)
        assert backend.name == "OpenVINO on cpu in bfloat16"
        assert 0 < float((backend(windows) - exact).abs().max()) < 0.02 * float(exact.abs().max())
        compiled.compiled_once.cache_clear()
    torch.testing.assert_close(
        make_backend("openvino", model_of(network), SHAPE, 1e9)(windows), exact, rtol=1e-3, atol=2e-3
    )
    assert len(list(own_cache.glob("*.blob"))) == 2
    monkeypatch.setitem(compiled.COMPILED_TOLERANCE, torch.bfloat16, 0.0)
    compiled.compiled_once.cache_clear()
    with pytest.raises(EnvironmentFault, match=r"environment\.precision: bfloat16 is too coarse"):
        make_backend("auto", model, (1, *SHAPE[1:]), 1e15)


def test_precision_is_refused_where_the_processor_has_none(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, bool] = {"avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small"), trust=True)
    with pytest.raises(EnvironmentFault, match="AVX-512 BF16 or AMX"):
        segment(head, bundle, device="cpu", precision="bfloat16", progress=lambda *_: pytest.fail("too late"))
    with pytest.raises(EnvironmentFault, match="choose precision auto"):
        estimate(head, bundle, device="cpu", precision="bfloat16")
    assert compute_dtype("auto", CPU) == compute_dtype("float32", CPU) == torch.float32
    assert compute_dtype("auto", torch.device("cuda")) == torch.float16
    assert compute_dtype("float32", torch.device("cuda")) == torch.float32
    told["amx_bf16"] = True
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16


def test_without_openvino_torch_runs(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert isinstance(make_backend("auto", model_of(network), SHAPE, flop=1e15), TorchBackend)
    with pytest.raises(EnvironmentFault, match=r"pip install \"napari-seg\[openvino\]\""):
        make_backend("openvino", model_of(network), SHAPE, flop=1e15)


@needs_openvino
def test_a_scan_is_segmented_alike(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(10, 12, 8)), trust=True)
    with_torch = segment(head, bundle, backend="torch")
    with_openvino = segment(head, bundle, backend="openvino")
    assert (with_openvino.array == with_torch.array).all()
    assert with_openvino.confidence == pytest.approx(dict(with_torch.confidence), rel=1e-4)


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_shipped_bundle_runs_on_every_backend(
    backend: backends.BackendName, precision: Precision, own_cache: Path, monkeypatch: pytest.MonkeyPatch
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


def test_the_cache_lies_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.CACHE_VARIABLE, "")
    assert compiled.cache_dir() is None
    monkeypatch.delenv(compiled.CACHE_VARIABLE)
    monkeypatch.setattr(compiled.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert compiled.cache_dir() == Path("/somewhere/napari-seg")
