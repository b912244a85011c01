"""Images that SimpleITK reads: NRRD and MetaImage."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice
from napari_seg.geometry import Grid
from napari_seg.volume import Volume

if TYPE_CHECKING:
    from SimpleITK import Image, ImageFileReader

_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 22
_COMPRESSION_LIMIT = 1032
"""Deflate turns no byte into more than this many; a header that claims more is not true."""


@dataclass(frozen=True, eq=False)
class ItkImage:
    """An image as it stands in a file.

    Attributes:
        array: (C, I, J, K), read-only.
        grid: where (I, J, K) lies.
        words: what the file says beside.
    """

    array: NDArray
    grid: Grid
    words: dict[str, str]


def read_itk(files: Sequence[Path]) -> Volume:
    """The one volume in an NRRD or MetaImage file, (1, I, J, K) in the type of the file.

    Raises:
        InputError: `file.*`, it is damaged or its pixels lie in a file elsewhere; `data.*`, not one scalar, finite,
            three-dimensional image; `geometry.*`.
    """
    (path,) = files
    image = read_image(path)
    if image.array.shape[0] != 1:
        raise InputError(
            "data.not_scalar",
            f"{path.name} holds {image.array.shape[0]} numbers a voxel; expected one; save the wanted one alone",
        )
    if image.grid.shape[2] == 1:
        raise InputError("data.2d", f"{path.name} holds one slice of {image.grid.shape[:2]}; expected a volume")
    if image.array.dtype.kind == "f" and not np.isfinite([image.array.min(), image.array.max()]).all():
        count = int(np.count_nonzero(~np.isfinite(image.array)))
        raise InputError(
            "data.nonfinite",
            f"{path.name} has {count} voxels of {image.array.size} that are NaN or infinite; replace them by numbers "
            "first",
        )
    notices: tuple[Notice, ...] = ()
    if not _read_header(path).words.keys() & {"space", "transformmatrix", "orientation", "rotation"}:
        text = f"{path.name} does not say how it lies in the patient; left and right are guesses"
        notices = (Notice("geometry.no_orientation", text),)
    return Volume(image.array, image.grid, path.name.removesuffix(path.suffix), files=(path,), notices=notices)


def read_image(path: Path) -> ItkImage:
    """Any NRRD or MetaImage of three dimensions.

    Raises:
        InputError: `file.*`, `data.not_scalar`, `data.4d` and the like, `geometry.shear`.
    """
    import SimpleITK

    header = _read_header(path)
    _check_own_pixels(header, path)
    _check_zipped(header, path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    sizes = [*reader.GetSize()]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 3:
        text = f"{path.name} has shape {tuple(sizes)}; expected one volume of three dimensions"
        raise InputError(f"data.{len(sizes)}d", f"{text}; save the wanted one alone")
    _check_claim(reader, path)
    reader.SetExtractSize([*reader.GetSize()[:3], *([0] * (reader.GetDimension() - 3))])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    array = SimpleITK.GetArrayFromImage(image)
    if array.dtype.kind not in "iuf":
        raise InputError("data.not_scalar", f"{path.name} holds complex numbers; expected one number a voxel")
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    channels = array.T  # (..., J, I, C) before
    while channels.ndim < 4:
        channels = channels[..., None]
    words = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    return ItkImage(channels, _grid(image, channels.shape[1:]), words)


def to_itk(array: NDArray, grid: Grid) -> Image:
    """SimpleITK's image of an array (I, J, K)."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array.T)
    affine = _RAS_FROM_LPS @ grid.affine
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(grid.spacing_mm)).ravel().tolist())
    return image


def _grid(image: Image, shape: tuple[int, ...]) -> Grid:
    dimension = image.GetDimension()
    affine = np.eye(4)
    directions = np.reshape(image.GetDirection(), (dimension, dimension))
    affine[:dimension, :dimension] = directions * np.array(image.GetSpacing())
    affine[:dimension, 3] = image.GetOrigin()
    i, j, k = shape
    return Grid((i, j, k), _RAS_FROM_LPS @ affine)


