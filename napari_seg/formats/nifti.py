"""NIfTI files to volumes, label maps to NIfTI files.

nibabel understands the header; the bytes are streamed here, once, because neither nibabel nor ITK notices a gzip
stream that was cut or altered, and because a header may claim more than the file can hold.
"""

from __future__ import annotations

import gzip
import os
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
from napari_seg.formats.voxels import (
    DEFLATE_LIMIT,
    check_finite,
    check_room,
    fill,
    native,
    read_to_end,
    rest_notices,
    stream_faults,
    truncated,
)
from napari_seg.geometry import Grid
from napari_seg.volume import Segmentation, Source, Volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_NOT_INTENSITIES = {1005: "matrices", 1007: "vectors", 1008: "points", 1009: "triangles", 1010: "quaternions"}
_MAX_EXCESS = 1e-6
"""What rounding may add to the length of a quaternion; it turns the scan by 0.1 degrees at most."""

_MAX_EXCESS_BESIDE_SFORM = 1e-2

_PIXDIM_TOLERANCE = 0.01
"""Relative difference between the voxel sizes of sform and pixdim above which they contradict each other."""

_MM_OF_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def read_nifti(path: str | os.PathLike[str], volume: int | None = None) -> Volume:
    """The one volume in a .nii or .nii.gz file or a pair of .hdr and .img, on the grid that its header gives.

    The array, (1, I, J, K), keeps the type of the file, in this machine's byte order; where the header asks for
    rescaling it becomes float32. Its index axes run as in the file.

    Args:
        path: of the file, or of either of a pair.
        volume: which one, counted from 0, of a file that holds several; None: there must be one.

    Raises:
        InputError: `file.*`, not NIfTI or damaged; `data.*`, not one scalar, finite, three-dimensional image;
            `geometry.*`, the header does not say where the image lies, or says it twice and differently.
    """
    path = Path(path)
    array, grid, notices = _load(path, volume)
    if grid.shape[2] == 1:
        raise InputError("data.2d", f"{path.name} holds one slice of {grid.shape[:2]}; expected a volume")
    files = tuple(dict.fromkeys(_parts(path)))
    return Volume(array[None], grid, name=_stem(path), source=Source("nifti", files), notices=notices)


