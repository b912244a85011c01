"""Plans: the memory of a run is known before it, and a smaller budget changes no label."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle

from napari_seg import memory
from napari_seg.bundles.load import load_model
from napari_seg.bundles.model import Model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.windows import WindowSettings
from napari_seg.cli.predict import memory_size
from napari_seg.errors import EnvironmentFault
from napari_seg.geometry import Grid
from napari_seg.inference import plan as planning
from napari_seg.inference import region as regions
from napari_seg.inference.backends import choose
from napari_seg.inference.backends import cost as costs
from napari_seg.inference.backends.base import BatchCost
from napari_seg.inference.backends.cost import NetworkCost, network_cost
from napari_seg.inference.backends.torch import TorchBackend
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.plan import Plan, best_plan, cut_in_strips, make_plan
from napari_seg.inference.region import RegionTask
from napari_seg.inference.segment import segment
from napari_seg.inference.settings import RegionSettings
from napari_seg.inference.windows.layout import Windows
from napari_seg.volume import Segmentation, Volume

MIB = 2**20


def test_less_memory_gives_more_strips_then_half_precision_then_a_refusal() -> None:
    windows = Windows.over((273, 273, 320), WindowSettings((96, 96, 96), (0.25, 0.25, 0.25)))
    cost = NetworkCost(105, 10**9, 800 * MIB)

    def plan(gib: float):
        return make_plan(windows, 1, cost, int(gib * 2**30), used_bytes=600 * MIB)

    plenty, less, little = plan(8), plan(3.8), plan(2.9)
    assert len(plenty.strips) == 1
    assert len(plenty.starts) == windows.count
    assert plenty.dtype is less.dtype is torch.float32
    assert len(less.strips) > 1
    assert len(less.starts) > windows.count
    assert little.dtype is torch.float16
    assert little.peak_bytes < less.peak_bytes < plenty.peak_bytes
    with pytest.raises(EnvironmentFault, match=r"environment\.memory: 105 classes .* 2\.0 GiB may be used") as refused:
        plan(2)
    assert "--memory" in refused.value.message


def test_a_compiled_network_gives_back_its_memory_before_planes_are_cut() -> None:
    windows = Windows.over((273, 273, 320), WindowSettings((96, 96, 96), (0.25, 0.25, 0.25)))
    cost = NetworkCost(5, 10**9, 2000 * MIB)

    def plan(budget_bytes: int):
        return make_plan(windows, 1, cost, budget_bytes, used_bytes=600 * MIB, compiled_memory=0.5)

    usual = plan(10**12)
    assert not usual.releases_memory
    assert usual.peak_bytes == 600 * MIB + usual.permanent_bytes + 1000 * MIB + usual.temporary_bytes
    rests = plan(usual.peak_bytes - 1)
    assert rests.releases_memory
    assert len(rests.strips) == 1
    assert rests.peak_bytes == usual.peak_bytes - usual.temporary_bytes
    assert len(plan(rests.peak_bytes - 1).strips) > 1
    # what it does take is known later
    assert rests.with_memory(700 * MIB, 500 * MIB).peak_bytes == rests.permanent_bytes + 1200 * MIB
    assert rests.with_memory(0, 500 * MIB).peak_bytes == rests.permanent_bytes + 500 * MIB + rests.temporary_bytes


def test_smaller_windows_are_taken_where_they_are_quicker_than_strips() -> None:
    settings = WindowSettings((96, 96, 96), (0.25, 0.25, 0.25))
    large, small = (
        Windows.evenly((192, 192, 192), settings, size, (2, 2, 2)) for size in ((128, 128, 128), (120,) * 3)
    )

    def cost(windows: Windows, classes: int = 40) -> NetworkCost:
        return NetworkCost(classes, prod(windows.size), 100 * prod(windows.size))

    def plan(budget_bytes: int) -> Plan:
        return best_plan([large, small], 1, cost, budget_bytes, lambda flop: 0, lambda flop: None)

    usual = plan(10**12)
    assert usual.windows == large
    smaller = plan(usual.peak_bytes - 1)
    assert len(make_plan(large, 1, cost(large), usual.peak_bytes - 1, 0).strips) > 1
    assert (smaller.windows, len(smaller.strips)) == (small, 1)
    tight = plan(smaller.peak_bytes - 1)
    assert tight.dtype is torch.float32
    assert len(tight.strips) > 1
    with pytest.raises(EnvironmentFault):
        plan(1)


@dataclass
class Backends:
    """Stand-in for `make_backend`: compiled networks of so many bytes per voxel; None: they can't be compiled."""

    bytes_a_voxel: float | None
    wanted: list[str] = field(default_factory=list)
    releases: int = 0
    closed: int = 0

    def __call__(self, wanted: str, model: Model, shape: tuple[int, ...], *_: object) -> TorchBackend:
        self.wanted.append(wanted)
        backend = TorchBackend(model.network, model.device)
        if wanted == "auto" and self.bytes_a_voxel is not None:
            backend.batch_cost = BatchCost(1e-3, int(self.bytes_a_voxel * prod(shape)))
            backend.release_memory, backend.close = self.release_memory, self.close  # type: ignore[method-assign]
        return backend

    def release_memory(self) -> None:
        self.releases += 1

    def close(self) -> None:
        self.closed += 1


