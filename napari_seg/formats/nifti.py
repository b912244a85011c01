"""Read volumes from NIfTI files, and write volumes and label maps to NIfTI files.

nibabel parses the header. The voxels are read here, in one pass, because neither nibabel nor ITK notices a gzip stream
that was truncated or altered, and because the size in a header may exceed the file.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import ChoiceNeeded, InputError, Notice, OutputError
from napari_seg.formats.atomic import verified_write
from napari_seg.formats.endings import nifti_ending, pair_ending
from napari_seg.formats.label_table import MARK, from_xml, to_xml
from napari_seg.formats.voxels import (
    DEFLATE_LIMIT,
    check_finite,
    check_memory,
    fill,
    read_to_end,
    rest_notices,
    stream_faults,
    to_native_byte_order,
    truncated,
)
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, Source, Volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_NOT_INTENSITIES = {1005: "matrices", 1007: "vectors", 1008: "points", 1009: "triangles", 1010: "quaternions"}
_MAX_QUATERNION_EXCESS = 1e-6
"""Maximum rounding error of the length of a quaternion; it rotates the scan by at most 0.1 degrees."""

_MAX_QUATERNION_EXCESS_WITH_SFORM = 1e-2

_PIXDIM_TOLERANCE = 0.01
"""Maximum relative difference between the voxel sizes of sform and pixdim."""

_MM_OF_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}

_MAX_EXTENSION_BYTES = 1 << 22
"""Number of bytes after the header in which a table of labels is looked for."""


def read_nifti(
    path: str | os.PathLike[str], volume: int | None = None, channels: int = 1, *, one_slice: bool = False
) -> Volume:
    """Read a volume from a .nii or .nii.gz file or a pair of .hdr and .img.

    The array (C, I, J, K) has the index axes and the type of the file, in native byte order; if the header requires
    rescaling, it is float32.

    Args:
        path: the file, or either file of a pair.
        volume: number of the volume, counted from 0, for a file that holds several; None if it must hold one.
        channels: required channels; if more than one, the volumes of a file that holds so many are its channels.
        one_slice: accept a single slice, as in the label map of a 2D image.

    Raises:
        InputError: `file.*`, not NIfTI or damaged; `data.*`, the file does not hold one 3D image of finite scalars;
            `channels.count`, it holds several, but not as many as required; `geometry.*`, the position in the header
            is missing or contradictory.
    """
    path = Path(path)
    array, grid, notices = _load(path, volume, channels)
    if grid.shape[2] == 1 and not one_slice:
        raise InputError("data.2d", f"{path.name} holds one slice of {grid.shape[:2]}; expected a volume")
    files = tuple(dict.fromkeys(_parts(path)))
    return Volume(array, grid, name=_stem(path), source=Source("nifti", files), notices=notices)


def read_nifti_files(
    files: Sequence[Path], volume: int | None = None, channels: int = 1, one_slice: bool = False
) -> Volume:
    """Read the first file with `read_nifti`; has the signature that `read_in_worker` requires."""
    return read_nifti(files[0], volume, channels, one_slice=one_slice)


def is_nifti(path: Path) -> bool:
    """Return whether a file is NIfTI by its content, compressed or not, whatever its name."""
    try:
        with _opened(path) as (stream, _):
            return _has_nifti_magic(stream.read(348))
    except InputError:
        return False


def count_volumes(path: Path) -> int:
    """Return the number of volumes that the header of a file states; 1 for a damaged file, which reading reports."""
    shape = _stated_shape(path)
    return prod(shape[3:]) if 4 <= len(shape) <= 7 else 1


def count_slices(path: Path) -> int:
    """Return the number of slices that the header of a file states; 1 for a damaged file, which reading reports."""
    shape = _stated_shape(path)
    return shape[2] if 3 <= len(shape) <= 7 else 1


def has_times(path: Path) -> bool:
    """Return whether the header of a file states a unit of time or a time between volumes; false for a damaged file."""
    header = _header(path)
    if header is None:
        return False
    unit, step = int(header["xyzt_units"]) & 0x38, float(header["pixdim"][4])
    return unit in (8, 16, 24) or (np.isfinite(step) and step not in (0, 1))  # s, ms, us


def stated_size(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the shape that the header of a file states, and the lengths of a voxel in mm; pixels are not read.

    The shape has three axes or more. A length that the header does not state is NaN.

    Raises:
        InputError: `file.*`, the file is no NIfTI file or is damaged.
    """
    header_path, _ = _parts(path)
    with _opened(header_path) as (stream, _):
        header, _ = _read_header(stream, header_path)
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise InputError("file.bad_header", f"{path.name} claims {count} dimensions; NIfTI has 1 to 7")
    shape = [int(n) for n in header["dim"][1 : count + 1]]
    mm = _MM_OF_UNIT.get(int(header["xyzt_units"]) & 0b111, 1.0)
    lengths = [abs(float(length)) * mm or math.nan for length in header["pixdim"][1:4]]
    return (*shape, *[1] * (3 - count)), tuple(lengths)