def read_nifti_files(files: Sequence[Path], volume: int | None = None) -> Volume:
    """`read_nifti` of the first of some files, as `read_in_worker` expects it."""
    return read_nifti(files[0], volume)


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI by its content, zipped or not, whatever it is called."""
    try:
        with _opened(path) as (stream, _):
            return _says_nifti(stream.read(348))
    except InputError:
        return False


def write_nifti(segmentation: Segmentation, path: str | os.PathLike[str]) -> None:
    """Writes a label map as NIfTI; see `write_map`."""
    write_map(segmentation.array, segmentation.grid, path)


def write_map(array: NDArray[np.unsignedinteger], grid: Grid, path: str | os.PathLike[str]) -> None:
    """Writes a map (I, J, K) as NIfTI, in its own type and on its own grid, or leaves no file at all.

    The affine stands in sform and qform. The file gets its name, replacing one that had it, only after it was
    read back and found equal.

    Raises:
        OutputError: `output.not_written`, the folder is missing, full or closed to us; `output.not_equal`, what
            came back from the disk is not what was meant.
    """
    import nibabel

    path = Path(path)
    ending = nifti_ending(path)
    if not ending:
        raise OutputError("output.not_written", f"{path.name} ends neither in .nii nor in .nii.gz; give it such a name")
    image = nibabel.nifti1.Nifti1Image(array, grid.affine)
    image.set_sform(grid.affine, code="scanner")
    image.set_qform(grid.affine, code="scanner")
    if _widest_gap_mm(image.get_qform(), grid) > 0.1 * min(grid.spacing_mm):
        # A quaternion can't hold axes that are a hair off a right angle; over a long scan the hair becomes a voxel.
        image.set_qform(None, code="unknown")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"napari-seg"
    with verified_write(path, ending.lower()) as hidden:  # nibabel zips by the ending
        try:
            nibabel.loadsave.save(image, hidden)
        except nibabel.spatialimages.HeaderDataError as error:
            raise OutputError("output.not_written", f"{path} could not be written: {error}") from error
        found, where, _ = _load(hidden)
        if found.dtype != array.dtype or not np.array_equal(found, array):
            raise OutputError("output.not_equal", f"{path.name} came back from the disk with other labels; try again")
        if not np.allclose(where.affine, grid.affine, rtol=1e-6, atol=1e-4):
            raise OutputError("output.not_equal", f"{path.name} came back from the disk with another affine")


def _load(path: Path, volume: int | None = None) -> tuple[NDArray, Grid, tuple[Notice, ...]]:
    """(I, J, K) array, its grid, and doubts; everything the header can tell is checked before pixels are read."""
    head, body = _parts(path)
    with _opened(head) as (stream, _):
        header, is_analyze = _read_header(stream, head)
    dtype = _scalar_type(header, head)
    shape, count = _shape(header, head, volume)
    grid, notices = _grid(header, shape, head)
    if is_analyze:
        text = f"{head.name} is in the Analyze format, which does not say how a scan lies; left and right are guesses"
        notices = (Notice("geometry.no_orientation", text),)
    first = _data_offset(header, head, least=0 if body != head else header.sizeof_hdr)
    slope, intercept = _scaling(header, head)
    image_bytes = prod(shape) * dtype.itemsize
    claimed = first + count * image_bytes
    with _opened(body) as (stream, is_zipped):
        size = body.stat().st_size
        if claimed > size * DEFLATE_LIMIT:
            raise InputError("file.bad_header", f"{body.name} has {size} bytes, but its header claims {claimed}")
        if claimed > size and not is_zipped:
            raise truncated(body, f"{size} of {claimed} bytes are there")
        wanted = np.dtype(np.float32) if (slope, intercept) != (1, 0) else dtype
        check_room(shape, dtype, wanted, body.name)
        stream.seek(first + (volume or 0) * image_bytes)
        array = np.empty(shape, dtype, order="F")
        fill(array.ravel(order="F").view(np.uint8).data, stream, body)
        behind = (count - 1 - (volume or 0)) * image_bytes
        rest = read_to_end(stream, claimed, body) - behind
    if rest < 0:
        raise truncated(body, f"{-rest} of {claimed} bytes are missing")
    array = native(array)
    if (slope, intercept) != (1, 0):
        array = _rescaled(array, slope, intercept)
    check_finite(array, path)
    return array, grid, (*notices, *rest_notices(rest, body))


def _stem(path: Path) -> str:
    """A file's name without what calls it NIfTI or one of a pair."""
    return path.name.removesuffix(nifti_ending(path) or pair_ending(path))


def _parts(path: Path) -> tuple[Path, Path]:
    """The files that hold the header and the voxels; one and the same unless they are a pair."""
    ending = pair_ending(path)
    if not ending:
        return path, path
    stem = path.name.removesuffix(ending)
    parts = []
    for kind in (".hdr", ".img"):
        endings = [e for e in (ending, kind, f"{kind}.gz", kind.upper(), f"{kind}.gz".upper()) if kind in e.lower()]
        there = [file for e in endings if (file := path.with_name(stem + e)).is_file()]
        if not there:
            raise InputError(
                "file.pair_missing",
                f"{path.name} is one of a pair; {stem}{kind} is missing; put it into the same folder",
            )
        parts.append(there[0])
    return parts[0], parts[1]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """The file's bytes, unzipped if they are zipped, and whether they are."""
    if not path.is_file():
        raise InputError("file.unreadable", f"{path.name} is no file, or a link that leads nowhere")
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
    """The header, and whether it is one of Analyze 7.5, of which NIfTI keeps the layout but for orientation."""
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
                raise truncated(path, f"{len(block)} bytes of a header of {size} are there")
            if block[place] == magic:
                return kind(block[:size], endianness=endianness, check=False), False
            if kind is Nifti1Header and pair_ending(path) and block[place][:1] != b"n":
                header = kind(block[:size], endianness=endianness, check=False)
                for field in ("qform_code", "sform_code", "intent_code", "xyzt_units", "scl_inter"):
                    header[field] = 0
                return header, True
    if _says_nifti(block):
        size = int.from_bytes(block[:4], "little")
        raise InputError("file.bad_header", f"{path.name} says that its header has {size} bytes; NIfTI has 348 or 540")
    raise InputError("file.not_nifti", f"{path.name} is not a NIfTI file, whatever its name says")