Segmented = Callable[..., tuple[Segmentation, Backends, list[Plan]]]


@pytest.fixture
def with_backends(head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Segmented:
    """Return a function that segments with backends of so many times the estimated memory, and lists the plans."""
    pytest.importorskip("openvino")
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(16, 16, 16)), trust=True)
    monkeypatch.setattr(choose, "MIN_COMPILED_FLOP", 0)
    monkeypatch.setattr(regions, "resident_bytes", lambda: 100 * MIB)
    regions.cached_compile.cache_clear()
    cost = network_cost(load_model(bundle, "cpu").network, torch.zeros(1, 1, 16, 16, 16))
    expected, plan = planning.COMPILED_MEMORY * cost.peak_bytes / 16**3, RegionTask.plan

    def run(times: float | Backends | None, memory_bytes: int = 10**12) -> tuple[Segmentation, Backends, list[Plan]]:
        made = times if isinstance(times, Backends) else Backends(None if times is None else times * expected)
        plans: list[Plan] = []
        monkeypatch.setattr(choose, "make_backend", made)
        monkeypatch.setattr(RegionTask, "plan", lambda *known: plans.append(plan(*known)) or plans[-1])
        return segment(head, bundle, memory_bytes=memory_bytes), made, plans

    return run


def test_a_region_is_planned_again_if_a_compiled_network_needs_more_than_estimated(with_backends: Segmented) -> None:
    usual, made, (plan,) = with_backends(1)
    assert (len(made.wanted), made.releases, made.closed) == (1, 0, 1)
    found, made, plans = with_backends(4, plan.peak_bytes)
    assert len(plans) > 1
    assert len({(plan.windows.size, plan.releases_memory, len(plan.strips), plan.dtype) for plan in plans}) == len(
        plans
    )
    assert made.closed == len(made.wanted) == len({plan.windows.size for plan in plans})
    assert plans[-1].releases_memory
    assert made.releases == plans[-1].window_count
    np.testing.assert_array_equal(found.array, usual.array)


@dataclass
class Kept:
    """Compiled networks that stay in memory from other runs, and the memory that they use."""

    used_bytes: int
    currsize: int = 1
    clears: int = 0

    def cache_info(self) -> Kept:
        return self

    def cache_clear(self) -> None:
        self.used_bytes, self.currsize, self.clears = 0, 0, self.clears + 1


@pytest.mark.parametrize(("room", "clears"), [(2.0, 0), (1.2, 1)])
def test_kept_networks_are_dropped_only_if_a_plan_has_to_save_memory(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: float, clears: int
) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(10, 12, 8)), trust=True)
    plans: list[Plan] = []
    plan = RegionTask.plan
    monkeypatch.setattr(RegionTask, "plan", lambda *known: plans.append(plan(*known)) or plans[-1])
    monkeypatch.setattr(regions, "resident_bytes", lambda: 0)
    usual = segment(head, bundle, backend="torch")
    needed = plans[-1].peak_bytes
    kept = Kept(int(0.5 * needed))
    monkeypatch.setattr(regions, "cached_compile", kept)
    monkeypatch.setattr(regions, "resident_bytes", lambda: kept.used_bytes)
    found = segment(head, bundle, backend="torch", memory_bytes=int(room * needed))
    assert kept.clears == clears
    assert not plans[-1].saves_memory
    np.testing.assert_array_equal(found.array, usual.array)


