"""Label maps in colours are read with the table beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gathering import gathered, refused
from PIL import Image


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\ncat:0,128,0::\nbackground:0,0,0::\ndog:128,0,0::\n"),
        ("class_dict.csv", "name,r,g,b\nVoid,0,0,0\ncat,0,128,0\ndog,128,0,0\n"),
        ("colormap.txt", "cat,0,128,0\ndog,0,0,0\nbackground,128,0,0\n"),
        ("label_colors.txt", "0 128 0\tcat\n128 0 0\tdog\n"),
    ],
)
def test_label_maps_in_colours(tmp_path: Path, name: str, table: str) -> None:
    root = tmp_path / "a"
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    labels = np.zeros((6, 8), int)
    labels[:2], labels[3:5, 4:] = 1, 2
    colours = np.array(
        [(0, 0, 0) if "Void" in table or "background:0" in table else (0, 128, 0), (0, 128, 0), (128, 0, 0)]
    )
    if name == "colormap.txt":
        colours = np.array([(128, 0, 0), (0, 128, 0), (0, 0, 0)])
    Image.fromarray(np.full((6, 8), 9, np.uint8)).save(root / "JPEGImages" / "x.png")
    Image.fromarray(colours[labels].astype(np.uint8)).save(root / "SegmentationClass" / "x.png")
    (root / name).write_text(table)
    found, description = gathered(root)
    assert found is not None
    ignored = {"ignore": [255]} if "Void" in table else {}
    assert description["labels"] == {"background": 0, "cat": 1, "dog": 2} | ignored
    array = np.asarray(Image.open(found.folder / description["training"][0]["label"]))
    expected = labels if (colours[0] != (0, 128, 0)).any() else np.maximum(labels, 1)
    expected = np.where(labels == 0, 255, labels) if ignored else expected
    assert np.array_equal(array, expected)
    Image.fromarray(np.full((6, 8, 3), (7, 8, 9), np.uint8)).save(root / "SegmentationClass" / "x.png")
    assert "48 pixels in colours that the table lacks, such as (7, 8, 9)" in refused(root, "data.faults")
