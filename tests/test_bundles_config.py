"""Configs are read as plain data, once for each state of a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from napari_seg.bundles import config as module
from napari_seg.bundles.config import inference_config, read_config
from napari_seg.errors import BundleError


def test_a_config_is_parsed_again_only_after_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n")
    assert read_config(path) is read_config(path)
    assert read_config(path) == {"a": 1}
    path.write_text("a: 2\n")
    os.utime(path, (1, 1))
    assert read_config(path) == {"a": 2}


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        read_config(path)
    path.write_text('{"a": "' + "x" * module.MAX_CONFIG_BYTES + '"}')
    with pytest.raises(ValueError, match="larger than 256 KiB"):
        read_config(path)
    assert len(read_config(path, 2**20)["a"]) == module.MAX_CONFIG_BYTES


def test_the_inference_config_is_found_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.config: .* has no configs/inference"):
        inference_config(tmp_path)
    (tmp_path / "configs").mkdir()
    for suffix in ("json", "yml", "yaml"):
        path = tmp_path / f"configs/inference.{suffix}"
        path.write_text("{}")
        assert inference_config(tmp_path) == path