def _says_nifti(block: bytes) -> bool:
    """Whether the mark of NIfTI-1 or 2 stands in its place in the first bytes of a file."""
    return block[344:348] in (b"n+1\0", b"ni1\0") or block[4:8] in (b"n+2\0", b"ni2\0")


def _scalar_type(header: Nifti1Header, path: Path) -> np.dtype:
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except Exception:  # a KeyError or a HeaderDataError of nibabel: the code is in no table
        dtype = np.dtype(np.void)
    if dtype.kind == "c" or dtype.names:
        raise InputError("data.not_scalar", f"{path.name} holds colours or complex numbers; expected one number each")
    if dtype.kind not in "iuf" or int(header["bitpix"]) != dtype.itemsize * 8:
        raise InputError("file.bad_header", f"{path.name} names data type {code} with {int(header['bitpix'])} bits")
    return dtype


def _shape(header: Nifti1Header, path: Path, volume: int | None) -> tuple[tuple[int, int, int], int]:
    """(I, J, K) of a volume, and how many there are."""
    ndim = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : ndim + 1]]
    if not 1 <= ndim <= 7 or min(sizes) < 1:
        raise InputError("file.bad_header", f"{path.name} claims {ndim} dimensions of sizes {sizes}")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    count = prod(sizes[3:])
    held = _NOT_INTENSITIES.get(int(header["intent_code"]))
    if len(sizes) > 3 and volume is None:
        code, text = (
            f"data.{len(sizes)}d",
            f"{path.name} has shape {tuple(sizes)}; expected one volume of three dimensions",
        )
        if held is not None:
            raise InputError(code, f"{text} with intensities; found {held}")
        raise ChoiceNeeded(code, f"{text}; choose one with --volume, 0 to {count - 1}", "volume", count)
    if held is not None:
        raise InputError("data.not_scalar", f"{path.name} holds {held}; expected intensities")
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
        raise InputError("file.bad_header", f"{path.name} says its voxels start at byte {offset:g}")
    return int(offset)


def _scaling(header: Nifti1Header, path: Path) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):  # the standard: no scaling
        return 1.0, 0.0
    if not np.isfinite(intercept):
        raise InputError("file.bad_header", f"{path.name} adds {intercept} to every voxel (scl_inter)")
    return slope, intercept


def _grid(header: Nifti1Header, shape: tuple[int, int, int], path: Path) -> tuple[Grid, tuple[Notice, ...]]:
    """Where the header puts the image, in mm, and doubts about it."""
    from nibabel.spatialimages import HeaderDataError

    _mend_qform(header)
    # Corrupt headers overflow in nibabel's quaternion arithmetic; what comes of it is judged by Grid.
    with np.errstate(all="ignore"):
        try:
            sform, _ = header.get_sform(coded=True)
            qform = _qform(header)
            fallback = header.get_base_affine() if sform is None and qform is None else None
        except (HeaderDataError, ValueError) as error:
            raise InputError("file.bad_header", f"{path.name} has an unusable orientation: {error}") from error
    notices = []
    if sform is not None and qform is None and header["qform_code"] > 0:
        text = f"{path.name} has a qform that is no orientation; its sform is used"
        notices.append(Notice("geometry.qform_unusable", text))
    if sform is None and qform is None:
        text = f"{path.name} does not say how it lies (sform and qform are 0); left and right are guesses"
        notices.append(Notice("geometry.no_orientation", text))
    affine = next(form for form in (sform, qform, fallback) if form is not None)
    unit = int(header["xyzt_units"]) & 0b111
    if unit not in _MM_OF_UNIT:
        raise InputError("file.bad_header", f"{path.name} gives its lengths in unit {unit}, which NIfTI does not know")
    to_mm = np.diag([_MM_OF_UNIT[unit]] * 3 + [1.0])
    grid = Grid(shape, to_mm @ affine)
    if sform is not None and qform is not None:
        gap_mm = _widest_gap_mm(to_mm @ qform, grid)
        if not gap_mm <= 0.5 * min(grid.spacing_mm):
            raise InputError(
                "geometry.form_conflict",
                f"{path.name} gives two places for the scan: its sform and qform lie up to {gap_mm:.3g} mm apart; "
                "expected at most half a voxel; correct one, or set its code to 0",
            )
    if sform is not None:
        notices += _pixdim_notices(header, grid, _MM_OF_UNIT[unit], path)
    return grid, tuple(notices)


