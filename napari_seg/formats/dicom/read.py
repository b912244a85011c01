"""DICOM series to volumes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice
from napari_seg.formats.decoders import read_apart
from napari_seg.formats.dicom.frames import Frame, frames_of
from napari_seg.formats.dicom.geometry import Stack, arrange
from napari_seg.formats.dicom.headers import DEFLATED, Header, quiet_pydicom, read_header
from napari_seg.formats.dicom.private_words import Tags
from napari_seg.formats.dicom.series import Series, find_series, series_name
from napari_seg.formats.voxels import check_room
from napari_seg.volume import DicomStack, Source, Volume

__all__ = ["Series", "find_series", "read_series", "stack_of"]

FEW_SLICES = 4

MAX_EXCESS = 0.25
"""How many more bytes of pixels than its header claims a file may hold, as a fraction: some are padded."""

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Transfer syntaxes of pixels as they are: implicit and explicit, little end first."""

_BIG_ENDIAN = "1.2.840.10008.1.2.2"

_PIXEL_KEYWORDS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
)


def read_series(
    files: Sequence[Path],
    volume: int | None = None,
    *,
    resample_tilt: bool = False,
    name: str = "",
    apart: bool = True,
) -> Volume:
    """The volume that the files of one series hold, in any order.

    The array is (1, I, J, K) over columns, rows and slices, rescaled by each slice's own slope and intercept. It
    keeps its integer type where the slopes are 1 and the values fit (CT fits int16); otherwise it becomes float32.

    Args:
        files: of the series.
        volume: which one, counted from 0, of a series that holds several at the same positions (see `volumes`) or
            of several kinds; None: there must be one.
        resample_tilt: shift the slices of a tilted gantry onto a straight grid, in float32 (see `tilt`).
        name: of the scan; "": as the first header gives it.
        apart: whether compressed pixels are decoded in a process of their own.

    Raises:
        InputError: `file.*`, a file is damaged; `series.*`, its images do not belong in one volume or are not grey;
            `geometry.*`, they do not lie on a regular grid.
    """
    own = name if len(files) == 1 else name and f"a file of {name}"
    headers = [read_header(Path(path), own) for path in files]
    if apart and any(_needs_decoder(header) for header in headers):
        read = partial(read_series, volume=volume, resample_tilt=resample_tilt, name=name, apart=False)
        return read_apart(read, [header.path for header in headers])
    first = headers[0].tags
    name = name or series_name(first)
    for header in headers:
        _check_scalar(header, name)
        _check_whole(header)
    stack = arrange(frames_among(headers), name, volume, tilted=resample_tilt)
    slices = _read_pixels(stack.frames, {header.path: header for header in headers}, name)
    notices = _notices(headers, len(stack.frames), name)
    if stack.is_tilted:
        from napari_seg.formats.dicom.tilt import straightened

        slices = straightened(slices, stack)
        text = f"the gantry of {name} was tilted; its slices were shifted onto a straight grid"
        notices = (*notices, Notice("geometry.tilt_resampled", text))
    by_file: dict[Path, list[int]] = {}
    for frame in stack.frames:
        by_file.setdefault(frame.path, []).append(frame.index)
    in_volume = tuple(tuple(sorted(set(indices))) for indices in by_file.values())
    return Volume(
        slices.transpose(2, 1, 0)[None],
        stack.grid,
        name=name,
        modality=str(first.get("Modality") or ""),
        source=Source("dicom", tuple(by_file), DicomStack(in_volume)),
        notices=notices,
    )


def stack_of(files: Sequence[Path], frames: Sequence[Sequence[int]] = ()) -> Stack:
    """Return where the slices of one volume lie, straight or tilted.

    Args:
        files: DICOM files, as of `Source.files`.
        frames: of each file those that belong to the volume, as of `DicomStack.frames`; empty: all.

    Raises:
        InputError: they do not fill a grid.
    """
    headers = [read_header(Path(path)) for path in files]
    return arrange(frames_among(headers, frames), series_name(headers[0].tags), tilted=True)


def frames_among(headers: Sequence[Header], frames: Sequence[Sequence[int]] = ()) -> list[Frame]:
    """Return the frames of files, copies of one instance once.

    Args:
        headers: of the files.
        frames: of each file those that count; empty: all.
    """
    found: dict[tuple, Frame] = {}
    for header, own in zip(headers, frames or repeat(None), strict=False):
        for frame in frames_of(header):
            if own is None or frame.index in own:
                found.setdefault(frame.identity, frame)
    return list(found.values())


def _needs_decoder(header: Header) -> bool:
    """Whether the pixels are compressed, so that a library in C or C++ would decode them."""
    return header.transfer_syntax not in ("", *_NATIVE, _BIG_ENDIAN, DEFLATED)


