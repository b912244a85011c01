"""A compiled network gives torch's logits, new or from the cache."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundles import write_threshold_bundle
from monai.inferers import SimpleInferer
from monai.networks.nets import DynUNet, UNet
from monai.transforms import Compose
from torch import nn

from napari_seg.bundles.model import Model
from napari_seg.bundles.nnunet.load import SliceNetwork
from napari_seg.bundles.precision import has_bfloat16
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import EnvironmentFault
from napari_seg.inference.backends import openvino as compiled
from napari_seg.inference.backends.cache_folder import CACHE_VARIABLE
from napari_seg.inference.backends.choose import make_backend
from napari_seg.inference.backends.network_cache import read_network
from napari_seg.inference.backends.openvino import OpenVINOBackend, compile_network
from napari_seg.inference.backends.torch import TorchBackend
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
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    compiled.cached_compile.cache_clear()
    return tmp_path / "cache"


def networks_in(cache: Path) -> list[Path]:
    """Return the folders of networks in a cache."""
    return sorted((cache / "networks").iterdir())


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
    for _ in range(2):  # compiled, then from the cache
        backend = OpenVINOBackend(compile_network(network, SHAPE, own_cache), SHAPE)
        torch.testing.assert_close(backend(windows), expected, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(backend(windows[:1]), expected[:1], rtol=1e-3, atol=2e-3)
    assert len(networks_in(own_cache)) == 1


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
    backend.batch_seconds = [1.0, 3.0]
    backend.close()
    now = compile_network(network, SHAPE, own_cache)
    assert now.batch_cost == network_then.batch_cost == pytest.approx((2.0, tried.memory))
    torch.testing.assert_close(
        OpenVINOBackend(now, SHAPE)(torch.ones(SHAPE)), network(torch.ones(SHAPE)), rtol=1e-3, atol=2e-3
    )


@needs_openvino
def test_other_weights_or_code_are_verified_again(network: nn.Module, own_cache: Path) -> None:
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
    scaled.factor = 2.0
    again = OpenVINOBackend(compile_network(scaled, SHAPE, own_cache), SHAPE)
    assert len(networks_in(own_cache)) == 3
    windows = torch.randn(SHAPE)
    torch.testing.assert_close(again(windows), scaled(windows).detach(), rtol=1e-3, atol=2e-3)


@needs_openvino
@torch.inference_mode()
def test_a_verified_network_serves_windows_of_other_sizes(
    network: nn.Module, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_network(network, (1, 1, 48, 40, 24), own_cache)
    monkeypatch.setattr(compiled, "_trace", None)  # nothing is traced any more
    for size in ((64, 32, 32), (24, 40, 8)):
        shape = (1, 1, *size)
        found, windows = compile_network(network, shape, own_cache), torch.randn(shape)
        torch.testing.assert_close(OpenVINOBackend(found, shape)(windows), network(windows), rtol=1e-3, atol=2e-3)
        voxels = windows.numel() / (48 * 40 * 24)
        assert found.batch_cost == pytest.approx([voxels * cost for cost in first.batch_cost], rel=1e-6)
    assert len(networks_in(own_cache)) == 1


@needs_openvino
def test_a_damaged_network_is_verified_again(network: nn.Module, own_cache: Path) -> None:
    compile_network(network, SHAPE, own_cache)
    (folder,) = networks_in(own_cache)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(whole) == ["figures.json", "network.bin", "network.xml"]
    windows = torch.randn(SHAPE)
    expected = network(windows).detach()
    for name, content in whole.items():
        for damaged in (b"", b"[1]", content[: len(content) // 2]):
            (folder / name).unlink()  # it may be mapped
            (folder / name).write_bytes(damaged)
            found = OpenVINOBackend(compile_network(network, SHAPE, own_cache), SHAPE)(windows)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
            assert len((folder / name).read_bytes()) > len(damaged)  # so the next damage is one of a whole file


@needs_openvino
def test_a_cache_with_a_damaged_byte_is_not_used(network: nn.Module, own_cache: Path) -> None:
    compiled = compile_network(network, SHAPE, own_cache)
    (folder,) = networks_in(own_cache)
    compiled.record_batch_seconds(2.0)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    known = read_network(folder, SHAPE, torch.float32)
    assert known is not None
    assert known.figures == compiled.figures
    del compiled, known  # Windows can't remove a mapped file
    for name in ("network.bin", "network.xml"):
        content = whole[name]
        for place in (3, len(content) // 2, len(content) - 1):
            folder.mkdir(exist_ok=True)
            for file, right in whole.items():
                (folder / file).write_bytes(right)
            (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
            assert read_network(folder, SHAPE, torch.float32) is None
            assert not folder.exists()


@needs_openvino
def test_a_network_that_cannot_take_a_size_stays_in_the_cache(network: nn.Module, own_cache: Path) -> None:
    compile_network(network, SHAPE, own_cache)
    (folder,) = networks_in(own_cache)
    assert read_network(folder, (2, 1, 17, 24, 16), torch.float32) is None  # the skip connections would not fit
    assert read_network(folder, SHAPE, torch.float32) is not None


@needs_openvino
def test_a_half_removed_network_is_written_again(network: nn.Module, own_cache: Path) -> None:
    compile_network(network, SHAPE, own_cache)
    (folder,) = networks_in(own_cache)
    (folder / "network.xml").unlink()
    compile_network(network, SHAPE, own_cache)
    assert (folder / "network.xml").is_file()


@needs_openvino
def test_a_cache_that_cannot_be_marked_as_used_is_used(
    network: nn.Module, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError

    compile_network(network, SHAPE, own_cache)
    monkeypatch.setattr("os.utime", read_only)
    (folder,) = networks_in(own_cache)
    assert read_network(folder, SHAPE, torch.float32) is not None


@needs_openvino
def test_a_cache_that_cant_be_written_is_left_alone(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compile_network(network, SHAPE, tmp_path / "file")


@needs_openvino
def test_a_branch_that_tracing_would_lose_is_noticed() -> None:
    class Branching(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * 2 if image.max() > 0 else image * 3

    with pytest.raises(RuntimeError, match="logits differ from torch's"):
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
@pytest.mark.parametrize("branch", [True, False])
def test_a_network_that_depends_on_the_size_is_kept_for_each_size(branch: bool, own_cache: Path) -> None:
    network = Sized(branch).eval()
    for length in (128, 64, 128):
        shape = (1, 1, length, 32, 32)
        windows = torch.randn(shape)
        found = OpenVINOBackend(compile_network(network, shape, own_cache), shape)(windows)
        torch.testing.assert_close(found, network(windows))
    assert len(networks_in(own_cache)) == 2


class HiddenSize(nn.Module):
    """Multiplies by the length of an axis, which a dry run can't see: a value of a tensor that is made elsewhere."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        factor = torch.full((32,), float(image.shape[self.axis]), device="cpu").to(image.device)
        return image * factor.mean()


