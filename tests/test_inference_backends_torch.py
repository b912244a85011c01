"""torch runs the network with the memory there is, and its logits stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import write_threshold_bundle
from torch import nn

from napari_seg.bundles.read import read_bundle
from napari_seg.inference.backends import choose
from napari_seg.inference.backends.torch import TorchBackend
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume

SHAPE = (2, 1, 16, 24, 16)
CPU = torch.device("cpu")


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


@pytest.mark.parametrize(("most", "batches"), [(9, [6]), (2, [6, 3, 1, 1, 1, 1, 1, 1]), (0, [6, 3, 1])])
@torch.inference_mode()
def test_too_little_memory_steps_down_and_changes_no_logit(most: int, batches: list[int]) -> None:
    network, windows = Small(most), torch.randn(6, 1, 8, 8, 8)
    backend = TorchBackend(network, CPU, fallback=CPU)
    for _ in range(2):
        torch.testing.assert_close(backend(windows), network.convolution(windows))
    assert network.batches[: len(batches)] == batches
    assert [notice.code for notice in backend.notices] == ["environment.gpu_memory"] * {9: 0, 2: 2, 0: 3}[most]
    assert ("moved to the processor" in " ".join(map(str, backend.notices))) == (most == 0)
    with pytest.raises(torch.OutOfMemoryError):
        TorchBackend(Small(0), CPU)(windows)


def test_a_hand_over_is_a_notice_of_the_result(head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Starved(TorchBackend):
        def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
            super().__init__(network, device, dtype)
            self._notice("for one window; the network moved to the processor")

    monkeypatch.setattr(choose, "TorchBackend", Starved)
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
                self._notice("for one window; the network moved to the processor")
            made.append(self)

    monkeypatch.setattr(choose, "TorchBackend", StarvedFirst)
    roi = (10, 12, 8)
    root = write_threshold_bundle(tmp_path / "fine", roi=roi, own={"coarse": {"bundle": "coarse", "margin_mm": 10}})
    write_threshold_bundle(root / "coarse", roi=roi)
    result = segment(head, read_bundle(root, trust=True), device="cpu", backend="torch")
    assert len(made) > 1
    assert [notice.code for notice in result.notices] == ["environment.gpu_memory"]


@pytest.mark.parametrize("fallback", [None, CPU])
@torch.inference_mode()
def test_torch_in_bfloat16_is_near_float32_and_steps_down_to_it(fallback: torch.device | None) -> None:
    network, windows = Small(9 if fallback is None else 0), torch.randn(1, 1, 8, 8, 8)
    exact = network.convolution(windows)
    backend = TorchBackend(network, CPU, torch.bfloat16, fallback=fallback)  # any processor can imitate it
    off = float((backend(windows).float() - exact).abs().max())
    if fallback is None:
        assert 0 < off < 0.02 * float(exact.abs().max())
        assert backend.name == "torch on cpu in bfloat16"
    else:
        assert off < 1e-6
        assert backend.name == "torch on cpu"