def _qform(header: Nifti1Header) -> NDArray[np.float64] | None:
    """Return the qform; None if it is not coded, or unusable beside an sform."""
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


def _mend_qform(header: Nifti1Header) -> None:
    """Correct in place what the standard allows to be read, and nibabel does not.

    A pixdim[0] of 0 means 1. A quaternion that rounding made longer than 1 has no real part. Beside an sform, which the
    qform is compared with, more is accepted: longer quaternions, voxel sizes below 0, and a pixdim[0] that is neither 1
    nor -1, where the sform tells whether an axis is mirrored.
    """
    has_sform = header["sform_code"] > 0
    if header["pixdim"][0] == 0 or (has_sform and abs(header["pixdim"][0]) != 1):
        is_mirrored = has_sform and np.linalg.det(header.get_sform()[:3, :3]) < 0
        header["pixdim"][0] = -1 if is_mirrored else 1
    if has_sform:
        header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    fields = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.linalg.norm([np.float64(header[field]) for field in fields]))
    if 1 < length <= 1 + (_MAX_EXCESS_BESIDE_SFORM if has_sform else _MAX_EXCESS):
        for field in fields:
            header[field] = header[field] / (length * (1 + 1e-7))


def _pixdim_notices(header: Nifti1Header, grid: Grid, mm: float, path: Path) -> list[Notice]:
    """Return a doubt if the voxel sizes of the sform and of pixdim differ, as no qform was there to be compared."""
    sizes_mm = np.abs(header["pixdim"][1:4].astype(np.float64)) * mm
    if not np.isfinite(sizes_mm).all() or not sizes_mm.all():  # it does not give any
        return []
    if np.allclose(sizes_mm, grid.spacing_mm, rtol=_PIXDIM_TOLERANCE, atol=0):
        return []
    by_sform, by_pixdim = (
        f"{' x '.join(f'{n:.4g}' for n in sizes)} mm ({np.prod(sizes):.4g} mm3 a voxel)"
        for sizes in (grid.spacing_mm, sizes_mm)
    )
    text = (
        f"{path.name} gives two voxel sizes: its sform {by_sform}, its pixdim {by_pixdim}; the sform is used; check "
        "which one is right before you trust a volume"
    )
    return [Notice("geometry.pixdim_conflict", text)]


def _widest_gap_mm(affine: NDArray[Any], grid: Grid) -> float:
    """How far another affine moves any voxel of a grid, in mm."""
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in grid.shape], indexing="ij"), axis=-1).reshape(8, 3)
    corners = ends @ affine[:3, :3].T + affine[:3, 3]
    return float(np.linalg.norm(corners - grid.corners_mm, axis=1).max())


def _rescaled(array: NDArray, slope: float, intercept: float) -> NDArray[np.float32]:
    answer = np.empty(array.shape, np.float32, order="F")
    with np.errstate(over="ignore"):  # what overflows float32 is found as infinite and refused
        for k in range(array.shape[2]):
            answer[..., k] = array[..., k] * np.float64(slope) + intercept
    return answer
