"""Images that SimpleITK reads: NRRD and MetaImage."""

from __future__ import annotations

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
    if not _says_how_it_lies(path):
        text = f"{path.name} does not say how it lies in the patient; left and right are guesses"
        notices = (Notice("geometry.no_orientation", text),)
    return Volume(image.array, image.grid, path.name.removesuffix(path.suffix), files=(path,), notices=notices)


def read_image(path: Path) -> ItkImage:
    """Any NRRD or MetaImage of three dimensions.

    Raises:
        InputError: `file.*`, `data.not_scalar`, `data.4d` and the like, `geometry.shear`.
    """
    import SimpleITK

    _check_own_pixels(path)
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


def _header(path: Path) -> list[str]:
    """The lines of the header; "" follows it, or the keyword that ends it."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror}") from error
    if not head:
        raise InputError("file.empty", f"{path.name} has 0 bytes; copy or export it again")
    lines = []
    for line in head.split(b"\n"):
        lines.append(line.decode("latin-1").strip())
        if not lines[-1] or lines[-1].replace(" ", "").startswith("ElementDataFile="):
            break
    return lines


def _check_own_pixels(path: Path) -> None:
    """A header may name any file of this machine as its pixels; one in its own folder is meant."""
    for line in _header(path):
        key, _, value = line.partition(":") if path.suffix.lower() in (".nrrd", ".nhdr") else line.partition("=")
        if key.replace(" ", "").lower() not in ("datafile", "elementdatafile") or not value.strip():
            continue
        named = value.strip()
        if named.split()[0].upper() in ("LOCAL", "LIST"):
            continue
        if Path(named).is_absolute() or Path(named).name != named:
            raise InputError(
                "file.outside", f"{path.name} names pixels outside of its own folder; expected a file beside it"
            )


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


def _says_how_it_lies(path: Path) -> bool:
    """Whether directions stand in the header; SimpleITK takes the identity where they don't."""
    keys = {line.partition(":")[0].partition("=")[0].strip().lower() for line in _header(path)}
    return bool(keys & {"space", "transformmatrix", "orientation", "rotation"})


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