@dataclass(frozen=True)
class _Header:
    """The words at the beginning of a file.

    Attributes:
        words: in lower case and without spaces.
        beside: the file that holds the pixels, as it is named; "" where they follow.
        size: bytes of the header.
    """

    words: dict[str, str]
    beside: str
    size: int


def _read_header(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror}") from error
    if not head:
        raise InputError("file.empty", f"{path.name} has 0 bytes; copy or export it again")
    mark = ":" if path.suffix.lower() in (".nrrd", ".nhdr") else "="
    words, beside, size = {}, "", 0
    for line in head.split(b"\n"):
        size += len(line) + 1
        key, _, value = line.decode("latin-1").strip().partition(mark)
        key = key.replace(" ", "").lower()
        words[key] = value.replace(" ", "").lower()
        if key in ("datafile", "elementdatafile"):
            beside = "" if value.strip().upper() == "LOCAL" else value.strip()
        if key == "elementdatafile" or (not key and mark == ":"):  # the last line of MetaImage's and NRRD's header
            break
    else:
        if len(head) == _HEADER_BYTES or mark == "=":
            raise InputError("file.bad_header", f"{path.name} has a header without end; it is damaged")
    return _Header(words, beside, size)


def _check_own_pixels(header: _Header, path: Path) -> None:
    """A header may name any file of this machine as its pixels; one in its own folder is meant."""
    named = header.beside
    if named and (named.split()[0].upper() == "LIST" or Path(named).is_absolute() or Path(named).name != named):
        text = f"{path.name} names pixels outside of its own folder, or many files; expected one file beside it"
        raise InputError("file.outside", text)


def _check_zipped(header: _Header, path: Path) -> None:
    """Whether zipped pixels are whole: SimpleITK gives zeros for what is missing."""
    if header.words.get("encoding") in ("gzip", "gz"):
        window_bits = zlib.MAX_WBITS + 16  # a stream of gzip, with a checksum at its end
    elif header.words.get("compresseddata") == "true":
        window_bits = zlib.MAX_WBITS
    else:
        return
    stream = zlib.decompressobj(window_bits)
    try:
        with (path.with_name(header.beside) if header.beside else path).open("rb") as file:
            file.seek(0 if header.beside else header.size)
            while not stream.eof and (chunk := file.read(_CHUNK_BYTES)):
                while chunk and not stream.eof:  # some at a time, however well it is compressed
                    stream.decompress(chunk, _CHUNK_BYTES)
                    chunk = stream.unconsumed_tail
    except zlib.error as error:
        text = f"{path.name} was damaged: its zip check fails ({error}); copy or export it again"
        raise InputError("file.bad_checksum", text) from error
    except OSError as error:
        raise InputError("file.unreadable", f"the pixels of {path.name} can't be read: {error.strerror}") from error
    if not stream.eof:
        raise InputError("file.truncated", f"{path.name} was cut short: its zip stream has no end; copy it again")


def _check_claim(reader: ImageFileReader, path: Path) -> None:
    """What a header claims must be possible for the file, before memory is taken for it."""
    import SimpleITK

    pixel = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    bits = next((n for n in (64, 32, 16, 8) if str(n) in pixel), 64)
    claimed = int(np.prod(reader.GetSize(), dtype=object)) * reader.GetNumberOfComponents() * bits // 8
    files = (
        [path, *(p for p in path.parent.glob(f"{path.stem}.*") if p != path)]
        if path.suffix in (".nhdr", ".mhd")
        else [path]
    )
    size = sum(file.stat().st_size for file in files)
    if claimed > size * _COMPRESSION_LIMIT:
        raise InputError("file.bad_header", f"{path.name} has {size} bytes, but its header claims {claimed}")


def _unreadable(path: Path, error: RuntimeError) -> InputError:
    text = str(error)
    if "orthonormal" in text or "singular" in text.lower() or "determinant" in text:
        return InputError(
            "geometry.shear", f"the axes of {path.name} are not at right angles; expected a straight grid"
        )
    return InputError(
        "file.bad_header",
        f"{path.name} can't be read: it is cut, damaged or not what its name says; copy or export it again",
    )
