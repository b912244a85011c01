"""Pictures (PNG, TIFF, ...) as a single plane of voxels of 1 mm: what is in mm elsewhere is in pixels here.

The index axes are column and row, as MONAI's `PILReader` has them, and one of a single voxel. A picture lies in no
patient; to have a grid all the same it lies as an axial plane, seen upright.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from napari_seg.errors import InputError, NapariSegError
from napari_seg.formats.endings import IMAGE2D_ENDINGS, has_ending
from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.memory import check_fits
from napari_seg.volume import Source, Volume

COLOURS = 3

_FORMATS = ("PNG", "TIFF", "JPEG", "BMP")


def is_image2d(path: Path) -> bool:
    """Whether a file calls itself a picture."""
    return has_ending(path, IMAGE2D_ENDINGS)


def read_image2d(path: Path, channels: int | None = 1) -> Volume:
    """A picture in grey (1, I, J, 1) or in colours (3, I, J, 1), red first; how transparent it is does not count.

    Args:
        path: of the file.
        channels: 3 for colours, all alike in a grey picture; None: colours if the picture has any; else grey.

    Raises:
        InputError: `file.not_picture`, `file.pages`, `file.unreadable` or `data.nonfinite`.
    """
    array = _pixels(path, is_label=False)
    if not np.isfinite(array).all():
        raise InputError("data.nonfinite", f"{path.name} holds NaN or infinite values; expected numbers")
    if array.ndim == 3 and channels is None and not np.ptp(array, axis=2).any():
        channels = 1
    if array.ndim == 3 and channels not in (None, COLOURS):
        array = np.asarray(Image.fromarray(array).convert("L"))
    if array.ndim == 2:
        array = np.repeat(array[..., None], COLOURS if channels == COLOURS else 1, axis=2)
    return _lying(array, path)


def read_image2d_files(files: Sequence[Path], channels: int | None = None) -> Volume:
    """`read_image2d` of the first of some files, as `read_in_worker` wants it."""
    return read_image2d(files[0], channels)


def read_label_image2d(path: Path) -> Volume:
    """A label map as a picture, (1, I, J, 1): grey values, or the indices of a palette, as in PASCAL VOC.

    Raises:
        InputError: `file.not_picture`, `file.pages`, or `labels.colour`: it holds colours.
    """
    array = _pixels(path, is_label=True)
    if array.ndim == 3:
        if np.ptp(array[..., :3], axis=2).any():
            raise InputError(
                "labels.colour", f"{path.name} is a label map in colours; expected grey values or a palette (mode P)"
            )
        array = array[..., 0]
    return _lying(array[..., None], path)


def _lying(array: NDArray, path: Path) -> Volume:
    grid = Grid((array.shape[1], array.shape[0], 1), RAS_FROM_LPS)
    return Volume(array.transpose(2, 1, 0)[..., None], grid, path.stem, source=Source("image2d", (path,)))


def _pixels(path: Path, *, is_label: bool) -> NDArray:
    """(J, I) or (J, I, 3), turned as its EXIF orientation says; of label maps the values as they are stored."""
    try:
        # of a path, PIL would map an uncompressed TIFF into memory, in rows of its turned size
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise InputError("file.pages", f"{path.name} holds {pages} pages; expected one picture")
            # the picture, turned, as an array, and handed from one process to the other
            check_fits(prod(image.size) * len(image.getbands()) * 4, f"reading {path.name}")
            upright = ImageOps.exif_transpose(image)  # as every viewer shows it, and as masks are drawn on it
            if is_label and upright.mode == "1":  # a mask of single bits holds 0 and 1, as in training
                return np.asarray(upright).astype(np.uint8)
            if upright.mode in ("1", "L", "LA", "La"):
                return np.asarray(upright.convert("L"))
            keeps = is_label or upright.mode.startswith(("I", "F"))  # more than 8 bits of grey
            return np.asarray(upright if keeps else upright.convert("RGB"))
    except NapariSegError:
        raise
    except Exception as error:  # Pillow lets errors of any kind through
        if isinstance(error, OSError) and error.errno:
            raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror}") from error
        kind = type(error).__name__  # its words may hold the whole path, and that the names of people
        text = f"{path.name} can't be read as a 2D image ({kind}): it is damaged, or not what its name says"
        raise InputError("file.not_picture", text) from error