def stated_affine(path: Path) -> NDArray[np.float64]:
    """Return the affine that the header of a file states, unchecked; pixels are not read.

    Raises:
        InputError: `file.*`, the file is no NIfTI file or is damaged.
    """
    header_path, _ = _parts(path)
    with _opened(header_path) as (stream, _):
        return np.asarray(_read_header(stream, header_path)[0].get_best_affine())


def _stated_shape(path: Path) -> tuple[int, ...]:
    """Return the shape that the header of a file states; () for a damaged file."""
    header = _header(path)
    return () if header is None else tuple(int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1])


def _header(path: Path) -> Any:
    """Return the header of a file; None for a damaged file."""
    try:
        header_path, _ = _parts(path)
        with _opened(header_path) as (stream, _):
            return _read_header(stream, header_path)[0]
    except InputError:
        return None


def header_segments(path: Path) -> tuple[tuple[Segment, ...], tuple[Notice, ...]]:
    """Return the segments that an extension of the header names, see `label_table`; and a notice if it is damaged.

    Raises:
        InputError: `file.*`, the file is no NIfTI file or is damaged.
    """
    header_path, data_path = _parts(path)
    with _opened(header_path) as (stream, _):
        header, is_analyze = _read_header(stream, header_path)
        size = int(header.sizeof_hdr)
        stream.seek(size)
        length = _MAX_EXTENSION_BYTES
        if data_path == header_path:
            length = min(length, max(0, _data_offset(header, path, size) - size))
        block = b"" if is_analyze else stream.read(length)
    place = 4
    while block[:1] not in (b"", b"\0") and place + 16 <= len(block):
        (extension_size,) = struct.unpack_from(f"{header.endianness}i", block, place)
        if extension_size < 16:
            break
        content = block[place + 8 : place + extension_size].strip(b"\0 \t\r\n")
        if content.startswith(b"<") and MARK in content:
            try:
                return from_xml(content), ()
            except ValueError as error:
                text = f"{path.name} has a table of names in its header that can't be read ({error}); it was ignored"
                return (), (Notice("labels.bad_table", text),)
        place += extension_size
    return (), ()


def write_nifti(segmentation: Segmentation, path: str | os.PathLike[str]) -> None:
    """Write a label map as NIfTI, with a table of its segments in the header, see `label_table`; see `write_map`."""
    _write([segmentation.array], segmentation.grid, Path(path), segmentation.segments)


