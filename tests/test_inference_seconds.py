"""Seconds: estimates before a run, and measurements of it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle
from monai.inferers import SimpleInferer
from monai.transforms import Compose
from torch import nn

from napari_seg import localise
from napari_seg.bundles.load import load_model
from napari_seg.bundles.model import Model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.windows import WindowSettings
from napari_seg.geometry import Grid
from napari_seg.inference import engine
from napari_seg.inference import estimate as estimating
from napari_seg.inference import seconds as speed
from napari_seg.inference.backends import choose
from napari_seg.inference.backends.torch import TorchBackend
from napari_seg.inference.estimate import estimate
from napari_seg.inference.inferer import window_settings
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.plan import Plan
from napari_seg.inference.region import RegionTask
from napari_seg.inference.seconds import Measured, measuring
from napari_seg.inference.segment import segment
from napari_seg.inference.settings import RegionSettings
from napari_seg.volume import Volume

CPU = torch.device("cpu")


class Slow(nn.Module):
    """A convolution that takes a microsecond a voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not image.is_meta:
            time.sleep(1e-6 * image.numel())
        return self.convolution(image)


def slow_task(tmp_path: Path, shape: tuple[int, int, int] = (64, 32, 32)) -> RegionTask:
    """Two windows for a network that takes longer than its operations tell."""
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold", roi=(32, 32, 32)), trust=True)
    model = Model(Slow().eval(), Compose([]), SimpleInferer(), CPU)
    windows = WindowSettings((32, 32, 32), (0.0, 0.0, 0.0))
    settings = RegionSettings(bundle, model, SegmentOptions(backend="torch"), windows, 10**12)
    grid = Grid(shape, np.eye(4))
    return RegionTask.crop(torch.zeros(1, *shape), grid, grid, settings, windows, 0)


@torch.inference_mode()
def test_a_network_is_judged_by_its_operations_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "seconds_per_flop", lambda device, dtype: 1e-6)
    monkeypatch.setattr(speed, "seconds_per_value", lambda device: 1e-9)
    task = slow_task(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("the network ran"))
    plan = task.plan()
    seconds = task.seconds(plan)
    assert seconds == pytest.approx(2 * plan.cost.flop * 1e-6, rel=0.1)
    task.settings.model.statistics.batch_seconds[("torch", task.batch_shape(plan))] = 100.0  # as a run has noted
    assert task.seconds(plan) == pytest.approx(200, abs=1)


def test_the_next_estimate_uses_the_time_of_the_last_run(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold", roi=(10, 12, 8)), trust=True)
    segment(head, bundle, device="cpu", backend="torch")
    known = load_model(bundle, "cpu").statistics.batch_seconds
    assert [name for name, _ in known] == ["torch"]
    for key in known:
        known[key] = 50.0
    found = estimate(head, bundle, device="cpu", backend="torch")
    assert found is not None
    assert found.seconds == pytest.approx(50 * found.windows, rel=0.1)


@pytest.mark.parametrize(("device", "is_kept"), [("cpu", True), ("meta", False)])
def test_a_batch_on_another_device_than_the_models_is_not_timed(device: str, is_kept: bool, tmp_path: Path) -> None:
    task = slow_task(tmp_path)
    plan, model = task.plan(), task.settings.model
    shape = task.batch_shape(plan)
    backend = TorchBackend(lambda windows: windows, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    run = engine._timed(backend, replace(model, device=torch.device(device)), plan, shape, Measured())
    run(torch.zeros(1, 1, 4, 4, 4))
    assert (("torch", shape) in model.statistics.batch_seconds) == is_kept


def test_the_estimate_includes_locating_and_compiling(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold", roi=(10, 12, 8)), trust=True)
    segment(head, bundle, device="cpu", backend="torch")

    def estimated() -> float:
        known = estimate(head, bundle, device="cpu")
        assert known is not None
        return known.seconds

    def compiling(task: RegionTask, plan: Plan) -> float:
        return 0.0 if real(task, plan) == 0 else 300.0

    plain = estimated()
    real = RegionTask.compiling_seconds
    monkeypatch.setattr(estimating, "locating_seconds", lambda volume, bundle: 80.0)
    assert estimated() == pytest.approx(80 + plain, abs=1)
    monkeypatch.setattr(choose, "will_compile", lambda wanted, device, flop: True)
    monkeypatch.setattr(RegionTask, "compiling_seconds", compiling)
    assert estimated() == pytest.approx(380 + plain, abs=1)
    known = load_model(bundle, "cpu").statistics.batch_seconds
    known |= {("OpenVINO", shape): 0.0 for _, shape in known}  # it was compiled a scan ago
    assert estimated() == pytest.approx(80 + plain, abs=1)


def test_the_time_of_locating_is_about_what_it_takes(head: Volume) -> None:
    shipped = read_bundle()
    assert localise.locating_seconds(head, shipped) == 0  # a crop
    scan = localise.read_template("mni152_t1", shipped.root)
    expected = localise.locating_seconds(scan, shipped)
    start = time.perf_counter()
    localise.localise(scan, shipped)
    taken = time.perf_counter() - start
    assert taken / 3 < expected < 3 * taken  # a busy machine changes its speed meanwhile


@torch.inference_mode()
def test_a_region_of_a_large_scan_takes_no_longer_than_alone(tmp_path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold", roi=(16, 16, 16)), trust=True)
    model = load_model(bundle, "cpu")
    windows = window_settings(model.inferer)
    assert windows is not None
    settings = RegionSettings(bundle, model, SegmentOptions(backend="torch"), windows, 10**12)
    region, image = Grid((16, 16, 16), np.diag([1.5, 1.5, 1.5, 1])), torch.zeros(1, 16, 16, 16)

    def seconds(scan: Grid) -> float:
        task = RegionTask.crop(image, region, scan, settings, windows, 0)
        return task.seconds(task.plan())

    alone = Grid.around(region.center_mm, region.size_mm, (0.5, 0.5, 0.5))
    assert seconds(alone.box((-300, -300, -300), (348, 348, 348))) == pytest.approx(seconds(alone))
    assert seconds(alone.box((0, 0, 0), (8, 8, 8))) < seconds(alone)


def test_the_peak_memory_is_measured() -> None:
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
    assert " s in all), with torch on cpu" in before
    assert after.startswith("scan: took ")
