"""Read NRRD and MetaImage files: SimpleITK parses the geometry in their headers; the pixels are read here.

SimpleITK returns uninitialised memory for a compressed stream that is too short, and crashes on some headers. It gets a
header without pixels, made of those lines of the file's header that describe the geometry.
"""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import EnvironmentFault, InputError, Notice
from napari_seg.formats.endings import ITK_ENDINGS, has_ending
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.formats.voxels import (
    DEFLATE_LIMIT,
    Inflated,
    bunzipped,
    check_finite,
    check_memory,
    fill,
    read_to_end,
    rest_notices,
    stream_faults,
    to_native_byte_order,
)
from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.volume import Source, Volume

if TYPE_CHECKING:
    from SimpleITK import Image, ImageFileReader

_MAX_HEADER_BYTES = 1 << 23

_ENCODINGS = {"gz": "gzip", "bz2": "bzip2", "txt": "text", "ascii": "text"}
"""Synonyms of NRRD encodings."""

_PIXEL_FIELDS = {"datafile", "encoding", "byteskip", "lineskip", "elementdatafile", "compresseddata", "headersize"}
"""Header fields about the location and encoding of the pixels, not the geometry."""

_MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
"""NRRD space units that mean millimetres, which ITK assumes for all lengths."""

_PATIENT_SPACES = {"right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps"}
"""NRRD spaces whose axes are those of the patient; ITK reads no others as such."""

_DOMAIN_KINDS = {"domain", "space", "time", "none", "???"}
"""Kinds of NRRD axes that are positions; other axes count the components of a voxel."""


@dataclass(frozen=True, eq=False)
class ItkImage:
    """Image of an NRRD or MetaImage file.

    Attributes:
        array: (C, I, J, K).
        grid: grid of (I, J, K).
        words: keys and values of an NRRD file besides its fields.
        notices: warnings about the file.
    """

    array: NDArray
    grid: Grid
    words: dict[str, str]
    notices: tuple[Notice, ...] = ()


def read_itk(files: Sequence[Path], one_slice: bool = False) -> Volume:
    """Read the one volume in an NRRD or MetaImage file, (1, I, J, K) in the type of the file.

    Args:
        files: the file.
        one_slice: accept a single slice.

    Raises:
        InputError: `file.*`, the file is damaged or its pixels are missing; `data.*`, not one scalar, finite,
            three-dimensional image; `geometry.*`.
        EnvironmentFault: `environment.memory`, the image does not fit in memory.
    """
    (path,) = files
    image = read_image(path)
    if image.array.shape[0] != 1:
        raise InputError(
            "data.not_scalar",
            f"{path.name} holds {image.array.shape[0]} components per voxel; expected one; save the one to read alone",
        )
    if image.grid.shape[2] == 1 and not one_slice:
        raise InputError("data.2d", f"{path.name} holds one slice of {image.grid.shape[:2]}; expected a volume")
    check_finite(image.array, path)
    name = path.name.removesuffix(path.suffix)
    return Volume(image.array, image.grid, name, source=Source("itk", (path,)), notices=image.notices)


def pixel_files(path: Path) -> tuple[Path, ...]:
    """Return the pixel files that an NRRD or MetaImage header refers to; none for a damaged header.

    They have the path of the header, with links as they are. One that is missing has the path at which it is expected.
    """
    try:
        folder, parts = path.parent.resolve(), _read_header(path).parts
        found = [_file_named(path, named) or folder / named for named in parts]
        return tuple(path.parent / file.relative_to(folder) for file in found)
    except (InputError, OSError):  # reading the file raises the reason
        return ()


def with_pixel_files(files: Iterable[Path]) -> tuple[Path, ...]:
    """Return files, and behind each header of NRRD or MetaImage the files of its pixels.

    Headers of different scans are often equal, so only all of these files together tell scans apart.
    """
    found = [one for file in files for one in (file, *(pixel_files(file) if has_ending(file, ITK_ENDINGS) else ()))]
    return tuple(dict.fromkeys(found))


