"""The folder of the cache of compiled networks, and what is removed from it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from napari_seg.inference.backends import compiled_cache
from napari_seg.inference.backends.base import BatchCost


def test_the_least_recently_used_networks_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, used in enumerate((3, 1, 4, 2)):
        (tmp_path / f"{n}.blob").write_bytes(b"x" * 10)
        os.utime(tmp_path / f"{n}.blob", (used, used))
    monkeypatch.setattr(compiled_cache, "MAX_CACHE_BYTES", 25)
    compiled_cache._evict_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.blob", "2.blob"]
    compiled_cache._evict_oldest(tmp_path / "missing")


def test_the_cache_lies_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled_cache.CACHE_VARIABLE, "")
    assert compiled_cache.cache_dir() is None
    monkeypatch.delenv(compiled_cache.CACHE_VARIABLE)
    monkeypatch.setattr(compiled_cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert compiled_cache.cache_dir() == Path("/somewhere/napari-seg")


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (compiled_cache.CACHE_VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiled_cache.Path, "home", no_home)
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(compiled_cache.sys, "platform", system)
        assert compiled_cache.cache_dir() is None


def test_processes_that_share_the_cores_are_not_kept_on_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "core_count", lambda: 4)
    monkeypatch.setattr(compiled_cache.torch, "get_num_threads", lambda: 2)
    shared = compiled_cache.compile_settings(compiled_cache.torch.float32)
    assert (shared["INFERENCE_NUM_THREADS"], shared["ENABLE_CPU_PINNING"]) == (2, False)
    monkeypatch.setattr(compiled_cache.torch, "get_num_threads", lambda: 8)
    alone = compiled_cache.compile_settings(compiled_cache.torch.float32)
    assert alone["INFERENCE_NUM_THREADS"] == 4
    assert "ENABLE_CPU_PINNING" not in alone


def test_a_network_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    class Exported:
        def export_model(self) -> io.BytesIO:
            return io.BytesIO(b"network")

    compiled = compiled_cache.Compiled(Exported(), BatchCost(1.0, 2))
    compiled_cache.write_cache(tmp_path / "cache/one.blob", compiled)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["one.blob"]
    assert (tmp_path / "cache/one.blob").read_bytes().endswith(b"network")
    (tmp_path / "cache/two.blob").mkdir()
    compiled_cache.write_cache(tmp_path / "cache/two.blob", compiled)  # the name is taken by a folder
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["one.blob", "two.blob"]
