"""Read 2D images (PNG, TIFF, ...) as one plane of voxels of 1 mm, so that lengths in mm are lengths in pixels.

The index axes are column and row, as in MONAI's `PILReader`, and an axis of one voxel. A 2D image has no position in a
patient; its grid is an axial plane, seen upright.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from threading import RLock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from napari_seg.errors import ChoiceNeeded, InputError, NapariSegError, Notice
from napari_seg.formats.endings import IMAGE2D_ENDINGS, has_ending
from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.memory import check_fits
from napari_seg.volume import Source, Volume

COLOURS = 3
"""Number of channels of an RGB image."""

_LIMIT = RLock()
"""Held while Pillow's limit of pixels, which all threads share, is lifted."""

_FORMATS = ("PNG", "TIFF", "JPEG", "BMP", "GIF")


def is_image2d(path: Path) -> bool:
    """Return whether a file name has the ending of a 2D image."""
    return has_ending(path, IMAGE2D_ENDINGS)


def count_pages(path: Path) -> int:
    """Return the number of pages or frames of a 2D image.

    Raises:
        InputError: `file.not_picture` or `file.unreadable`.
    """
    with _opened(path) as image:
        return int(getattr(image, "n_frames", 1))


def stated_size(path: Path) -> tuple[int, int]:
    """Return the number of columns and rows that the header of a 2D image states; pixels are not read.

    Raises:
        InputError: `file.not_picture` or `file.unreadable`.
    """
    with _opened(path) as image:
        return image.size


def read_image2d(path: Path, channels: int | None = 1, page: int | None = None) -> Volume:
    """Read a 2D image in grey (1, I, J, 1) or RGB (3, I, J, 1); transparency is ignored, with a notice.

    Args:
        path: file to read.
        channels: 1 for grey; 3 for RGB, with equal channels for a grey image; None for RGB if the image has colours.
        page: number of the page or frame, counted from 0, of a file that holds several; None if it must hold one.

    Raises:
        InputError: `file.not_picture`, `file.pages`, `file.unreadable` or `data.nonfinite`.
    """
    array, is_transparent = _pixels(path, is_label=False, page=page)
    if not np.isfinite(array).all():
        raise InputError("data.nonfinite", f"{path.name} holds NaN or infinite values; expected numbers")
    if array.ndim == 3 and channels is None and not np.ptp(array, axis=2).any():
        channels = 1
    if array.ndim == 3 and channels not in (None, COLOURS):
        array = _grey(array)
    if array.ndim == 2:
        array = np.repeat(array[..., None], COLOURS if channels == COLOURS else 1, axis=2)
    volume = _volume_of(array, path)
    if not is_transparent:
        return volume
    text = f"{path.name} is transparent in parts; the colours below are used as they are stored"
    return replace(volume, notices=(Notice("data.alpha", text),))


def in_colours(volume: Volume, channels: int) -> Volume:
    """Return a 2D image in grey for a model with one channel and in RGB for one with three; others are unchanged.

    Args:
        volume: any scan.
        channels: number of the model's channels.
    """
    count = len(volume.array)
    if volume.source.format != "image2d" or count == channels or {count, channels} != {1, COLOURS}:
        return volume
    if channels == COLOURS:
        return replace(volume, array=np.repeat(volume.array, COLOURS, axis=0), channel_names=())
    grey = _grey(volume.array[..., 0].transpose(2, 1, 0))
    return replace(volume, array=grey.T[None, ..., None], channel_names=())