def planned(tmp_path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 1) -> Plan:
    """How 8 windows, of which 4 fit into the budget's sums, would be run there."""
    root = tmp_path / "small"
    known = read_bundle(root if root.is_dir() else write_threshold_bundle(root, roi=(16, 16, 16)), trust=True)
    model = load_model(known, "cpu")
    settings = WindowSettings((16, 16, 16), (0.0, 0.0, 0.0), batch)
    model = Model(model.network, model.preprocessing, model.inferer, torch.device(device), dtype)
    grid = Grid((32, 32, 32), np.eye(4))
    options = SegmentOptions(backend="torch", windows="bundle")
    region = RegionSettings(known, model, options, settings, 10**12)
    return RegionTask.crop(torch.zeros(1, 32, 32, 32), grid, grid, region, settings, 0).plan(used_bytes=0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux maps weights")
def test_weights_count_before_they_are_copied_or_used(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    torch.save({"weight": torch.ones(2000, 2000, 1, 1, 1)}, tmp_path / "large.pt")
    network = torch.nn.Conv3d(2000, 2000, 1, bias=False)
    network.load_state_dict(torch.load(tmp_path / "large.pt", mmap=True), assign=True)
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(16, 16, 16)), trust=True)
    model, grid = replace(load_model(bundle, "cpu"), network=network), Grid((32, 32, 32), np.eye(4))
    windows = WindowSettings((16, 16, 16))
    settings = RegionSettings(bundle, model, SegmentOptions(), windows, 10**12)
    task = RegionTask.crop(torch.zeros(1, 32, 32, 32), grid, grid, settings, windows, 0)

    to_compile = task._used_bytes("auto", choose.MIN_COMPILED_FLOP)
    model.statistics.is_compiled = True
    compiled = task._used_bytes("auto", choose.MIN_COMPILED_FLOP)
    in_torch = task._used_bytes("torch", choose.MIN_COMPILED_FLOP)

    size = network.weight.nbytes
    assert abs(to_compile - compiled - size) < 0.2 * size
    assert abs(in_torch - compiled - size) < 0.2 * size


def test_a_network_is_compiled_for_many_scans_that_would_be_too_small_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(16, 16, 16)), trust=True)
    model = replace(load_model(bundle, "cpu"), network=torch.nn.Conv3d(1, 2, 3, padding=1))
    grid, windows = Grid((32, 32, 32), np.eye(4)), WindowSettings((16, 16, 16))

    def program(scans: int, windows: WindowSettings = windows) -> str:
        settings = RegionSettings(bundle, model, SegmentOptions(scans=scans), windows, 10**12)
        task = RegionTask.crop(torch.zeros(1, 32, 32, 32), grid, grid, settings, windows, 0)
        return task.plan(used_bytes=0).program

    assert [program(1), program(10**6)] == ["torch", "OpenVINO"]
    assert program(10**6, WindowSettings((16, None, 16))) == "torch"  # each scan may have a size of its own


def test_less_is_planned_in_half_precision(tmp_path: Path) -> None:
    exact = planned(tmp_path).cost.peak_bytes
    assert planned(tmp_path, dtype=torch.bfloat16).cost.peak_bytes == int(costs.HALF_PRECISION_MEMORY * exact)


def test_what_lies_in_a_gpus_memory_is_not_charged_to_main_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "room_for_accumulators", lambda device: 0)
    small = planned(tmp_path, "cuda")
    usual = planned(tmp_path)
    assert usual.peak_bytes - small.peak_bytes > usual.cost.peak_bytes / 2  # its maps
    monkeypatch.setattr(choose, "room_for_accumulators", lambda device: 10**9)
    large = planned(tmp_path, "cuda")
    assert small.permanent_bytes - large.permanent_bytes > 0.9 * (large.accumulator_bytes - 2 * 4 * 3 * 16**3)


def test_logits_of_a_gpu_stay_in_its_memory() -> None:
    settings = WindowSettings((96, 96, 96), (0.25, 0.25, 0.25), batch=4, shifts=4)
    windows = replace(Windows.over((273, 273, 320), settings), empty=frozenset([(0, 0, 0)]))
    cost = NetworkCost(105, 10**9, 0)
    plan = make_plan(windows, 1, cost, 10**12, used_bytes=0, gpu_bytes=10**12)
    image = 4 * 273 * 273 * 320
    assert image < plan.peak_bytes < image + 100 * MIB  # the logits of one window are 354 MiB
    assert make_plan(windows, 1, cost, 10**12, used_bytes=0, gpu_bytes=1).peak_bytes > image + 2**32


def test_no_more_windows_are_planned_at_once_than_there_are(tmp_path: Path) -> None:
    one = planned(tmp_path).cost.peak_bytes
    eight, many = planned(tmp_path, batch=8), planned(tmp_path, batch=32)
    assert many.peak_bytes == eight.peak_bytes
    assert many.peak_bytes - planned(tmp_path, batch=4).peak_bytes == pytest.approx(4 * 1.1 * one, rel=0.2)
    assert many.windows.settings.batch == 8