def write_volume(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write the intensities of a scan as NIfTI; several channels become the fourth axis. See `write_map`.

    Args:
        volume: scan to write; the array keeps its type.
        path: file to write; ends in .nii or .nii.gz.

    Raises:
        OutputError: see `write_map`.
    """
    _write(list(volume.array), volume.grid, Path(path))


def write_map(array: NDArray, grid: Grid, path: str | os.PathLike[str]) -> None:
    """Write a map (I, J, K) as NIfTI, with its own type and grid; read it back from a temporary file, then rename it.

    The affine is stored as sform and as qform.

    Args:
        array: (I, J, K) labels, confidence or other values.
        grid: grid of the array.
        path: file to write; ends in .nii or .nii.gz. An existing file is replaced.

    Raises:
        OutputError: `output.not_written`, the folder is missing or not writable, or NIfTI has no such type of values;
            `output.disk_full`; `output.not_equal`, the file read back differs.
    """
    _write([array], grid, Path(path))


def _write(channels: Sequence[NDArray], grid: Grid, path: Path, segments: Sequence[Segment] = ()) -> None:
    """Write channels (I, J, K), as a fourth axis if there are several, and compare the file read back."""
    import nibabel

    ending = nifti_ending(path)
    if not ending:
        raise OutputError("output.not_written", f"{path.name} ends neither in .nii nor in .nii.gz; give it such a name")
    array = channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)
    try:
        image = nibabel.nifti1.Nifti1Image(array, grid.affine, dtype=array.dtype)
    except (nibabel.spatialimages.HeaderDataError, ValueError) as error:
        raise OutputError("output.not_written", f"{path} could not be written: {error}") from error
    image.set_sform(grid.affine, code="scanner")
    image.set_qform(grid.affine, code="scanner")
    if _max_distance_mm(image.get_qform(), grid) > 0.1 * min(grid.spacing_mm):
        # A quaternion can't hold axes that are slightly off a right angle; over a long scan this adds up to a voxel.
        image.set_qform(None, code="unknown")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"napari-seg"
    table = to_xml(segments)
    if table:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, table))
    with verified_write(path, ending.lower()) as temporary_path:  # nibabel compresses by the ending
        try:
            nibabel.loadsave.save(image, temporary_path)
        except nibabel.spatialimages.HeaderDataError as error:
            raise OutputError("output.not_written", f"{path} could not be written: {error}") from error
        for number, channel in enumerate(channels):
            (found,), found_grid, _ = _load(temporary_path, number)
            if found.dtype != channel.dtype.newbyteorder("=") or not np.array_equal(found, channel):
                raise OutputError("output.not_equal", f"{path.name} has other values when it is read back; try again")
            if not np.allclose(found_grid.affine, grid.affine, rtol=1e-6, atol=1e-4):
                raise OutputError("output.not_equal", f"{path.name} has another affine when it is read back")
        if table and header_segments(temporary_path)[0] != from_xml(table):
            raise OutputError("output.not_equal", f"{path.name} has other names when it is read back; try again")


def _load(path: Path, volume: int | None = None, channels: int = 1) -> tuple[NDArray, Grid, tuple[Notice, ...]]:
    """Return an array (C, I, J, K), its grid and notices; the whole header is checked before voxels are read.

    Args:
        path: file to read.
        volume: number of the one volume to read; None to read all.
        channels: number of volumes that the file may hold if all are read; it may always hold one.
    """
    header_path, data_path = _parts(path)
    with _opened(header_path) as (stream, _):
        header, is_analyze = _read_header(stream, header_path)
    dtype = _scalar_type(header, header_path)
    shape, count = _shape(header, header_path, volume, channels)
    loaded = count if volume is None else 1
    grid, notices = _grid(header, shape, header_path)
    if is_analyze:
        text = f"{header_path.name} is in the Analyze format, which has no orientation; left and right are guesses"
        notices = (Notice("geometry.no_orientation", text),)
    data_offset = _data_offset(header, header_path, least=0 if data_path != header_path else header.sizeof_hdr)
    slope, intercept = _scaling(header, header_path)
    image_bytes = prod(shape) * dtype.itemsize
    claimed = data_offset + count * image_bytes
    with _opened(data_path) as (stream, is_compressed):
        size = data_path.stat().st_size
        if claimed > size * DEFLATE_LIMIT:
            raise InputError("file.bad_header", f"{data_path.name} has {size} bytes, but its header claims {claimed}")
        if claimed > size and not is_compressed:
            raise truncated(data_path, f"{size} of {claimed} bytes are present")
        dtype_read = np.dtype(np.float32) if (slope, intercept) != (1, 0) else dtype
        check_memory((*shape, loaded), dtype, dtype_read, data_path.name)
        stream.seek(data_offset + (volume or 0) * image_bytes)
        array = np.empty((*shape, loaded), dtype, order="F")
        fill(array.ravel(order="F").view(np.uint8).data, stream, data_path)
        bytes_after = (count - loaded - (volume or 0)) * image_bytes
        surplus_bytes = read_to_end(stream, claimed, data_path) - bytes_after
    if surplus_bytes < 0:
        raise truncated(data_path, f"{-surplus_bytes} of {claimed} bytes are missing")
    array = to_native_byte_order(array)
    if (slope, intercept) != (1, 0):
        array = _rescaled(array, slope, intercept)
    check_finite(array, path)
    return np.moveaxis(array, -1, 0), grid, (*notices, *rest_notices(surplus_bytes, data_path))


def _stem(path: Path) -> str:
    """Return a file name without its ending."""
    return path.name.removesuffix(nifti_ending(path) or pair_ending(path))


def _parts(path: Path) -> tuple[Path, Path]:
    """Return the file with the header and the file with the voxels; they are the same unless they are a pair."""
    ending = pair_ending(path)
    if not ending:
        return path, path
    stem = path.name.removesuffix(ending)
    parts = []
    for kind in (".hdr", ".img"):
        endings = [e for e in (ending, kind, f"{kind}.gz", kind.upper(), f"{kind}.gz".upper()) if kind in e.lower()]
        existing_files = [file for e in endings if (file := path.with_name(stem + e)).is_file()]
        if not existing_files:
            raise InputError(
                "file.pair_missing",
                f"{path.name} is one of a pair; {stem}{kind} is missing; put it into the same folder",
            )
        parts.append(existing_files[0])
    return parts[0], parts[1]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """Yield the uncompressed bytes of a file, and whether the file is compressed."""
    if not path.is_file():
        raise InputError("file.unreadable", f"{path.name} is not a file, or is a broken link")
    with stream_faults(path), open(path, "rb") as plain:
        magic = plain.read(2)
        if not magic:
            raise InputError("file.empty", f"{path.name} has 0 bytes; copy or export it again")
        plain.seek(0)
        if magic == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=plain) as stream:
                yield stream, True  # type: ignore[misc]
        else:
            yield plain, False


def _read_header(stream: IO[bytes], path: Path) -> tuple[Nifti1Header, bool]:
    """Return the header, and whether it is one of Analyze 7.5, which has NIfTI's layout but no orientation."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = stream.read(540)
    letter = b"i" if pair_ending(path) else b"+"
    kinds: tuple[tuple[type[Nifti1Header], bytes, slice], ...] = (
        (Nifti1Header, b"n%b1\0" % letter, slice(344, 348)),
        (Nifti2Header, b"n%b2\0" % letter, slice(4, 8)),
    )
    for kind, magic, place in kinds:
        for endianness, order in (("<", "little"), (">", "big")):
            size = kind.sizeof_hdr
            if block[:4] != size.to_bytes(4, order):
                continue
            if len(block) < size:
                raise truncated(path, f"{len(block)} of {size} header bytes are present")
            if block[place] == magic:
                return kind(block[:size], endianness=endianness, check=False), False
            if kind is Nifti1Header and pair_ending(path) and block[place][:1] != b"n":
                header = kind(block[:size], endianness=endianness, check=False)
                for field in ("qform_code", "sform_code", "intent_code", "xyzt_units", "scl_inter"):
                    header[field] = 0
                return header, True
    if _has_nifti_magic(block):
        size = int.from_bytes(block[:4], "little")
        raise InputError("file.bad_header", f"{path.name} claims a header of {size} bytes; NIfTI has 348 or 540")
    text = f"{path.name} is no NIfTI file, in spite of its name: its first bytes are no header; copy or export it again"
    raise InputError("file.not_nifti", f"{text}, or rename it if it is of another format")


def _has_nifti_magic(block: bytes) -> bool:
    """Return whether the first bytes of a file hold the magic string of NIfTI-1 or NIfTI-2."""
    return block[344:348] in (b"n+1\0", b"ni1\0") or block[4:8] in (b"n+2\0", b"ni2\0")


def _scalar_type(header: Nifti1Header, path: Path) -> np.dtype:
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except Exception:  # a KeyError or a HeaderDataError of nibabel: the code is in no table
        dtype = np.dtype(np.void)
    if dtype.kind == "c" or dtype.names:
        raise InputError(
            "data.not_scalar", f"{path.name} holds colours or complex numbers; expected one real number per voxel"
        )
    if dtype.kind not in "iuf" or int(header["bitpix"]) != dtype.itemsize * 8:
        raise InputError("file.bad_header", f"{path.name} names data type {code} with {int(header['bitpix'])} bits")
    return dtype


def _shape(header: Nifti1Header, path: Path, volume: int | None, channels: int) -> tuple[tuple[int, int, int], int]:
    """Return the shape (I, J, K) of a volume, and the number of volumes."""
    ndim = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : ndim + 1]]
    if not 1 <= ndim <= 7 or min(sizes) < 1:
        raise InputError("file.bad_header", f"{path.name} claims {ndim} dimensions of sizes {sizes}")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    count = prod(sizes[3:])
    content = _NOT_INTENSITIES.get(int(header["intent_code"]))
    if len(sizes) > 3 and volume is None and channels > 1 and content is None:
        if count != channels:
            text = f"{path.name} holds {count} volumes; expected {channels}, one for each channel of the model"
            raise InputError("channels.count", text)
    elif len(sizes) > 3 and volume is None:
        code, text = (
            f"data.{len(sizes)}d",
            f"{path.name} has shape {tuple(sizes)}; expected one volume of three dimensions",
        )
        if content is not None:
            raise InputError(code, f"{text} with intensities; found {content}")
        raise ChoiceNeeded(code, f"{text}; choose one with --volume, 0 to {count - 1}", "volume", count)
    if content is not None:
        raise InputError("data.not_scalar", f"{path.name} holds {content}; expected intensities")
    if volume is not None and not 0 <= volume < count:
        raise InputError(
            "data.no_such_volume",
            f"{path.name} holds {count} volumes; found --volume {volume}, expected 0 to {count - 1}",
        )
    i, j, k = sizes[:3] + [1] * (3 - len(sizes))
    return (i, j, k), count


