"""Stacks of pages are volumes if their file says how large a voxel is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from napari_seg.errors import InputError
from napari_seg.formats.tiff_stack import read_label_stack, read_tiff_stack

WORDS = "ImageJ=1.54f\nimages=3\nslices=3\nunit={}\nspacing={}\n"


def stack(path: Path, words: str, resolution: float = 4.0, mode: str = "L") -> Path:
    pages = [Image.fromarray(np.full((6, 8), n, np.uint8)).convert(mode) for n in range(3)]
    if mode == "RGB":
        pages[0].putpixel((0, 0), (1, 2, 3))
    info: dict[int, Any] = {270: words, 282: resolution, 283: 2 * resolution}
    pages[0].save(path, save_all=True, append_images=pages[1:], tiffinfo=info)
    return path


@pytest.mark.parametrize(("unit", "mm"), [("micron", 1e-3), ("mm", 1.0), ("\\u00B5m", 1e-3), ("cm", 10)])
def test_the_size_of_a_voxel_is_that_of_imagej(unit: str, mm: float, tmp_path: Path) -> None:
    volume = read_tiff_stack([stack(tmp_path / "a.tif", WORDS.format(unit, 1.5))])
    assert volume.array.shape == (1, 8, 6, 3)
    assert volume.grid.spacing_mm == pytest.approx((0.25 * mm, 0.125 * mm, 1.5 * mm))
    assert volume.array[0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "words",
    ["", "a film", "unit=mm\nspacing=2", WORDS.format("parsec", 2), WORDS.format("mm", "x"), WORDS.format("mm", 0),
     WORDS.format("mm", "nan")],
)  # fmt: skip
def test_a_size_that_is_not_stated_is_not_guessed(words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"geometry\.no_spacing"):
        read_tiff_stack([stack(tmp_path / "a.tif", words)])
    assert read_label_stack([tmp_path / "a.tif"]).shape == (8, 6, 3)


def test_what_is_no_stack_of_slices_is_refused(tmp_path: Path) -> None:
    for words, mode in ((WORDS.format("mm", 2) + "frames=3\n", "L"), (WORDS.format("mm", 2), "RGB")):
        with pytest.raises(InputError, match=r"file\.pages"):
            read_tiff_stack([stack(tmp_path / "a.tif", words, mode=mode)])
