"""References of a config are followed, and end, as plain data."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from napari_seg.bundles.config.read import read_config
from napari_seg.bundles.config.references import listed, postprocessings, resolved
from napari_seg.bundles.postprocessing import read_output


def test_references_and_literals_are_followed() -> None:
    config = {"a": "@b", "b": "$@c#0", "c": ["$True", 2]}
    assert resolved(config, "@a") is True
    assert resolved(config, "@c::1") == 2
    assert resolved(config, "@missing") == "@missing"
    assert resolved(config, "$f(1)") == "$f(1)"
    assert listed(config, "@c") == [True, 2]
    assert listed(config, 5) == [5]
    assert postprocessings({"postprocessing": "@p", "p": [{"_target_": "A"}]}) == [[{"_target_": "A"}]]


def test_a_nested_or_large_config_ends(tmp_path: Path) -> None:
    alias = "a: &a [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1 or ''}, *a{n - 1 or ''}]\n" for n in range(1, 40))
    path = tmp_path / "inference.yaml"
    path.write_text(alias + "postprocessing: *a39\n")
    with pytest.raises(ValueError, match="more than 200000 values"):
        read_config(path)
    circle = "{_target_: Compose, transforms: '@postprocessing'}"
    path.write_text(f"postprocessing: [{circle}, {circle}, {{_target_: Lambdad}}]\n")
    assert read_output(read_config(path), 3) == ("more than 200 transforms",)
    path.write_text("postprocessing: '@a'\na: '@postprocessing'\n")
    assert len(read_output(read_config(path), 3)) == 1  # type: ignore[arg-type]
    path.write_text("[" * 100_000)
    with pytest.raises((ValueError, RecursionError, yaml.YAMLError)):
        read_config(path)
    path.write_text("a: " + "x" * 2**20)
    with pytest.raises(ValueError, match="larger"):
        read_config(path)


def test_a_repeated_text_is_read_once_and_a_long_one_never() -> None:
    text = "$[" + "1, " * 1000 + "]"
    begin = time.monotonic()
    assert resolved({}, text) == [1] * 1000
    for _ in range(50_000):
        resolved({}, text)
    long = "$" + "+".join(["1"] * 100_000)
    assert all(resolved({}, long) is long for _ in range(50_000))
    assert time.monotonic() - begin < 20
