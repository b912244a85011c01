"""Installed models and listed folders are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bundles import write_threshold_bundle

from napari_seg.bundles.places import BUNDLES_VARIABLE, STORE_VARIABLE, bundle_folders, store_root
from napari_seg.bundles.read import find_bundles, read_bundle
from napari_seg.errors import BundleError


def test_the_store_is_where_its_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "mine"))
    assert store_root() == tmp_path / "mine"
    monkeypatch.setenv(STORE_VARIABLE, os.path.join("~", "mine"))
    assert store_root() == Path.home() / "mine"
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv(STORE_VARIABLE)
        else:
            monkeypatch.setenv(STORE_VARIABLE, nothing)
        assert store_root().is_absolute()
        assert store_root().parts[-2:] == ("napari-seg", "models")


def test_the_store_comes_after_the_listed_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUNDLES_VARIABLE, os.pathsep.join([str(tmp_path / "a"), "", str(tmp_path / "b")]))
    assert bundle_folders() == [tmp_path / "a", tmp_path / "b", store_root()]


def test_installed_models_are_found_by_name_and_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_threshold_bundle(store_root() / "mine")
    monkeypatch.setenv(BUNDLES_VARIABLE, str(store_root()))
    assert [bundle.root for bundle in find_bundles()[0]][1:] == [root]
    assert read_bundle("mine").root == root.resolve()


def test_a_zip_is_to_be_added(tmp_path: Path) -> None:
    (tmp_path / "liver.zip").write_bytes(b"PK")
    with pytest.raises(BundleError, match="napari-seg models add") as caught:
        read_bundle(tmp_path / "liver.zip")
    assert caught.value.code == "bundle.unknown"
