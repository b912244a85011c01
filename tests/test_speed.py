"""What is foretold of a segmentation's time, and what is measured of it."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle
from torch import nn

from napari_seg.bundle import read_bundle
from napari_seg.geometry import Grid
from napari_seg.inference import segment, speed
from napari_seg.inference.backends import TorchBackend
from napari_seg.inference.budget import make_plan
from napari_seg.inference.dry_run import network_cost
from napari_seg.inference.model import load_model
from napari_seg.inference.speed import describe_seconds, expected_seconds, measuring
from napari_seg.inference.task import Means, RegionTask
from napari_seg.inference.windows import Windows, WindowSettings
from napari_seg.volume import Volume


class Slow(nn.Module):
    """A convolution that takes a microsecond a voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not image.is_meta:
            time.sleep(1e-6 * image.numel())
        return self.convolution(image)


@pytest.mark.parametrize("tried", [True, False])
@torch.inference_mode()
def test_a_trial_tells_how_long_the_windows_take(tried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "WORTH_TRYING_FLOP", 0 if tried else np.inf)
    windows = Windows.over((64, 32, 32), WindowSettings((32, 32, 32), (0.0, 0.0, 0.0)))
    network = Slow().eval()
    plan = make_plan(windows, 1, network_cost(network, torch.zeros(1, 1, 32, 32, 32)), 2**30, 0)
    seconds = expected_seconds(plan, TorchBackend(network, torch.device("cpu")), network, 1, 64 * 32 * 32, False)
    if tried:
        assert seconds > 0.06  # 65,536 voxels at a microsecond
    else:
        assert seconds < 0.02


@torch.inference_mode()
def test_halves_of_large_windows_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "WORTH_TRYING_FLOP", 0)
    monkeypatch.setattr(speed, "LARGE_FLOP", 0)
    windows = Windows.over((64, 64, 64), WindowSettings((64, 64, 64), (0.0, 0.0, 0.0)))
    network, asked = Slow().eval(), []

    class Noting(TorchBackend):
        def __call__(self, windows: torch.Tensor) -> torch.Tensor:
            asked.append(tuple(windows.shape[2:]))
            return super().__call__(windows)

    plan = make_plan(windows, 1, network_cost(network, torch.zeros(1, 1, 64, 64, 64)), 2**30, 0)
    seconds = expected_seconds(plan, Noting(network, torch.device("cpu")), network, 1, 64**3, False)
    assert set(asked) == {(32, 32, 32)}
    assert seconds > speed.HALVES_ARE_QUICKER * 0.26  # 262,144 voxels at a microsecond
    monkeypatch.setattr(speed, "WORTH_TRYING_FLOP", np.inf)
    monkeypatch.setattr(speed, "seconds_a_flop", lambda device, dtype: 1e-6)
    seconds = expected_seconds(plan, TorchBackend(network, torch.device("cpu")), network, 1, 64**3, False)
    assert seconds > 1e-6 * plan.flop / speed.USUAL_SHARE


@torch.inference_mode()
def test_a_region_of_a_large_scan_takes_no_longer_than_alone(tmp_path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold", roi=(16, 16, 16)), trust=True)
    model = load_model(bundle, "cpu")
    settings = WindowSettings.of(model.inferer)
    assert settings is not None
    region, image = Grid((16, 16, 16), np.diag([1.5, 1.5, 1.5, 1])), torch.zeros(1, 16, 16, 16)

    def seconds(scan: Grid) -> float:
        task = RegionTask.of(image, region, scan, bundle, model, settings, Means(10**12, "torch"), 0)
        return task.seconds(task.plan(), TorchBackend(model.network, model.device))

    alone = Grid.around(region.center_mm, region.size_mm, (0.5, 0.5, 0.5))
    assert seconds(alone.box((-300, -300, -300), (348, 348, 348))) == pytest.approx(seconds(alone))
    assert seconds(alone.box((0, 0, 0), (8, 8, 8))) < seconds(alone)


def test_times_are_told_in_words() -> None:
    assert [describe_seconds(s) for s in (0.04, 9.94, 12.3, 60, 200.4, 3600, 7530)] == [
        "0.0 s",
        "9.9 s",
        "12 s",
        "1 min",
        "3 min 20 s",
        "1 h",
        "2 h 5 min",
    ]


def test_what_was_held_at_most_is_measured() -> None:
    with measuring() as measured:
        held = np.ones(200_000_000, np.uint8)
        measured.look()
        del held
    with measuring() as again:
        pass
    assert measured.seconds > 0
    assert measured.peak_bytes - again.peak_bytes > 150e6


def test_the_plan_and_what_it_took_are_logged(head: Volume, tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold", roi=(10, 12, 8)), trust=True)
    with caplog.at_level(logging.INFO, "napari_seg.inference.engine"):
        segment(head, bundle, windows="bundle")
    before, after = (record.getMessage() for record in caplog.records if record.name.endswith("engine"))
    assert before.startswith("scan: 18 windows of 10 x 12 x 8, about ")
    assert before.endswith("with torch on cpu")
    assert after.startswith("scan: took ")