def stated_size(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the shape that the header of a file states, and the lengths of a voxel in mm; pixels are not read.

    Both have an entry for each spatial axis, three or more; a length that the header does not state is NaN.

    Raises:
        InputError: `file.*`, the file is damaged.
    """
    header = _read_header(path)
    names = ("sizes", "spacings") if header.is_nrrd else ("dimsize", "elementspacing")
    try:
        sizes, lengths = ([float(word) for word in header.fields.get(name, "").split()] for name in names)
        directions = re.findall(r"none|\([^)]*\)", header.fields.get("spacedirections", ""), re.IGNORECASE)
        if directions:
            vectors = [
                [float(word) for word in one.strip("()").split(",")] if one[0] == "(" else [] for one in directions
            ]
            lengths = [math.hypot(*vector) for vector in vectors]
    except ValueError as error:
        text = f"{path.name} states a size or a spacing that is no number; it is damaged"
        raise InputError("file.bad_header", text) from error
    kinds = header.fields.get("kinds", "").lower().split() if header.is_nrrd else []
    components = [n for n, kind in enumerate(kinds) if kind not in _DOMAIN_KINDS]
    components = components or [n for n, one in enumerate(directions) if one[0] != "("]
    kept = [n for n in range(len(sizes)) if n not in components]
    stated = [lengths[n] if n < len(lengths) else math.nan for n in kept]
    missing = 3 - len(kept)
    return (*(int(sizes[n]) for n in kept), *[1] * missing), (*stated, *[math.nan] * missing)


def read_image(path: Path) -> ItkImage:
    """Read an NRRD or MetaImage file of three dimensions.

    Raises:
        InputError: `file.*`, `data.not_scalar`, `data.4d` and the like, `geometry.*`.
        EnvironmentFault: `environment.memory`, the image does not fit in memory.
    """
    header = _read_header(path)
    units = re.findall(r'"([^"]*)"', header.fields.get("spaceunits", ""))
    if others := [unit for unit in units if unit.strip().lower() not in _MILLIMETRES]:
        text = f"{path.name} has lengths in {others[0]}; expected mm; export it in mm"
        raise InputError("geometry.units", text)
    layout = _layout(header, path)
    array, rest = _read_pixels(header, layout, path)
    notices = rest_notices(rest, path)
    if not _is_in_patient(header):
        text = f"{path.name} has no orientation in the patient; left and right are guesses"
        notices = (Notice("geometry.no_orientation", text), *notices)
    return ItkImage(array, layout.grid, header.words, notices)


def to_itk(array: NDArray, grid: Grid) -> Image:
    """Return a SimpleITK image of an array (I, J, K) on a grid."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array.T)
    affine = RAS_FROM_LPS @ grid.affine
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(grid.spacing_mm)).ravel().tolist())
    return image


# header


@dataclass(frozen=True)
class _Header:
    """Header of a file.

    Attributes:
        is_nrrd: whether the file is NRRD; otherwise it is MetaImage.
        fields: name in lower case and without spaces -> value.
        words: keys and values that are no fields.
        parts: names of the pixel files; empty if the pixels follow the header.
        size: size in bytes.
        geometry: header with the same geometry and type, and without pixels.
    """

    is_nrrd: bool
    fields: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    size: int = 0
    geometry: bytes = b""


def _read_header(path: Path) -> _Header:
    with stream_faults(path), path.open("rb") as file:
        lines = _lines(file)
        return _parsed(next(lines, b""), lines, path)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a header, and end at its maximum size; a scan is large, and its header is at its beginning."""
    left = _MAX_HEADER_BYTES
    while line := file.readline(left):
        left -= len(line)
        yield line


def _parsed(first: bytes, lines: Iterator[bytes], path: Path) -> _Header:
    if not first:
        raise InputError("file.empty", f"{path.name} has 0 bytes; copy or export it again")
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    if is_nrrd and not re.match(rb"NRRD\d{4}\r?\n", first):
        raise InputError("file.bad_header", f"{path.name} is no NRRD file, in spite of its name")
    fields, words, geometry = dict[str, str](), dict[str, str](), list[bytes]()
    size, has_end = 0, False
    for line in chain([first], lines):
        size += len(line)
        text = line.strip().decode("utf-8", "surrogateescape")
        name, mark, value = text.partition(":" if is_nrrd else "=")
        name = name.replace(" ", "").replace("\t", "").lower()
        if not text and is_nrrd:
            has_end = True
            break
        if is_nrrd and value.startswith("="):
            key, _, value = _word(line.rstrip(b"\r\n")).partition(":=")
            words[key.strip()] = re.sub(r"\\([n\\])", lambda found: "\n" if found[1] == "n" else "\\", value)
        elif not text.startswith("#"):
            if mark:
                fields[name] = value.strip()
            if name not in _PIXEL_FIELDS:
                geometry.append(line.strip())
            if name == "elementdatafile" or (name == "datafile" and _is_list(value)):
                has_end = True
                break
    if not has_end and (size == _MAX_HEADER_BYTES or not is_nrrd):
        raise InputError("file.bad_header", f"{path.name} has a header that does not end; it is damaged")
    named = fields.get("datafile" if is_nrrd else "elementdatafile", "")
    parts = () if not named or named.upper() == "LOCAL" else _parts(named, lines, path)
    geometry += [b"encoding: raw", b"", b""] if is_nrrd else [b"ElementDataFile = LOCAL", b""]
    return _Header(is_nrrd, fields, words, parts, size, b"\n".join(geometry))


def _is_in_patient(header: _Header) -> bool:
    """Return whether a header states axes of the patient; NRRD has other spaces, such as that of the scanner."""
    if not header.is_nrrd:
        return bool(header.fields.keys() & {"transformmatrix", "orientation", "rotation"})
    space = header.fields.get("space", "").lower()
    return space.removesuffix("-time").removesuffix("t") in _PATIENT_SPACES


def _word(line: bytes) -> str:
    """Decode a line as UTF-8, which NRRD requires, or as Latin-1, which older programs write."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _is_list(value: str) -> bool:
    return value.split()[:1] in (["LIST"], ["list"], ["List"])


