"""Estimates for bundles of several models: what all of them cost, and the memory of the largest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nnunet_models import configuration, write_model

from napari_seg.geometry import Grid
from napari_seg.inference.estimate import Estimate, estimate
from napari_seg.volume import Volume


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))


@pytest.fixture
def scan() -> Volume:
    array = np.random.default_rng(0).normal(size=(1, 24, 22, 20)).astype(np.float32)
    return Volume(array, Grid((24, 22, 20), np.eye(4)), "scan", "")


def cost(scan: Volume, name: str) -> Estimate:
    found = estimate(scan, name, device="cpu", backend="torch", memory_bytes=2**33)
    assert found is not None
    return found


def test_an_ensemble_costs_what_its_models_cost(tmp_path: Path, scan: Volume) -> None:
    first = write_model(tmp_path, "3d_fullres", configuration((16, 16, 16), (1, 1, 1)))
    write_model(tmp_path, "3d_lowres", configuration((16, 16, 16), (2, 2, 2)))
    one, other, both = (
        cost(scan, f"{first.parent}:{name}") for name in ("3d_fullres", "3d_lowres", "3d_fullres+3d_lowres")
    )
    assert both.windows == one.windows + other.windows
    assert both.seconds > max(one.seconds, other.seconds)
    assert both.peak_bytes >= 4 * 3 * 24 * 22 * 20


def test_a_cascade_costs_both_stages(tmp_path: Path, scan: Volume) -> None:
    entry = configuration((16, 16, 16), (1, 1, 1), previous_stage="3d_lowres")
    low = configuration((16, 16, 16), (2, 2, 2))
    root = write_model(tmp_path, "3d_cascade_fullres", entry, other_configurations={"3d_lowres": low})
    write_model(tmp_path, "3d_lowres", low)
    plain = write_model(tmp_path / "plain", "3d_fullres", configuration((16, 16, 16), (1, 1, 1)))
    stages = cost(scan, str(root)).windows
    assert stages == cost(scan, str(plain)).windows + cost(scan, f"{root.parent}:3d_lowres").windows