def _data_offset(header: Nifti1Header, path: Path, least: int) -> int:
    offset = float(header["vox_offset"])
    if not least <= offset < 2**63:  # NaN fails this too
        raise InputError("file.bad_header", f"{path.name} has its voxels at the impossible byte offset {offset:g}")
    return int(offset)


def _scaling(header: Nifti1Header, path: Path) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):  # NIfTI: no scaling
        return 1.0, 0.0
    if not np.isfinite(intercept):
        raise InputError("file.bad_header", f"{path.name} adds {intercept} to every voxel (scl_inter)")
    return slope, intercept


def _grid(header: Nifti1Header, shape: tuple[int, int, int], path: Path) -> tuple[Grid, tuple[Notice, ...]]:
    """Return the grid of the header in mm, and notices about it."""
    from nibabel.spatialimages import HeaderDataError

    _correct_qform(header)
    # Corrupt headers overflow in nibabel's quaternion arithmetic; `Grid` checks the result.
    with np.errstate(all="ignore"):
        try:
            sform, _ = header.get_sform(coded=True)
            qform = _qform(header)
            fallback = header.get_base_affine() if sform is None and qform is None else None
        except (HeaderDataError, ValueError) as error:
            raise InputError("file.bad_header", f"{path.name} has an unusable orientation: {error}") from error
    notices = []
    if sform is not None and qform is None and header["qform_code"] > 0:
        text = f"{path.name} has an unusable qform; its sform is used"
        notices.append(Notice("geometry.qform_unusable", text))
    if sform is None and qform is None:
        text = f"{path.name} has no orientation (sform and qform are 0); left and right are guesses"
        notices.append(Notice("geometry.no_orientation", text))
    affine = next(form for form in (sform, qform, fallback) if form is not None)
    unit = int(header["xyzt_units"]) & 0b111
    if unit not in _MM_OF_UNIT:
        raise InputError("file.bad_header", f"{path.name} has lengths in unit {unit}, which NIfTI does not define")
    to_mm = np.diag([_MM_OF_UNIT[unit]] * 3 + [1.0])
    grid = Grid(shape, to_mm @ affine)
    if sform is not None and qform is not None:
        gap_mm = _max_distance_mm(to_mm @ qform, grid)
        if not gap_mm <= 0.5 * min(grid.spacing_mm):
            raise InputError(
                "geometry.form_conflict",
                f"{path.name} has two positions for the scan: its sform and qform differ by up to {gap_mm:.3g} mm; "
                "expected at most half a voxel; correct one, or set its code to 0",
            )
    if sform is not None:
        notices += _pixdim_notices(header, grid, _MM_OF_UNIT[unit], path)
    return grid, tuple(notices)


