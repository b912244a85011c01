"""The folder of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.inference.backends import cache_folder


def test_the_cache_lies_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache_folder.CACHE_VARIABLE, "")
    assert cache_folder.cache_dir() is None
    monkeypatch.delenv(cache_folder.CACHE_VARIABLE)
    monkeypatch.setattr(cache_folder.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder.cache_dir() == Path("/somewhere/napari-seg")


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (cache_folder.CACHE_VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache_folder.Path, "home", no_home)
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(cache_folder.sys, "platform", system)
        assert cache_folder.cache_dir() is None