@needs_openvino
@pytest.mark.parametrize("axis", [2, 3])
def test_a_number_that_the_operations_do_not_show_is_found_by_comparing(axis: int, own_cache: Path) -> None:
    network = HiddenSize(axis).eval()
    for shape in ((1, 1, 128, 128, 32), (1, 1, 64, 64, 32), (1, 1, 128, 128, 32)):
        windows = torch.randn(shape)
        found = OpenVINOBackend(compile_network(network, shape, own_cache), shape)(windows)
        torch.testing.assert_close(found, network(windows))
    assert len(networks_in(own_cache)) == 2


@needs_openvino
def test_a_network_of_slices_is_verified_once(own_cache: Path) -> None:
    torch.manual_seed(0)
    network = SliceNetwork(UNet(2, 1, 3, (8, 16), (2,), num_res_units=1)).eval()
    for shape in ((1, 1, 1, 64, 48), (1, 1, 1, 32, 96)):
        windows = torch.randn(shape)
        found = OpenVINOBackend(compile_network(network, shape, own_cache), shape)(windows)
        torch.testing.assert_close(found, network(windows).detach(), rtol=1e-3, atol=2e-3)
    assert len(networks_in(own_cache)) == 1


@needs_openvino
def test_a_network_that_keeps_its_last_output_is_verified_once(own_cache: Path) -> None:
    torch.manual_seed(0)
    network = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 4, 4], deep_supervision=True).eval()
    for shape in ((1, 1, 48, 40, 24), (1, 1, 64, 32, 32)):
        windows = torch.randn(shape)
        found = OpenVINOBackend(compile_network(network, shape, own_cache), shape)(windows)
        with torch.no_grad():
            expected = network(windows)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert len(networks_in(own_cache)) == 1


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
def test_a_network_that_takes_whole_windows_only_is_compiled() -> None:
    torch.manual_seed(0)
    deep, shape = UNet(3, 1, 2, (2, 2, 2, 2, 2, 2), (2,) * 5, norm="instance").eval(), (1, 1, 64, 64, 64)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        deep(torch.zeros(1, 1, 32, 32, 32))
    windows = torch.randn(shape)
    found = OpenVINOBackend(compile_network(deep, shape), shape)(windows)
    torch.testing.assert_close(found, deep(windows).detach(), rtol=1e-3, atol=2e-3)


