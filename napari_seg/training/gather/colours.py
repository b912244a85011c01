"""Read 2D label maps in colours with the table of colours that lies in the data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError
from napari_seg.formats.image2d import COLOURS, is_image2d, read_image2d
from napari_seg.volume import smallest_label_type

Colours = tuple[tuple[tuple[int, int, int], str], ...]
"""Colour and name of each class; the n-th has the value n, counted from 0. One without a name stands for no class."""

IGNORED = 255
"""Value of colours that stand for no class."""

_TABLES = ("labelmap.txt", "class_dict.csv", "*_class_dict.csv", "label_colors.txt", "colormap.txt")
_NAME_FIRST = re.compile(r"\s*(?P<name>[^:,\t]+)[:,\t]\s*(?P<r>\d+)[,\s]+(?P<g>\d+)[,\s]+(?P<b>\d+)\b.*")
_NAME_LAST = re.compile(r"\s*(?P<r>\d+)[,\s]+(?P<g>\d+)[,\s]+(?P<b>\d+)[,\s]+(?P<name>.+)")


def colours_of(root: Path) -> Colours:
    """Return the table of colours in a folder, as CVAT, CamVid and others write it; empty without one.

    The background, or else a black class, comes first. What stands for no class, such as "void", has no name.
    """
    from segnets.data.voc import NOT_CLASSES

    files = [file for pattern in _TABLES for file in sorted(root.glob(pattern))] if root.is_dir() else []
    for file in files:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        found = [_NAME_FIRST.fullmatch(line) or _NAME_LAST.fullmatch(line) for line in lines if line[:1] != "#"]
        entries = [((int(m["r"]), int(m["g"]), int(m["b"])), m["name"].strip()) for m in found if m]
        if 1 < len(entries) < IGNORED and len({colour for colour, _ in entries}) == len(entries):
            entries = [(colour, "" if name.casefold() in NOT_CLASSES else name) for colour, name in entries]
            entries.sort(key=lambda entry: not entry[1])  # the values of classes follow each other
            named = [entry for entry in entries if entry[1].casefold() == "background"]
            black = [entry for entry in entries if entry[0] == (0, 0, 0) and entry[1]]
            first = next(iter((*named, *black)), ((-1, -1, -1), "background"))  # else a colour that no pixel has
            return (first, *(entry for entry in entries if entry != first))
    return ()


def is_in_colours(label: Path) -> bool:
    """Return whether a label map is a 2D image in colours; false if it can't be read."""
    try:
        return is_image2d(label) and not _has_palette(label) and len(read_image2d(label, None).array) == COLOURS
    except InputError:
        return False


def _has_palette(label: Path) -> bool:
    from PIL import Image

    with Image.open(label) as image:
        return image.mode == "P"


def read_colours(files: Sequence[Path], colours: Colours) -> NDArray[np.unsignedinteger]:
    """Return the labels (I, J, 1) of a label map in colours; has the signature that `read_in_worker` requires.

    Raises:
        InputError: `labels.colour`, it has a colour that the table lacks; `file.*`.
    """
    array = read_image2d(files[0], COLOURS).array[..., 0].astype(np.int64)
    packed = array[0] << 16 | array[1] << 8 | array[2]
    labels = np.zeros(packed.shape, smallest_label_type(max(len(colours), IGNORED)))
    is_known = np.zeros(packed.shape, bool)
    for value, ((red, green, blue), name) in enumerate(colours):
        inside = packed == (red << 16 | green << 8 | blue)
        labels[inside] = value if name else IGNORED
        is_known |= inside
    if not is_known.all():
        count, first = int(np.count_nonzero(~is_known)), int(packed[~is_known][0])
        found = f"({first >> 16}, {first >> 8 & 255}, {first & 255})"
        text = f"{files[0].name} has {count} pixels in colours that the table lacks, such as {found}; add them to it"
        raise InputError("labels.colour", text)
    return labels[..., None]