def _parts(named: str, further: Iterable[bytes], path: Path) -> tuple[str, ...]:
    """Return the names of the pixel files: a single name, a list in the further lines, or a numbered pattern."""
    if _is_list(named):
        return tuple(text for line in further if (text := line.strip().decode("utf-8", "surrogateescape")))
    pattern = re.fullmatch(r"(\S.*?%0?\d*d\S*)\s+(-?\d+)\s+(-?\d+)(?:\s+(-?\d+))?(?:\s+\d+)?", named)
    if pattern is None or "%" in pattern[1].replace("%", "", 1) or _file_named(path, named) is not None:
        return (named,)
    first, last, step = int(pattern[2]), int(pattern[3]), int(pattern[4] or 1)
    numbers = range(first, last + (1 if step > 0 else -1), step or 1)
    if not 0 < len(numbers) <= _MAX_HEADER_BYTES:
        raise InputError("file.bad_header", f"{path.name} has an impossible range of numbered pixel files")
    return tuple(pattern[1] % number for number in numbers)


@dataclass(frozen=True)
class _Layout:
    """Layout of the pixels in a file.

    Attributes:
        sizes: sizes of the axes in the file, the fastest first.
        range_axis: axis of the components of a voxel; None if there is one component.
        dtype: type of a component, in the file's byte order.
        grid: grid of the voxels.
    """

    sizes: tuple[int, ...]
    range_axis: int | None
    dtype: np.dtype
    grid: Grid


@contextmanager
def name_for_itk(path: Path) -> Iterator[str]:
    """Yield a name under which ITK finds a file.

    ITK opens files by UTF-8 names, which Windows takes for names in its own encoding: it finds no file below
    `C:\\Users\\Müller` (https://github.com/InsightSoftwareConsortium/ITK/issues/4388). There, the folder of such a file
    is the current one within the block, and the file has its bare name.

    Args:
        path: the file; its name has ASCII characters only.
    """
    if sys.platform != "win32" or str(path).isascii():
        yield str(path)
    else:
        with _changing_folder, chdir(path.parent):
            yield path.name


_changing_folder = threading.Lock()
"""Held while the current folder, of which a process has one, is another."""


def _layout(header: _Header, path: Path) -> _Layout:
    import SimpleITK

    try:
        with TemporaryFolder() as folder:
            copy = Path(folder, f"header{path.suffix.lower()}")
            copy.write_bytes(header.geometry)
            reader = SimpleITK.ImageFileReader()
            reader.SetImageIO("NrrdImageIO" if header.is_nrrd else "MetaImageIO")
            with name_for_itk(copy) as name:
                reader.SetFileName(name)
                reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    except OSError as error:
        text = f"the folder for temporary files can't be written to ({error.strerror}); make room there, or set TMPDIR"
        raise EnvironmentFault("environment.temporary", text) from error
    sizes, components = [int(n) for n in reader.GetSize()], int(reader.GetNumberOfComponents())
    kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    number = re.search(r"(\d+)-bit (signed|unsigned|float)", kind)
    if number is None or "complex" in kind:
        raise InputError("data.not_scalar", f"{path.name} holds complex numbers; expected one number a voxel")
    letter = {"signed": "i", "unsigned": "u", "float": "f"}[number[2]]
    dtype = np.dtype(f"{'>' if _is_big_endian(header) else '<'}{letter}{int(number[1]) // 8}")
    spatial = list(sizes)
    while len(spatial) > 3 and spatial[-1] == 1:
        spatial.pop()
    if len(spatial) > 3:
        text = f"{path.name} has shape {tuple(spatial)}; expected one volume of three dimensions"
        raise InputError(f"data.{len(spatial)}d", f"{text}; save the one to read alone")
    grid = _grid(reader, spatial)
    if components == 1:
        return _Layout(tuple(sizes), None, dtype, grid)
    axis = _range_axis(header, components) if header.is_nrrd else 0
    if axis is None:
        raise InputError("data.not_scalar", f"{path.name} does not mark the axis of the components of a voxel")
    return _Layout((*sizes[:axis], components, *sizes[axis:]), axis, dtype, grid)