def _check_whole(header: Header) -> None:
    """Refuse a file whose uncompressed pixels are fewer, or many more, than its header claims."""
    if (expected := _claimed_bytes(header)) is None:
        return
    label, found = header.label, header.pixel_bytes
    if header.remaining_bytes < expected:
        raise InputError(
            "file.truncated",
            f"{label} was cut short: {header.remaining_bytes} of {expected} bytes of pixels are there; copy or export "
            "it again",
        )
    if found is not None and not expected <= found < expected * (1 + MAX_EXCESS):
        raise InputError(
            "file.bad_header",
            f"{label} holds {found} bytes of pixels, and its header claims {header.tags.get('Rows')} rows of "
            f"{header.tags.get('Columns')} pixels, in all {expected} bytes; expected both to agree; export it again",
        )


def _claimed_bytes(header: Header) -> int | None:
    """How many bytes of pixels a header claims; None where they are compressed, so that nobody can count them."""
    if header.transfer_syntax not in ("", *_NATIVE, _BIG_ENDIAN):
        return None
    sizes = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames")
    return (prod(_count(header.label, header.tags, keyword) for keyword in sizes) + 7) // 8


def _count(label: str, tags: Tags, keyword: str) -> int:
    value = tags.get(keyword)
    try:
        return 1 if value is None else int(value)
    except (TypeError, ValueError):
        raise InputError("file.bad_header", f"{label} has a {keyword} that is no number") from None