def _grey(array: NDArray) -> NDArray:
    """Return the brightness (J, I) of RGB (J, I, 3)."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L"))


def read_image2d_files(files: Sequence[Path], channels: int | None = None, page: int | None = None) -> Volume:
    """Read the first of some files with `read_image2d`; a reader for `read_in_worker`."""
    return read_image2d(files[0], channels, page)


def read_label_image2d(path: Path, page: int | None = None) -> Volume:
    """Read a label map (1, I, J, 1) from a 2D image: grey values, or palette indices, as in PASCAL VOC.

    A GIF whose palette is grey has grey values: every writer numbers the colours of a GIF in an order of its own.

    Args:
        path: file to read.
        page: as for `read_image2d`.

    Raises:
        InputError: `file.not_picture`; `file.pages`; `labels.colour`, the image has colours.
    """
    array, _ = _pixels(path, is_label=True, page=page)
    if array.ndim == 3:
        if np.ptp(array[..., :3], axis=2).any():
            raise InputError(
                "labels.colour", f"{path.name} is a label map in colours; expected grey values or a palette (mode P)"
            )
        array = array[..., 0]
    return _volume_of(array[..., None], path)


def _volume_of(array: NDArray, path: Path) -> Volume:
    grid = Grid((array.shape[1], array.shape[0], 1), RAS_FROM_LPS)
    return Volume(array.transpose(2, 1, 0)[..., None], grid, path.stem, source=Source("image2d", (path,)))


def _pixels(path: Path, *, is_label: bool, page: int | None) -> tuple[NDArray, bool]:
    """Return pixels (J, I) or (J, I, 3) after applying the EXIF orientation, and whether any of them is transparent.

    Args:
        path: file to read.
        is_label: return the stored values of a label map.
        page: see `read_image2d`.
    """
    with _opened(path) as image:
        pages = getattr(image, "n_frames", 1)
        if page is None and pages > 1:
            text = f"{path.name} holds {pages} pages; expected one 2D image"
            if is_label:
                raise InputError("file.pages", text)
            raise ChoiceNeeded("file.pages", f"{text}; choose one with --volume, 0 to {pages - 1}", "volume", pages)
        if page is not None and not 0 <= page < pages:
            text = f"{path.name} holds {pages} pages; found --volume {page}, expected 0 to {pages - 1}"
            raise InputError("file.pages", text)
        for number in (0, page) if page else (0,):  # to seek a page of a GIF is to decode those before
            image.seek(number)
            # the image, the rotated image, the array, and its copy for the other process
            check_fits(prod(image.size) * len(image.getbands()) * 4, f"reading {path.name}")
        upright = ImageOps.exif_transpose(image)  # as viewers show it and annotators see it
        if is_label and upright.mode == "1":  # a 1-bit mask has the labels 0 and 1, as in training
            return np.asarray(upright).astype(np.uint8), False
        if is_label and image.format == "GIF" and _has_grey_palette(upright):
            return np.asarray(upright.convert("L")), False
        is_transparent = not is_label and _is_transparent(upright)
        if upright.mode in ("1", "L", "LA", "La"):
            return np.asarray(upright.convert("L")), is_transparent
        keeps = is_label or upright.mode.startswith(("I", "F"))  # more than 8 bits of grey
        return np.asarray(upright if keeps else upright.convert("RGB")), is_transparent


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a 2D image of any size: its pixels count towards the memory that may be used, see `check_fits`.

    Pillow would refuse more than 179 million pixels, and warn of half as many, whatever the memory.

    Raises:
        InputError: `file.not_picture` or `file.unreadable`.
    """
    # given a path, PIL would map an uncompressed TIFF into memory with the row length of the rotated image
    with _errors_named(path), path.open("rb") as file, _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(file, formats=_FORMATS) as image:
                yield image
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Convert errors of Pillow, which are of any type, into an `InputError` about a file."""
    try:
        yield
    except NapariSegError:
        raise
    except Exception as error:  # Pillow lets errors of any kind through
        if isinstance(error, OSError) and error.errno:
            raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror}") from error
        kind = type(error).__name__  # its text may contain the whole path, with names of people
        text = f"{path.name} can't be read as a 2D image ({kind}): it is damaged, or of another format than its name"
        raise InputError("file.not_picture", text) from error


def _has_grey_palette(image: Image.Image) -> bool:
    """Return whether all colours of a palette are grey, as in a GIF of grey values, whose writers renumber them."""
    colours = np.reshape(image.getpalette() or [0, 1, 2], (-1, COLOURS)) if image.mode == "P" else np.array([[0, 1, 2]])
    return not np.ptp(colours, axis=1).any()


def _is_transparent(image: Image.Image) -> bool:
    """Return whether an image has a pixel that is not opaque."""
    if not image.has_transparency_data or image.mode.startswith(("I", "F")):
        return False
    return bool((np.asarray(image.convert("RGBA").getchannel("A")) < 255).any())