def _range_axis(header: _Header, components: int) -> int | None:
    sizes, kinds = header.fields.get("sizes", "").split(), header.fields.get("kinds", "").split()
    found = [n for n, kind in enumerate(kinds) if kind.lower() not in _DOMAIN_KINDS]
    if not found:
        directions = re.findall(r"none|\([^)]*\)", header.fields.get("spacedirections", ""), re.IGNORECASE)
        found = [n for n, direction in enumerate(directions) if direction.lower() == "none"]
    return found[0] if len(found) == 1 and sizes[found[0] : found[0] + 1] == [str(components)] else None


def _is_big_endian(header: _Header) -> bool:
    if header.is_nrrd:
        return header.fields.get("endian", "little").lower() == "big"
    return _is_true(header.fields.get("binarydatabyteordermsb") or header.fields.get("elementbyteordermsb"))


def _is_true(value: str | None) -> bool:
    return (value or "").lower() in ("true", "t", "1", "yes", "y")


def _grid(reader: ImageFileReader, sizes: Sequence[int]) -> Grid:
    dimension = reader.GetDimension()
    kept = min(dimension, 3)
    affine = np.eye(4)
    directions = np.reshape(reader.GetDirection(), (dimension, dimension))
    affine[:kept, :kept] = (directions * np.array(reader.GetSpacing()))[:kept, :kept]
    affine[:kept, 3] = reader.GetOrigin()[:kept]
    i, j, k = (*sizes, 1, 1)[:3]
    return Grid((i, j, k), RAS_FROM_LPS @ affine)


# pixels


def _read_pixels(header: _Header, layout: _Layout, path: Path) -> tuple[NDArray, int]:
    """Return the array (C, I, J, K), and the number of bytes after it in the files."""
    files = [_pixel_file(path, named) for named in header.parts] or [path]
    count = prod(layout.sizes)
    claimed = count * layout.dtype.itemsize
    size = sum(file.stat().st_size for file in files) - (0 if header.parts else header.size)
    encoding = _encoding(header, path)
    limit = {"raw": 1, "gzip": DEFLATE_LIMIT, "text": layout.dtype.itemsize, "hex": 1}.get(encoding, claimed)
    if claimed > max(size, 0) * limit or count % len(files):
        text = (
            f"{path.name} has {max(size, 0)} bytes of pixels in {len(files)} file(s), but its header implies {claimed}"
        )
        raise InputError("file.bad_header", f"{text}; it is truncated or damaged; copy or export it again")
    check_memory(layout.sizes, layout.dtype, layout.dtype, path.name)
    flat = np.empty(count, layout.dtype)
    rest, each = 0, count // len(files)
    for number, file in enumerate(files):
        room = flat[number * each : (number + 1) * each]
        start = 0 if header.parts else header.size
        with stream_faults(file), file.open("rb") as stored:
            stored.seek(_start(header, stored, start, room.nbytes))
            if encoding in ("text", "hex"):
                rest += _fill_from_text(room, stored, encoding, file)
                continue
            with _decoded(stored, encoding, file) as stream:
                if header.is_nrrd and encoding != "raw":
                    stream.read(max(_number(header, "byteskip"), 0))
                fill(room.view(np.uint8).data, stream, file)
                rest += read_to_end(stream, claimed, file)
    array = to_native_byte_order(flat).reshape(layout.sizes, order="F")
    array = array[None] if layout.range_axis is None else np.moveaxis(array, layout.range_axis, 0)
    return array.reshape(len(array), *layout.grid.shape, order="F"), rest


