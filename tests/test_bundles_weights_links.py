"""The list of large files says where a missing file is; whatever it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.bundles.weights.links import how_to_get, listing_of


@pytest.mark.parametrize("file", ["large_files.yml", "large_files.yaml"])
def test_the_address_and_the_command_are_named(tmp_path: Path, file: str) -> None:
    assert listing_of(tmp_path) is None
    assert how_to_get(tmp_path, "models/model.pt") == "train it first, or copy the file there"
    (tmp_path / file).write_text("large_files:\n- path: models/model.pt\n  url: https://example.org/a.pt\n")
    assert listing_of(tmp_path) == tmp_path / file
    text = how_to_get(tmp_path, "models/model.pt")
    assert f"{file} names https://example.org/a.pt: 'napari-seg models add SOURCE --replace' downloads it" in text
    assert "does not name this file" in how_to_get(tmp_path, "models/other.pt")


@pytest.mark.parametrize("text", ["", "[", "large_files: 7", "large_files: [7]", "large_files: [{path: models/a}]"])
def test_a_damaged_list_names_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "large_files.yml").write_text(text)
    assert "does not name this file" in how_to_get(tmp_path, "models/model.pt")
