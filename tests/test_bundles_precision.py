"""The number format follows from the request and the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundles import write_threshold_bundle

from napari_seg.bundles.precision import compute_dtype
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import EnvironmentFault
from napari_seg.inference.estimate import estimate
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume

CPU = torch.device("cpu")


def test_precision_is_refused_where_the_processor_has_none(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities: dict[str, bool] = {"avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small"), trust=True)
    with pytest.raises(EnvironmentFault, match="AVX-512 BF16 or AMX"):
        segment(head, bundle, device="cpu", precision="bfloat16", progress=lambda *_: pytest.fail("too late"))
    with pytest.raises(EnvironmentFault, match="choose precision auto"):
        estimate(head, bundle, device="cpu", precision="bfloat16")
    assert compute_dtype("auto", CPU) == compute_dtype("float32", CPU) == torch.float32
    assert compute_dtype("auto", torch.device("cuda")) == torch.float16
    assert compute_dtype("float32", torch.device("cuda")) == torch.float32
    capabilities["amx_bf16"] = True
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16