def _encoding(header: _Header, path: Path) -> str:
    if header.is_nrrd:
        named = header.fields.get("encoding", "").lower()
        encoding = _ENCODINGS.get(named, named)
        if encoding not in ("raw", "gzip", "bzip2", "text", "hex"):
            raise InputError("file.bad_header", f"{path.name} has encoding {named!r}; expected raw, gzip or bzip2")
        return encoding
    if "binarydata" in header.fields and not _is_true(header.fields["binarydata"]):
        return "text"
    return "gzip" if _is_true(header.fields.get("compresseddata")) else "raw"


def _start(header: _Header, stored: IO[bytes], start: int, count: int) -> int:
    """Return the byte offset of the stream of pixels in a file."""
    stored.seek(start)
    for _ in range(min(_number(header, "lineskip"), _MAX_HEADER_BYTES)):
        if not stored.readline(_MAX_HEADER_BYTES):
            break
    start, skip = stored.tell(), _number(header, "byteskip") if header.is_nrrd else _number(header, "headersize")
    if skip < 0:  # NRRD: the pixels are the last bytes of the file
        return max(stored.seek(0, 2) - count, start)
    return start + (skip if not header.is_nrrd or _encoding(header, Path()) == "raw" else 0)


def _number(header: _Header, name: str) -> int:
    value = header.fields.get(name, "0")
    return int(value) if re.fullmatch(r"-?\d{1,15}", value) else 0


@contextmanager
def _decoded(stored: IO[bytes], encoding: str, path: Path) -> Iterator[IO[bytes]]:
    if encoding == "gzip":
        yield Inflated(stored)  # type: ignore[misc]
    elif encoding == "bzip2":
        with bunzipped(stored, path) as stream:
            yield stream
    else:
        yield stored


def _fill_from_text(room: NDArray, stored: IO[bytes], encoding: str, path: Path) -> int:
    """Fill an array from numbers in text or hexadecimal form, and return the number of bytes after them."""
    try:
        if encoding == "hex":
            values = np.frombuffer(bytes.fromhex(stored.read().decode("ascii")), room.dtype)
        else:
            values = np.array(stored.read().split()).astype(room.dtype)
    except ValueError:
        raise InputError("file.bad_header", f"{path.name} has pixels that are not {encoding}; it is damaged") from None
    if len(values) < len(room):
        raise InputError("file.truncated", f"{path.name} is truncated: {len(values)} of {len(room)} voxels are present")
    room[:] = values[: len(room)]
    return (len(values) - len(room)) * room.itemsize


def _pixel_file(path: Path, named: str) -> Path:
    """Return the pixel file with some name in a header; it must lie in the folder of the header or below it."""
    found = _file_named(path, named)
    if found is None:
        shown = PurePosixPath(named.replace("\\", "/")).name
        raise InputError(
            "file.bad_header",
            f"{path.name} refers to the pixel file {shown}, which is missing; put it next to the header",
        )
    return found


def _file_named(path: Path, named: str) -> Path | None:
    """Return the file with some name in a header, also with backslashes or in another case; None if it is missing.

    Raises:
        InputError: `file.outside`, the file lies neither in the folder of the header nor below it; `file.bad_header`.
    """
    if "\0" in named:
        raise InputError("file.bad_header", f"{path.name} has zero bytes in the name of its pixel file; it is damaged")
    folder = path.parent.resolve()
    for text in dict.fromkeys((named, named.replace("\\", "/"))):
        target = Path(os.path.normpath(folder / text))
        is_inside = folder in target.parents and not re.match("[A-Za-z]:", text)
        if is_inside:  # only now: on Windows, resolving a share connects to its host
            target = target.parent.resolve() / target.name
        if not is_inside or folder not in target.parents:
            raise InputError(
                "file.outside",
                f"{path.name} refers to pixels outside of its folder; put the pixel file next to it",
            )
        if target.is_file():
            return target
        if target.parent.is_dir():
            alike = [file for file in target.parent.iterdir() if file.name.casefold() == target.name.casefold()]
            if len(alike) == 1 and alike[0].is_file():
                return alike[0]
    return None


def _unreadable(path: Path, error: RuntimeError) -> InputError:
    text = str(error)
    if "orthonormal" in text or "singular" in text.lower() or "determinant" in text:
        return InputError(
            "geometry.shear", f"the axes of {path.name} are not at right angles; expected a straight grid"
        )
    return InputError(
        "file.bad_header",
        f"{path.name} can't be read: it is truncated, damaged or of another format; copy or export it again",
    )
