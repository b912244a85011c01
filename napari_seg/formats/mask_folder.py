"""Read a folder with a mask for each structure as one label map, as TotalSegmentator writes it by default.

Each file holds one structure, which has the name of the file: `segmentations/liver.nii.gz` is the liver. Labels are
numbered from 1 in the order of the names; all files count, so that a structure keeps its label whichever are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, listed
from napari_seg.formats.endings import nifti_ending
from napari_seg.formats.nifti import read_nifti, stated_affine, stated_size
from napari_seg.geometry import Grid
from napari_seg.volume import (
    MAX_LABEL,
    Segment,
    Segmentation,
    distinct_color,
    select_segments,
    smallest_label_type,
)


def mask_files(folder: Path) -> dict[str, Path]:
    """Return name of a structure -> its file, for a folder with two or more NIfTI files of one size; else {}.

    Whether the files are masks shows when they are read; files of other formats do not count.
    """
    files = _nifti_files(folder)
    named = {file.name.removesuffix(nifti_ending(file)): file for file in files}
    if not 1 < len(files) == len(named) <= MAX_LABEL:
        return {}
    try:
        check_masks(folder)
    except InputError:
        return {}
    return named


def structure_of_mask(file: Path) -> str:
    """Return the structure that a file in a folder of masks is named after; "" for any other file.

    Label maps of several cases may have one size, too. They lie at different places, or their names differ in numbers
    only.
    """
    masks = mask_files(file.parent)
    name = next((name for name, mask in masks.items() if mask == file), "")
    if not name or len({re.sub(r"\d+", "", other) for other in masks}) == 1:
        return ""
    affine = stated_affine(file)
    return name if all(np.allclose(affine, stated_affine(mask), atol=1e-3) for mask in masks.values()) else ""


def check_masks(folder: Path) -> None:
    """Raise for the first of several NIfTI files in a folder that can be no mask beside the others.

    Raises:
        InputError: `file.*`, it can't be read; `geometry.other_grid`, it is of another size.
    """
    files = _nifti_files(folder)
    sizes = [stated_size(file)[0] for file in files] if len(files) > 1 else []
    usual = max(sizes, key=sizes.count, default=())
    for file, size in zip(files, sizes, strict=False):
        if size != usual:
            found, expected = (" x ".join(map(str, each)) for each in (size, usual))
            text = f"{file.name} has {found} voxels, and {files[sizes.index(usual)].name} {expected}"
            text = f"{text}; expected masks of one scan in {folder.name}; give the path of one label map"
            raise InputError("geometry.other_grid", text)


def _nifti_files(folder: Path) -> list[Path]:
    """Return the NIfTI files in a folder, sorted by name; none for a file."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if nifti_ending(file) and not file.name.startswith("."))


def read_masks(files: Sequence[Path], only: Sequence[str] = ()) -> Segmentation:
    """Read the masks of a folder as one label map.

    Args:
        files: all files of the folder, in the order of `mask_files`.
        only: names of the structures to read; all if empty.

    Raises:
        InputError: `file.*`, a file can't be read; `labels.not_masks`, a file holds several values;
            `geometry.other_grid`, the masks lie on different voxels; `labels.overlap`, structures share voxels;
            `labels.unknown`, a structure of `only` is missing.
    """
    folder = files[0].parent.name
    table = [
        Segment(label, file.name.removesuffix(nifti_ending(file)), distinct_color(label))
        for label, file in enumerate(files, 1)
    ]
    segments = select_segments(table, only, folder)
    grid: Grid | None = None
    array: NDArray[np.unsignedinteger] = np.empty(0, np.uint8)
    notices: tuple[Notice, ...] = ()
    shared: dict[str, int] = {}
    for segment in segments:
        file = files[segment.label - 1]
        mask = read_nifti(file, one_slice=True)
        values = mask.array[0]
        inside = (values > 0) & (values == values.max())
        if np.count_nonzero(inside) < np.count_nonzero(values):
            text = f"{file.name} holds several values, and its folder several files; expected a mask for each structure"
            raise InputError("labels.not_masks", f"{text}; give the path of one label map")
        if grid is None:
            grid, array = mask.grid, np.zeros(mask.grid.shape, smallest_label_type(len(files)))
        elif not grid.matches(mask.grid):
            text = f"{file.name} does not lie on the voxels of the other masks in {folder}"
            raise InputError("geometry.other_grid", f"{text}; expected masks of one scan")
        if count := int(np.count_nonzero(array[inside])):
            shared[segment.name] = count
        array[inside] = segment.label
        notices = (*notices, *mask.notices)
    assert grid is not None
    if shared:
        text = f"{sum(shared.values())} voxels of {listed([*shared])} in {folder} belong to other structures too"
        way = "and a label map holds one label a voxel; name the segments to read"
        raise InputError("labels.overlap", f"{text}, {way}")
    return Segmentation(array, grid, segments, notices=tuple(dict.fromkeys(notices)))