def _check_scalar(header: Header, name: str) -> None:
    label, tags = header.label, header.tags
    photometric = str(tags.get("PhotometricInterpretation") or "")
    if tags.get("SamplesPerPixel", 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise InputError(
            "series.colour", f"{label} in {name} is in colour ({photometric or 'unknown'}); expected grey values"
        )
    if tags.get("ModalityLUTSequence"):
        raise InputError("series.lookup_table", f"{label} in {name} maps its values by a table; expected a slope")


def _notices(headers: Sequence[Header], count: int, name: str) -> tuple[Notice, ...]:
    notices, every = [], [header.tags for header in headers]
    if count < FEW_SLICES:
        notices.append(Notice("geometry.few_slices", f"{name} has {count} slices; a whole scan has more"))
    if any(tags.get("PhotometricInterpretation") == "MONOCHROME1" for tags in every):
        notices.append(
            Notice("series.monochrome1", f"{name} is stored for display in negative; values are kept as they are")
        )
    if any(tags.get("LossyImageCompression") == "01" for tags in every):
        notices.append(Notice("series.lossy", f"{name} went through lossy compression; fine detail may be gone"))
    longer = [header for header in headers if (header.pixel_bytes or 0) > (_claimed_bytes(header) or np.inf) + 1]
    if longer:
        text = f"{longer[0].label} holds {longer[0].pixel_bytes} bytes of pixels, more than the "
        text = f"{text}{_claimed_bytes(longer[0])} that its header claims; what lies behind these was left out"
        notices.append(Notice("file.longer", f"{text} ({len(longer)} of {len(headers)} files)"))
    return tuple(notices)


def _read_pixels(frames: Sequence[Frame], headers: Mapping[Path, Header], name: str) -> NDArray:
    """(K, J, I), so that each slice is written in one go."""
    stack: NDArray[Any] | None = None
    for k, values in _decoded(frames, headers):
        frame = frames[k]
        if values.shape != (frame.rows, frame.columns):
            raise InputError(
                "file.bad_header",
                f"{frame.label} claims {frame.rows} rows of {frame.columns} and holds pixels of shape {values.shape}",
            )
        if stack is None:  # only now: a header's claim of gigabytes fails at its first frame
            dtype = _type_that_may_do(values.dtype, frames)
            check_room((len(frames), *values.shape), dtype, dtype, name)
            stack = np.empty((len(frames), *values.shape), dtype)
        if stack.dtype.kind in "iu" and not _holds(stack.dtype, values, int(frame.intercept)):
            stack = stack.astype(np.float32)
        if stack.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what is not finite is refused below
                stack[k] = values * np.float64(frame.slope) + frame.intercept
            if not np.isfinite([stack[k].min(), stack[k].max()]).all():
                raise InputError("data.nonfinite", f"{frame.label} holds NaN or infinite values; expected numbers")
        else:
            stack[k] = values
            if frame.intercept:  # what overflows on the way comes back, since the sum fits
                stack[k] += np.array(int(frame.intercept)).astype(stack.dtype)
    assert stack is not None
    return stack


def _type_that_may_do(stored: np.dtype, frames: Sequence[Frame]) -> np.dtype:
    """The type to begin with: whether all values fit shows only as they come."""
    if stored.kind == "f" or any(frame.slope != 1 or frame.intercept % 1 for frame in frames):
        return np.dtype(np.float32)
    if all(frame.intercept == 0 for frame in frames):
        return stored.newbyteorder("=")
    return np.dtype(np.int16 if stored.itemsize <= 2 else np.int32)


def _holds(dtype: np.dtype, values: NDArray, intercept: int) -> bool:
    limits = np.iinfo(dtype)
    return limits.min <= int(values.min()) + intercept and int(values.max()) + intercept <= limits.max


def _decoded(frames: Sequence[Frame], headers: Mapping[Path, Header]) -> Iterator[tuple[int, NDArray]]:
    """Each frame's number k and its stored values (J, I), file by file."""
    by_file: dict[Path, list[tuple[int, Frame]]] = {}
    for k, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append((k, frame))
    for path, members in by_file.items():
        slices: dict[int, list[tuple[int, Frame]]] = {}
        for k, frame in members:  # several of one stored frame if that is a mosaic
            slices.setdefault(frame.index, []).append((k, frame))
        indices = list(slices)
        plain = _read_plain(headers[path], indices)
        stored = _decode(headers[path], indices) if plain is None else plain
        for cut, values in zip(slices.values(), stored, strict=True):
            for k, frame in cut:
                row, column = frame.tile or (0, 0)
                yield (
                    k,
                    values if frame.tile is None else values[row : row + frame.rows, column : column + frame.columns],
                )


def _read_plain(header: Header, indices: list[int]) -> list[NDArray] | None:
    """The stored values (J, I) of some frames of a file of whole bytes, little end first; None of any other.

    The header has said all about them: the file need not be parsed again.
    """
    tags = header.tags
    syntax = header.transfer_syntax
    allocated, stored = (int(tags.get(keyword) or 0) for keyword in ("BitsAllocated", "BitsStored"))
    if syntax not in _NATIVE or allocated not in (8, 16) or not 0 < stored <= allocated:
        return None
    if not header.pixel_bytes or tags.get("HighBit") not in (None, stored - 1):
        return None
    shape = (int(tags["Rows"]), int(tags["Columns"]))
    signed = bool(tags.get("PixelRepresentation"))
    dtype = np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")
    with header.path.open("rb") as file:
        first = header.pixel_offset
        frames = []
        for index in indices:
            file.seek(first + index * prod(shape) * dtype.itemsize)
            values = np.fromfile(file, dtype, prod(shape))
            if values.size < prod(shape):
                return None
            if stored < allocated:  # what stands in the other bits is no part of the value
                values <<= allocated - stored
                values >>= allocated - stored
            frames.append(values.reshape(shape))
    return frames


def _decode(header: Header, indices: list[int]) -> Iterator[NDArray]:
    import pydicom
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(header.path, specific_tags=list(_PIXEL_KEYWORDS), force=True)
            syntax = dataset.file_meta.get("TransferSyntaxUID")
            if syntax is None:
                is_implicit, is_little = dataset.original_encoding
                syntax = UID(_NATIVE[0] if is_implicit else _NATIVE[1] if is_little else _BIG_ENDIAN)
            if syntax.is_encapsulated:
                count = max(_count(header.label, header.tags, "NumberOfFrames"), 1)
                _check_size_of_jpeg(header, get_frame(dataset.PixelData, indices[0], number_of_frames=count))
            # Said nowhere else: what is more than the header claims is cut off.
            warnings.filterwarnings("error", message="The decoded RLE segment")
            for values, _ in get_decoder(syntax).iter_array(dataset, indices=indices, raw=True):
                yield values
    except NotImplementedError:
        text = f"{header.label} is compressed in a way that can't be read here; export it uncompressed"
        raise InputError("series.transfer_syntax", text) from None
    except InputError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise InputError(
            "file.truncated",
            f"the pixels of {header.label} can't be decoded ({kind}): the file is cut or damaged; copy or export it "
            "again",
        ) from None


def _check_size_of_jpeg(header: Header, stream: bytes) -> None:
    """Refuse JPEG and JPEG-LS that say another size than the header: decoders cut off what is more, or crash.

    Of other streams, which say it elsewhere, decoders notice it themselves.
    """
    if stream[:2] != b"\xff\xd8":
        return
    at = 2
    while stream[at : at + 1] == b"\xff" and at + 9 <= len(stream):
        marker = stream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # begins a frame
            found = tuple(int.from_bytes(stream[at + n : at + n + 2], "big") for n in (5, 7))
            claimed = tuple(_count(header.label, header.tags, keyword) for keyword in ("Rows", "Columns"))
            if found != claimed:
                raise InputError(
                    "file.bad_header",
                    f"{header.label} holds {found[0]} rows of {found[1]} compressed pixels, and its header claims "
                    f"{claimed[0]} rows of {claimed[1]}; expected both to agree; export it again",
                )
            return
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
