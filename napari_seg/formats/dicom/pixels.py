"""Read the pixels of DICOM frames, uncompressed ones directly, compressed ones by pydicom's decoders.

A file whose pixels disagree with its header is refused: pixels that are missing, or many more than stated.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError
from napari_seg.formats.dicom.frames import Frame
from napari_seg.formats.dicom.headers import BIG_ENDIAN, EXPLICIT, IMPLICIT, Header, quiet_pydicom, transfer_syntax_of
from napari_seg.formats.voxels import check_memory

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

MAX_EXCESS = 0.25
"""Maximum excess of the pixels in a file over those that its header states, as a fraction: some files are padded."""

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


def check_whole(header: Header) -> None:
    """Refuse a file with fewer, or many more, uncompressed pixels than its header states.

    Raises:
        InputError: `file.truncated`, `file.bad_header`.
    """
    if (expected := stated_bytes(header)) is None:
        return
    label, found = header.label, header.pixel_bytes
    if header.remaining_bytes < expected:
        raise InputError(
            "file.truncated",
            f"{label} was cut short: {header.remaining_bytes} of {expected} bytes of pixels are present; copy or "
            "export it again",
        )
    if found is not None and not expected <= found < expected * (1 + MAX_EXCESS):
        raise InputError(
            "file.bad_header",
            f"{label} holds {found} bytes of pixels, and its header claims {header.tags.get('Rows')} rows of "
            f"{header.tags.get('Columns')} pixels, in all {expected} bytes; expected both to agree; export it again",
        )


def stated_bytes(header: Header) -> int | None:
    """Return the number of bytes of pixels that a header states; None for compressed pixels."""
    if header.transfer_syntax not in ("", IMPLICIT, EXPLICIT, BIG_ENDIAN):
        return None
    sizes = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames")
    return (prod(_count(header, keyword) for keyword in sizes) + 7) // 8


def _count(header: Header, keyword: str) -> int:
    """Return a whole number of a header; 1 if it is missing."""
    value = header.tags.get(keyword)
    try:
        return 1 if value is None else int(value)
    except (TypeError, ValueError):
        raise InputError("file.bad_header", f"{header.label} has a {keyword} that is no number") from None


def read_pixels(frames: Sequence[Frame], name: str) -> NDArray:
    """Return (K, J, I) the rescaled values of frames, in the smallest type that holds them.

    Integers stay integers if all slopes are 1 and the values fit; otherwise they become float32.

    Args:
        frames: frames of one size, in the order of the slices.
        name: name of the series, for messages.

    Raises:
        InputError: `file.*`, the pixels can't be read, or disagree with the header; `series.transfer_syntax`;
            `data.nonfinite`.
        EnvironmentFault: `environment.memory`.
    """
    stack: NDArray[Any] | None = None  # (K, J, I), so that each slice is written in one go
    for k, values in _decoded(frames):
        frame = frames[k]
        if values.shape != (frame.rows, frame.columns):
            raise InputError(
                "file.bad_header",
                f"{frame.label} claims {frame.rows} rows of {frame.columns} and holds pixels of shape {values.shape}",
            )
        if stack is None:  # only now: a header that claims gigabytes fails at its first frame
            dtype = _first_type(values.dtype, frames)
            check_memory((len(frames), *values.shape), dtype, dtype, name)
            stack = np.empty((len(frames), *values.shape), dtype)
        if stack.dtype.kind in "iu" and not _holds(stack.dtype, values, int(frame.intercept)):
            stack = stack.astype(np.float32)
        if stack.dtype.kind == "f":
            with np.errstate(over="ignore"):  # infinite values are refused below
                stack[k] = values * np.float64(frame.slope) + frame.intercept
            if not np.isfinite([stack[k].min(), stack[k].max()]).all():
                raise InputError("data.nonfinite", f"{frame.label} holds NaN or infinite values; expected numbers")
        else:
            stack[k] = values
            if frame.intercept:  # an overflow on the way cancels out, since the final value fits
                stack[k] += np.array(int(frame.intercept)).astype(stack.dtype)
    assert stack is not None
    return stack


def _first_type(stored: np.dtype, frames: Sequence[Frame]) -> np.dtype:
    """Return the type to begin with; only the values themselves show whether all of them fit."""
    if stored.kind == "f" or any(frame.slope != 1 or frame.intercept % 1 for frame in frames):
        return np.dtype(np.float32)
    if all(frame.intercept == 0 for frame in frames):
        return stored.newbyteorder("=")
    return np.dtype(np.int16 if stored.itemsize <= 2 else np.int32)


def _holds(dtype: np.dtype, values: NDArray, intercept: int) -> bool:
    """Return whether a type holds all values with an intercept added."""
    limits = np.iinfo(dtype)
    return limits.min <= int(values.min()) + intercept and int(values.max()) + intercept <= limits.max


def _decoded(frames: Sequence[Frame]) -> Iterator[tuple[int, NDArray]]:
    """Yield the number k and the stored values (J, I) of each frame, file by file.

    Frames that do not show by themselves where values lie in their words come last, see `_values_in`.
    """
    by_file: dict[int, list[int]] = {}
    for k, frame in enumerate(frames):
        by_file.setdefault(id(frame.header), []).append(k)
    ends: set[bool] = set()
    undecided: list[list[int]] = []
    for members in by_file.values():
        later = []
        for in_frame, values in _stored(frames, members, ends):
            if values is None:
                later += in_frame
            else:
                yield from ((k, _tile(values, frames[k])) for k in in_frame)
        if later:
            undecided.append(later)
    if undecided and not ends:
        ends.add(True)  # as their headers state
    for members in undecided:
        for in_frame, values in _stored(frames, members, ends):
            assert values is not None
            yield from ((k, _tile(values, frames[k])) for k in in_frame)


def _stored(frames: Sequence[Frame], members: list[int], ends: set[bool]) -> Iterator[tuple[list[int], NDArray | None]]:
    """Yield the values (J, I) of each stored frame of one file, with the numbers of the frames that lie in it.

    Args:
        frames: all frames.
        members: numbers of those in this file.
        ends: see `_values_in`.
    """
    header = frames[members[0]].header
    slices: dict[int, list[int]] = {}
    for k in members:  # a mosaic holds several slices in one stored frame
        slices.setdefault(frames[k].index, []).append(k)
    indices = list(slices)
    plain = _read_plain(header, indices, ends)
    yield from zip(slices.values(), _decode(header, indices, ends) if plain is None else plain, strict=True)


def _tile(values: NDArray, frame: Frame) -> NDArray:
    """Return the part of a stored frame that is the slice."""
    if frame.tile is None:
        return values
    row, column = frame.tile
    return values[row : row + frame.rows, column : column + frame.columns]


def _read_plain(header: Header, indices: list[int], ends: set[bool]) -> list[NDArray | None] | None:
    """Return the stored values (J, I) of frames of whole bytes in little endian order; None for any other file.

    The header describes them completely: the file need not be parsed again. For `ends`, see `_values_in`.
    """
    tags = header.tags
    allocated, stored = (int(tags.get(keyword) or 0) for keyword in ("BitsAllocated", "BitsStored"))
    if header.transfer_syntax not in (IMPLICIT, EXPLICIT) or allocated not in (8, 16) or not 0 < stored <= allocated:
        return None
    if not header.pixel_bytes:
        return None
    shape = (int(tags["Rows"]), int(tags["Columns"]))
    signed = bool(tags.get("PixelRepresentation"))
    dtype = np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")
    with header.path.open("rb") as file:
        first = header.pixel_offset
        frames: list[NDArray | None] = []
        for index in indices:
            file.seek(first + index * prod(shape) * dtype.itemsize)
            values = np.fromfile(file, dtype, prod(shape))
            if values.size < prod(shape):
                return None
            frames.append(_values_in(values.reshape(shape), header, ends))
    return frames


def _values_in(words: NDArray, header: Header, ends: set[bool]) -> NDArray | None:
    """Return the values in the words of a frame; the other bits of a word are not part of its value.

    Values lie in the lowest bits today (PS3.5 8.1.1), in older files also in those that end with `HighBit`. Programs
    that change the number of bits leave `HighBit` as it was, so it counts only where the words agree with it. Words
    that agree with both, as of a padded frame of one value, follow the other frames; None if these are not known yet.

    Args:
        words: (...) stored words.
        header: header of the file.
        ends: whether the values of frames before lie in upper bits; frames of one series do not differ.

    Raises:
        InputError: `file.bad_header`, the values lie neither in the lowest bits nor in those that the header states.
    """
    allocated, stored = words.dtype.itemsize * 8, _count(header, "BitsStored")
    if stored >= allocated:
        return words
    unused, others = _high_bit(header) + 1 - stored, allocated - stored
    lowest = (words << others) >> others
    if unused <= 0:
        return lowest
    is_upper = unused <= others and not (words & ((1 << unused) - 1)).any()
    is_lowest = bool((lowest == words).all()) or not (words.view(f"u{words.dtype.itemsize}") >> stored).any()
    if is_upper and is_lowest and words.any():
        if not ends:
            return None
        is_upper = next(iter(ends))
    elif words.any():
        ends.add(is_upper)
    if len(ends) > 1 or not (is_upper or is_lowest):
        raise _other_bits(header)
    return (words << (others - unused)) >> others if is_upper else lowest


def _high_bit(header: Header) -> int:
    """Return the number of the highest bit of a value, as the header states it."""
    stated = header.tags.get("HighBit")
    return _count(header, "BitsStored") - 1 if stated is None else _count(header, "HighBit")


def _other_bits(header: Header) -> InputError:
    """Return the error for values that do not lie in the bits that the header states."""
    allocated, stored = (header.tags.get(keyword) for keyword in ("BitsAllocated", "BitsStored"))
    text = f"{header.label} claims values of {stored} of {allocated} bits with the highest bit {_high_bit(header)}"
    return InputError("file.bad_header", f"{text}, and its pixels can't be read so; export it again")


def _decode(header: Header, indices: list[int], ends: set[bool]) -> Iterator[NDArray | None]:
    """Yield the stored values (J, I) of frames of a file that pydicom decodes; for `ends`, see `_values_in`."""
    import pydicom
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(header.path, specific_tags=list(_PIXEL_KEYWORDS), force=True)
            syntax = transfer_syntax_of(dataset)
            decoder = decoder_of(syntax, header.label)
            if syntax.is_encapsulated:
                count = max(_count(header, "NumberOfFrames"), 1)
                _check_size_of_jpeg(header, get_frame(dataset.PixelData, indices[0], number_of_frames=count))
            is_upper = _high_bit(header) >= _count(header, "BitsStored")
            # pydicom takes the lowest bits; a compressed stream other than RLE states itself what a value is
            has_words = is_upper and (not syntax.is_encapsulated or syntax == RLELossless)
            if has_words:
                dataset.BitsStored = dataset.BitsAllocated
            # pydicom only warns here that it cuts off rows beyond those that the header claims
            warnings.filterwarnings("error", message="The decoded RLE segment")
            for values, _ in decoder.iter_array(dataset, indices=indices, raw=True):
                yield _values_in(values, header, ends) if has_words else values
    except InputError:
        raise
    except NotImplementedError:
        raise _unreadable(header.label) from None
    except Exception as error:
        kind = type(error).__name__
        raise InputError(
            "file.truncated",
            f"the pixels of {header.label} can't be decoded ({kind}): the file is cut or damaged; copy or export it "
            "again",
        ) from None


def decoder_of(syntax: UID, name: str) -> Decoder:
    """Return the decoder of a transfer syntax.

    Args:
        syntax: its UID, which need not be a known one.
        name: name of the file, for the message.

    Raises:
        InputError: `series.transfer_syntax`, pydicom has none, or lacks the package that decodes.
    """
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise _unreadable(name) from None
    if not decoder.is_available:
        raise _unreadable(name)
    return decoder


def _unreadable(name: str) -> InputError:
    text = f"{name} is compressed in a way that can't be read here; export it uncompressed"
    return InputError("series.transfer_syntax", text)


def _check_size_of_jpeg(header: Header, stream: bytes) -> None:
    """Refuse JPEG and JPEG-LS of another size than the header's: decoders cut off the excess, or crash.

    Other streams state their size elsewhere, and their decoders notice a difference.
    """
    if stream[:2] != b"\xff\xd8":
        return
    at = 2
    while stream[at : at + 1] == b"\xff" and at + 9 <= len(stream):
        marker = stream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # start of frame
            found = tuple(int.from_bytes(stream[at + n : at + n + 2], "big") for n in (5, 7))
            claimed = tuple(_count(header, keyword) for keyword in ("Rows", "Columns"))
            if found != claimed:
                raise InputError(
                    "file.bad_header",
                    f"{header.label} holds {found[0]} rows of {found[1]} compressed pixels, and its header claims "
                    f"{claimed[0]} rows of {claimed[1]}; expected both to agree; export it again",
                )
            return
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
