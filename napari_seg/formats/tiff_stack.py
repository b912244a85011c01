"""Read a multi-page TIFF as a volume, with the size of its voxels as ImageJ writes it.

The pages are slices only if a user says so: the same file may be a time series, whose pages are images of their own.
The size of a voxel lies in the resolution of the pages and in ImageJ's description ("spacing", "unit"); it is never
guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_seg.errors import InputError, Notice
from napari_seg.formats.image2d import count_pages, read_image2d, read_label_image2d
from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.volume import Source, Volume

_DESCRIPTION, _X_RESOLUTION, _Y_RESOLUTION = 270, 282, 283
"""Tags of TIFF."""

_UNITS_MM = {
    **dict.fromkeys(("micron", "microns", "um", "\u00b5m", "\u03bcm", "\\u00b5m", "micrometer", "micrometre"), 1e-3),
    **dict.fromkeys(("nm", "nanometer"), 1e-6),
    **dict.fromkeys(("mm", "millimeter"), 1.0),
    **dict.fromkeys(("cm", "centimeter"), 10.0),
}


def read_tiff_stack(files: Sequence[Path]) -> Volume:
    """Return the pages of a grey TIFF as slices (1, I, J, K); a reader for `read_in_worker`.

    Args:
        files: the file.

    Raises:
        InputError: `geometry.no_spacing`, the file does not say how large its voxels are; `file.pages`, its pages are
            not slices of one channel; `file.*`.
    """
    (path,) = files
    spacing_mm = _spacing_mm(path)
    pages = [read_image2d(path, None, page).array for page in range(count_pages(path))]
    if len({page.shape for page in pages}) > 1 or len(pages[0]) > 1:
        raise InputError("file.pages", f"{path.name} has pages of several sizes or in colour; expected grey slices")
    array = np.concatenate(pages, axis=-1)
    grid = Grid((array.shape[1], array.shape[2], array.shape[3]), RAS_FROM_LPS @ np.diag([*spacing_mm, 1.0]))
    text = f"{path.name} does not say how it lies in the patient; left and right are not known"
    notices = (Notice("geometry.no_orientation", text),)
    return Volume(array, grid, path.stem, source=Source("image2d", (path,)), notices=notices)


def read_label_stack(files: Sequence[Path]) -> NDArray:
    """Return the labels (I, J, K) in the pages of a TIFF; its own voxel size is not read, as many programs drop it.

    Raises:
        InputError: `file.*`, `labels.colour`.
    """
    (path,) = files
    pages = [read_label_image2d(path, page).array for page in range(count_pages(path))]
    if len({page.shape for page in pages}) > 1:
        raise InputError("file.pages", f"{path.name} has pages of several sizes; expected one size")
    return np.concatenate(pages, axis=-1)[0]


def _spacing_mm(path: Path) -> tuple[float, float, float]:
    """Return the size of a voxel along columns, rows and pages, in mm."""
    expected = "expected the voxel size as ImageJ writes it; set it in ImageJ (Image > Properties), or save as NIfTI"
    with path.open("rb") as file, Image.open(file, formats=("TIFF",)) as image:
        tags = dict(getattr(image, "tag_v2", {}))
    lines = str(tags.get(_DESCRIPTION, "")).splitlines()
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        unit_mm = _UNITS_MM[fields["unit"].strip().lower()]
        sizes = 1 / float(tags[_X_RESOLUTION]), 1 / float(tags[_Y_RESOLUTION]), float(fields["spacing"])
        spacing_mm = tuple(size * unit_mm for size in sizes)
        is_known = "ImageJ" in fields and all(np.isfinite(size) and size > 0 for size in spacing_mm)
        several = {name: int(fields.get(name, 1)) for name in ("channels", "frames")}
    except (KeyError, ValueError, ZeroDivisionError, TypeError):
        is_known = False
    if not is_known:
        raise InputError("geometry.no_spacing", f"{path.name} does not say how large its voxels are; {expected}")
    if several["channels"] > 1 or several["frames"] > 1:
        text = f"{path.name} holds {several['channels']} channels and {several['frames']} frames; expected slices alone"
        raise InputError("file.pages", text)
    return spacing_mm[0], spacing_mm[1], spacing_mm[2]