def _qform(header: Nifti1Header) -> NDArray[np.float64] | None:
    """Return the qform; None if its code is 0, or if it is unusable and there is an sform."""
    from nibabel.spatialimages import HeaderDataError

    try:
        qform, _ = header.get_qform(coded=True)
    except (HeaderDataError, ValueError):
        if header["sform_code"] > 0:
            return None
        raise
    if qform is None or header["sform_code"] <= 0:
        return qform
    return qform if np.isfinite(qform).all() and np.linalg.det(qform) else None


def _correct_qform(header: Nifti1Header) -> None:
    """Correct, in place, a qform that the standard allows but nibabel refuses.

    A pixdim[0] of 0 means 1, and a quaternion that is longer than 1 by rounding has no real part. If there is an sform,
    with which the qform is compared, more is accepted: longer quaternions, negative voxel sizes, and a pixdim[0] other
    than 1 and -1; the sform then decides whether an axis is mirrored.
    """
    has_sform = header["sform_code"] > 0
    if header["pixdim"][0] == 0 or (has_sform and abs(header["pixdim"][0]) != 1):
        is_mirrored = has_sform and np.linalg.det(header.get_sform()[:3, :3]) < 0
        header["pixdim"][0] = -1 if is_mirrored else 1
    if has_sform:
        header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    fields = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.linalg.norm([np.float64(header[field]) for field in fields]))
    if 1 < length <= 1 + (_MAX_QUATERNION_EXCESS_WITH_SFORM if has_sform else _MAX_QUATERNION_EXCESS):
        for field in fields:
            header[field] = header[field] / (length * (1 + 1e-7))