def test_a_network_that_takes_too_much_is_refused_and_leaves_nothing(with_backends: Segmented) -> None:
    _, _, (plan,) = with_backends(1)
    made = Backends(bytes_a_voxel=1e6)
    with pytest.raises(EnvironmentFault, match=r"environment\.memory"):
        with_backends(made, plan.peak_bytes)
    assert made.closed == len(made.wanted) > 0


def test_what_was_planned_for_torch_is_run_by_torch(with_backends: Segmented, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "MIN_COMPILED_FLOP", np.inf)
    _, made, (plan,) = with_backends(100)
    assert made.wanted == ["torch"]
    assert plan.compiled_memory is None


def test_what_a_network_takes_is_remembered_for_the_next_scan(with_backends: Segmented) -> None:
    _, _, (plan,) = with_backends(1)
    _, _, plans = with_backends(4, plan.peak_bytes)
    assert len(plans) > 1
    _, made, again = with_backends(4, plan.peak_bytes)
    assert again == plans[-1:] * 2  # also after garbage was collected, because it saves memory
    assert len(made.wanted) == 1


def test_a_region_is_planned_again_for_torch_if_a_network_cant_be_compiled(with_backends: Segmented) -> None:
    usual, _, _ = with_backends(1)
    found, made, plans = with_backends(None)
    assert made.wanted == ["auto", "torch"]
    assert [plan.compiled_memory for plan in plans] == [planning.COMPILED_MEMORY, None]
    np.testing.assert_array_equal(found.array, usual.array)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_strips_cover_the_axis_and_share_one_voxel(count: int) -> None:
    windows = Windows.over((50, 40, 30), WindowSettings((10, 8, 10), (0.5, 0.5, 0.5)))
    strips = cut_in_strips(windows, count)
    assert len(strips) == count
    assert strips[0][0] == 0
    assert strips[-1][1] == 40
    assert all(before[1] == after[0] + 1 for before, after in pairwise(strips))


def test_a_small_budget_changes_no_label(head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(10, 12, 8), halves=True), trust=True)
    plenty = segment(head, bundle)
    monkeypatch.setattr(planning, "make_plan", lambda *known, **named: make_plan(*known[:3], 10**12, 0))
    strips = cut_in_strips
    for count in (2, 3):
        monkeypatch.setattr(planning, "cut_in_strips", lambda windows, _, count=count: strips(windows, count))
        cut = segment(head, bundle)
        np.testing.assert_array_equal(cut.array, plenty.array)
        assert cut.confidence == pytest.approx(dict(plenty.confidence), rel=1e-3)


def test_what_does_not_fit_is_refused_before_any_window(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(10, 12, 8)), trust=True)
    seen = []
    with pytest.raises(EnvironmentFault, match=r"environment\.memory"):
        segment(head, bundle, memory_bytes=MIB, progress=lambda *step: seen.append(step[0]))
    assert "segmenting" not in seen


def test_an_inferer_that_holds_all_is_refused_too(head: Volume, tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "whole")
    config = root / "configs" / "inference.yaml"
    config.write_text(config.read_text().split("inferer:")[0] + "inferer: {_target_: monai.inferers.SimpleInferer}\n")
    with pytest.raises(EnvironmentFault, match=r"environment\.memory: 3 classes of a whole region"):
        segment(head, read_bundle(root, trust=True), memory_bytes=MIB)


def test_what_is_free_is_what_all_control_groups_leave(tmp_path: Path) -> None:
    def group(path: str, most: object, used: int, files: int = 0) -> None:
        folder = tmp_path / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n")

    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job_1/step_0\n")
    unlimited = memory.free_bytes(tmp_path)
    group("slurm/job_1/step_0", "max", 5 * MIB)
    assert memory.free_bytes(tmp_path) == pytest.approx(unlimited, rel=0.2)
    group("slurm/job_1", 100 * MIB, 60 * MIB, files=20 * MIB)
    assert memory.free_bytes(tmp_path) == 60 * MIB
    group("slurm", 10 * MIB, 60 * MIB)
    assert memory.free_bytes(tmp_path) == 0


def test_memory_sizes_are_parsed() -> None:
    assert memory_size("4GiB") == 4 * 2**30
    assert memory_size("500 MB") == 500 * 10**6
    assert memory_size("1.5g") == 15 * 10**8
    assert memory_size("1048576") == MIB
    for text in ("lots", "4 GiBs", "-1GB", "", "i"):
        with pytest.raises(argparse.ArgumentTypeError, match="4GiB"):
            memory_size(text)
