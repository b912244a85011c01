"""Pictures (PNG, TIFF, ...) as a single plane of voxels of 1 mm: what is in mm elsewhere is in pixels here.

The index axes are column and row, as MONAI's `PILReader` has them, and one of a single voxel. A picture lies in no
patient; to have a grid all the same it lies as an axial plane, seen upright.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from napari_seg.errors import InputError
from napari_seg.geometry import Grid
from napari_seg.volume import Volume

_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


def is_picture(path: Path) -> bool:
    """Whether a file calls itself a picture."""
    return path.suffix.lower() in _ENDINGS


def read_picture(path: Path) -> Volume:
    """A picture in grey, (1, I, J, 1).

    Raises:
        InputError: `file.not_picture` or `file.pages`.
    """
    return _read(path, is_label=False)


def read_label_picture(path: Path) -> Volume:
    """A label map as a picture, (1, I, J, 1): grey values, or the indices of a palette, as in PASCAL VOC.

    Raises:
        InputError: `file.not_picture`, `file.pages`, or `labels.colour`: it holds colours.
    """
    return _read(path, is_label=True)


def _read(path: Path, *, is_label: bool) -> Volume:
    try:
        with Image.open(path) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise InputError("file.pages", f"{path.name} holds {pages} pages; expected one picture")
            keeps = is_label or image.mode.startswith(("I", "F"))  # more than 8 bits of grey
            array = np.asarray(image if keeps else image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError("file.not_picture", f"{path.name} can't be read as a picture ({error})") from error
    if array.ndim == 3:
        if image.mode.startswith("RGB") and np.ptp(array[..., :3], axis=2).any():
            raise InputError(
                "labels.colour", f"{path.name} is a label map in colours; expected grey values or a palette (mode P)"
            )
        array = array[..., 0]
    grid = Grid((array.shape[1], array.shape[0], 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    return Volume(array.T[None, :, :, None], grid, path.stem, files=(path,))
