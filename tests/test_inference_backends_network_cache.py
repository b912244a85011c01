"""Networks in the cache, their figures, and what is removed from it."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from napari_seg.inference.backends import network_cache
from napari_seg.inference.backends.base import BatchCost
from napari_seg.inference.backends.network_cache import Figures


def test_the_least_recently_used_networks_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = tmp_path / "networks"
    oldest, older, newer, newest = (letter * 32 for letter in "abcd")
    left = f".{'e' * 32}.part"
    for name, used in {newer: 3, oldest: 1, newest: 4, left: 2, older: 2.5, "of the user": 0}.items():
        (networks / name).mkdir(parents=True)
        (networks / name / "network.bin").write_bytes(b"x" * 10)
        os.utime(networks / name, (used, used))
    (networks / ".DS_Store").write_bytes(b"x")
    (networks / ("f" * 32)).write_bytes(b"x" * 10)
    for name in (oldest + ".blob", "of the user.blob"):  # the first is of an earlier version
        (tmp_path / name).write_bytes(b"x" * 10)
    (tmp_path / "cost.json").write_bytes(b"x" * 10)
    monkeypatch.setattr(network_cache, "MAX_CACHE_BYTES", 25)
    network_cache._evict_oldest(networks)
    assert {path.name for path in networks.iterdir()} == {newer, newest, "of the user", ".DS_Store", "f" * 32}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cost.json", "networks", "of the user.blob"]
    network_cache._evict_oldest(tmp_path / "missing")


def test_processes_that_share_the_cores_are_not_kept_on_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_cache, "core_count", lambda: 4)
    monkeypatch.setattr(network_cache.torch, "get_num_threads", lambda: 2)
    shared = network_cache.compile_settings(network_cache.torch.float32)
    assert (shared["INFERENCE_NUM_THREADS"], shared["ENABLE_CPU_PINNING"]) == (2, False)
    monkeypatch.setattr(network_cache.torch, "get_num_threads", lambda: 8)
    alone = network_cache.compile_settings(network_cache.torch.float32)
    assert alone["INFERENCE_NUM_THREADS"] == 4
    assert "ENABLE_CPU_PINNING" not in alone


@pytest.mark.skipif(find_spec("openvino") is None, reason='needs the extra "openvino"')
def test_a_network_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    from openvino import Model, opset13

    parameter = opset13.parameter([1, 1, 4, 4, 4])
    model = Model([opset13.add(parameter, opset13.constant(np.ones(1, np.float32)))], [parameter], "network")
    for name, is_new in (("one", True), ("one", False), ("two", False)):  # the second was written by another process
        (tmp_path / "cache").mkdir(exist_ok=True)
        if name == "two":
            (tmp_path / "cache/two").write_text("")  # the name is taken by a file
        network_cache.write_network(tmp_path / "cache" / name, model, Figures(1.0, 2.0))
        files = sorted(path.name for path in (tmp_path / "cache/one").iterdir())
        assert files == ["figures.json", "network.bin", "network.xml"], is_new
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["one", "two"]


def test_time_and_memory_grow_with_voxels_and_time_shrinks_with_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_cache, "usable_cores", lambda: 4)
    figures = Figures.measured(BatchCost(2.0, 8000), (2, 3, 10, 10, 10))
    assert figures.cost((1, 3, 10, 10, 40)) == (4.0, 16000)
    monkeypatch.setattr(network_cache, "usable_cores", lambda: 1)
    assert figures.cost((2, 3, 10, 10, 10)) == (8.0, 8000)


def test_the_time_of_a_run_is_written_if_it_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_cache, "usable_cores", lambda: 1)
    file = tmp_path / "figures.json"
    first = {"seconds": 1e-3, "memory": 8.0, "checksum": 5}
    file.write_text(json.dumps(first))
    compiled = network_cache.Compiled(None, (1, 1, 10, 10, 10), Figures(**first), tmp_path)
    compiled.record_batch_seconds(1.05)
    assert compiled.batch_cost == pytest.approx((1.05, 8000))
    assert json.loads(file.read_text()) == first
    compiled.record_batch_seconds(1.15)  # nothing was written since the first
    assert json.loads(file.read_text()) == pytest.approx({**first, "seconds": 1.15e-3})
    file.unlink()
    compiled.record_batch_seconds(9.0)  # removed by another process
    assert not file.exists()


@pytest.mark.parametrize(
    "damage",
    [{"memory": float("inf")}, {"memory": 1e300}, {"seconds": 0}, {"memory": -1.0}, {"seconds": "1"}],
)
def test_damaged_figures_are_not_used(damage: dict, tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text(json.dumps({"seconds": 1.0, "memory": 2.0, "checksum": 0} | damage))
    with pytest.raises((ValueError, TypeError)):
        Figures.read(tmp_path)