def _pixdim_notices(header: Nifti1Header, grid: Grid, mm: float, path: Path) -> list[Notice]:
    """Return a notice if the voxel sizes of sform and pixdim differ."""
    sizes_mm = np.abs(header["pixdim"][1:4].astype(np.float64)) * mm
    if not np.isfinite(sizes_mm).all() or not sizes_mm.all():  # the header has no voxel sizes
        return []
    if np.allclose(sizes_mm, grid.spacing_mm, rtol=_PIXDIM_TOLERANCE, atol=0):
        return []
    by_sform, by_pixdim = (
        f"{' x '.join(f'{n:.4g}' for n in sizes)} mm ({np.prod(sizes):.4g} mm3 per voxel)"
        for sizes in (grid.spacing_mm, sizes_mm)
    )
    text = (
        f"{path.name} has two voxel sizes: {by_sform} by its sform, {by_pixdim} by its pixdim; the sform is used; "
        "check which one is right before using volumes"
    )
    return [Notice("geometry.pixdim_conflict", text)]


def _max_distance_mm(affine: NDArray[Any], grid: Grid) -> float:
    """Return the maximum distance in mm between voxels placed by another affine and by a grid."""
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in grid.shape], indexing="ij"), axis=-1).reshape(8, 3)
    corners = ends @ affine[:3, :3].T + affine[:3, 3]
    return float(np.linalg.norm(corners - grid.corners_mm, axis=1).max())


def _rescaled(array: NDArray, slope: float, intercept: float) -> NDArray[np.float32]:
    answer = np.empty(array.shape, np.float32, order="F")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, which is refused later
        for k in range(array.shape[2]):
            answer[:, :, k] = array[:, :, k] * np.float64(slope) + intercept
    return answer
