"""Configs are read as plain data, once for each state of a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from napari_seg.bundles.config import read as module
from napari_seg.bundles.config.read import check_size, inference_config, merged_config, read_config
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


def test_a_config_of_another_name_is_found_if_it_is_the_only_one(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in ("inference_trt.json", "train.json", "metadata.json", "multi_gpu_inference.json"):
        (folder / name).write_text("{}")
    with pytest.raises(BundleError, match="has no configs/inference"):
        inference_config(tmp_path)
    (folder / "inference_ct.json").write_text("{}")
    assert inference_config(tmp_path).name == "inference_ct.json"
    (folder / "inference_mr.yaml").write_text("{}")
    with pytest.raises(BundleError, match=r"several like it \(inference_mr\.yaml, inference_ct\.json\)"):
        inference_config(tmp_path)
    (folder / "predict.yaml").write_text("{}")
    assert inference_config(tmp_path).name == "predict.yaml"


BOMBS = {
    "aliases.yaml": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
    "merges.yaml": "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)),
    "wide.yaml": "a: &a {x: 1}\nb: {<<: [" + "*a, " * 200 + "*a]}\n",
    "circle.yaml": "a: &a [*a]\n",
    "deep.yaml": "a: " + "[" * 70 + "]" * 70,
    "deeper.yaml": "a: " + "[" * 5_000,
    "indented.yaml": "".join(f"{' ' * n}a:\n" for n in range(500)),
    "deep.json": '{"a": ' + "[" * 70 + "]" * 70 + "}",
    "deeper.json": '{"a": ' * 20_000,
    "many.json": '{"a": [' + "0," * 300_000 + "0]}",
    "python.yaml": "a: !!python/object/apply:os.system ['touch trap']\n",
    "digits.json": '{"a": ' + "9" * 9000 + "}",
    "bytes.json": "\x00\x01",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import yaml

    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_text(BOMBS[name])
    began = time.process_time()
    with pytest.raises((ValueError, yaml.YAMLError)):
        read_config(path, 2**20)
    assert time.process_time() - began < 5
    assert not (tmp_path / "trap").exists()


def test_entries_that_change_others_are_applied() -> None:
    config = {"a": {"b": [1, {"c": 2}]}, "a::b::1::c": 3, "+a#b": [4], "d#e#f": 5, "+new": [6]}
    assert merged_config(config) == {"a": {"b": [1, {"c": 3}, 4]}, "d": {"e": {"f": 5}}, "new": [6]}
    assert config["a"] == {"b": [1, {"c": 2}]}
    for wrong in ({"a": [1], "a#7": 2}, {"a": 1, "a#b#c": 2}, {"a": 1, "+a": [2]}, {"a": [1], "+a": {}}):
        with pytest.raises(ValueError, match="the entry"):
            merged_config(wrong)


def test_long_keys_do_not_multiply() -> None:
    with pytest.raises(ValueError, match="ids of its values hold more than"):
        check_size({"a" * 2**17: [[] for _ in range(2**15)]})
    assert check_size({"a" * 100: [0] * 100_000}) == 100_002