@needs_openvino
@torch.inference_mode()
def test_logits_stay_while_the_memory_of_a_network_is_given_back(network: nn.Module) -> None:
    backend, windows = OpenVINOBackend(compile_network(network, SHAPE), SHAPE), torch.randn(SHAPE)
    for _ in range(2):
        logits = backend(windows)
        backend.release_memory()
        torch.testing.assert_close(logits, network(windows), rtol=1e-3, atol=2e-3)


SIGNALLED = """
import signal, torch
from napari_seg.inference.backends.openvino import compile_network

network = torch.nn.Conv3d(1, 2, 3, padding=1).eval()
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
@pytest.mark.skipif(not has_bfloat16(CPU), reason="this processor has no bfloat16")
@torch.inference_mode()
def test_openvino_in_bfloat16_is_near_float32_and_kept_apart(
    network: nn.Module, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = torch.randn(SHAPE)
    exact = TorchBackend(network, CPU)(windows)
    model = Model(network, Compose([]), SimpleInferer(), CPU, torch.bfloat16)
    for _ in range(2):  # compiled, then from the cache
        backend = make_backend("openvino", model, SHAPE, 1e9)
        assert backend.name == "OpenVINO on cpu in bfloat16"
        assert 0 < float((backend(windows) - exact).abs().max()) < 0.02 * float(exact.abs().max())
        compiled.cached_compile.cache_clear()
    torch.testing.assert_close(
        make_backend("openvino", model_of(network), SHAPE, 1e9)(windows), exact, rtol=1e-3, atol=2e-3
    )
    assert len(networks_in(own_cache)) == 2
    monkeypatch.setitem(compiled.COMPILED_TOLERANCE, torch.bfloat16, 0.0)
    compiled.cached_compile.cache_clear()
    with pytest.raises(EnvironmentFault, match=r"environment\.precision: the precision of bfloat16 is too low"):
        make_backend("auto", model, (1, *SHAPE[1:]), 1e15)


@needs_openvino
def test_a_scan_is_segmented_alike(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(10, 12, 8)), trust=True)
    with_torch = segment(head, bundle, backend="torch")
    with_openvino = segment(head, bundle, backend="openvino")
    assert (with_openvino.array == with_torch.array).all()
    assert with_openvino.confidence == pytest.approx(dict(with_torch.confidence), rel=1e-4)
