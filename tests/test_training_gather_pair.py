"""Pairs of scans and label maps, before they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.formats.scan import Scan
from napari_seg.training.gather.pair import Pair


@pytest.mark.parametrize("changed", ["ct.raw", "seg.raw"])
def test_other_pixels_behind_an_equal_header_are_another_pair(changed: str, tmp_path: Path) -> None:
    for name in ("ct", "seg"):
        (tmp_path / f"{name}.mhd").write_text(f"NDims = 3\nElementDataFile = {name}.raw\n")
        (tmp_path / f"{name}.raw").write_bytes(b"1")
    pair = Pair("x", (("", Scan("ct", "itk", (tmp_path / "ct.mhd",))),), (tmp_path / "seg.mhd",))
    before = pair.key
    assert pair.key == before
    (tmp_path / changed).write_bytes(b"12")
    assert pair.key != before
    (tmp_path / changed).unlink()
    assert pair.key != before
