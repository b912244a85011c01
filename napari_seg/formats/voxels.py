"""Read voxels from streams, compressed or not, once, into one array, and to the end of the stream.

Neither nibabel nor ITK notices every stream that was truncated or altered, and ITK returns uninitialised memory for a
stream that is too short. The bytes are therefore read here, and the size in a header is checked before memory is
allocated.
"""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice
from napari_seg.memory import check_fits

CHUNK_BYTES = 1 << 22

DEFLATE_LIMIT = 1032
"""Maximum compression ratio of deflate; a header that implies a higher one is wrong."""

_MAX_REST_BYTES = 1 << 20


class Inflated(io.RawIOBase):
    """Uncompressed content of a zlib or gzip stream; consecutive gzip streams count as one.

    Raises:
        EOFError: while reading, if the stream is truncated.
        zlib.error: while reading, if the stream is damaged.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._waiting = b""
        self._decoder = _decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        while len(room):
            if self._decoder.eof:
                rest = self._decoder.unused_data
                if rest[:2] != b"\x1f\x8b":
                    return 0
                self._waiting, self._decoder = rest, _decoder()
            zipped = self._waiting or self._file.read(CHUNK_BYTES)
            if not zipped:
                raise EOFError
            found = self._decoder.decompress(zipped, len(room))
            self._waiting = self._decoder.unconsumed_tail
            if found:
                room[: len(found)] = found
                return len(found)
        return 0


def _decoder() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS + 32)  # detects zlib and gzip by their first bytes


@contextmanager
def stream_faults(path: Path) -> Iterator[None]:
    """Convert errors of streams into an `InputError` about a file."""
    try:
        yield
    except EOFError as error:
        raise truncated(path, "its compressed stream has no end") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            "file.bad_checksum", f"{path.name} was damaged: its gzip check fails ({error}); copy or export it again"
        ) from error
    except OSError as error:
        raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror or error}") from error


@contextmanager
def bunzipped(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """Yield the uncompressed content of a bzip2 stream."""
    with bz2.BZ2File(file) as stream:
        try:
            yield stream
        except OSError as error:
            if error.errno is not None:
                raise
            text = f"{path.name} was damaged: its bzip2 check fails; copy or export it again"
            raise InputError("file.bad_checksum", text) from error


def check_memory(shape: Sequence[int], stored: np.dtype, converted: np.dtype, name: str) -> None:
    """Raise if an array does not fit in the memory that reading it may use.

    It exists twice while it is passed from the worker process to this one.

    Args:
        shape: shape of the array.
        stored: type in the file.
        converted: type after reading.
        name: name of the file in the message.

    Raises:
        EnvironmentFault: `environment.memory`, it does not fit.
    """
    conversion = 0 if stored == converted else stored.itemsize + converted.itemsize
    check_fits(prod(shape) * max(2 * converted.itemsize, conversion), f"reading {name}")


def fill(buffer: memoryview, stream: IO[bytes], path: Path) -> None:
    """Read bytes until a buffer is full.

    Raises:
        InputError: `file.truncated`, the stream has fewer bytes.
    """
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done : done + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise truncated(path, f"{done} of {len(buffer)} bytes of voxels are present")
        done += count


def to_native_byte_order(array: NDArray) -> NDArray:
    """Return an array in native byte order, swapped in place; long double becomes float64."""
    if not array.dtype.isnative:
        array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return array


def read_to_end(stream: IO[bytes], claimed: int, path: Path) -> int:
    """Read to the end of a stream, where its checksum is, and return the number of bytes after the voxels.

    Raises:
        InputError: `file.bad_header`, far more bytes follow than the header implies.
    """
    rest = 0
    while chunk := stream.read(CHUNK_BYTES):
        rest += len(chunk)
        if rest > claimed + _MAX_REST_BYTES:
            raise InputError("file.bad_header", f"{path.name} continues far beyond the last voxel of its header")
    return rest


def rest_notices(rest: int, path: Path) -> tuple[Notice, ...]:
    """Return a notice about a file with more bytes than its header implies."""
    if not rest:
        return ()
    text = f"{path.name} has {rest} bytes more than its header implies; compare the number of slices with its source"
    return (Notice("file.longer", text),)


def check_finite(array: NDArray, path: Path) -> None:
    """Raise `data.nonfinite` if any value is NaN or infinite."""
    # the extremes are NaN or infinite if any voxel is, and need no temporary array
    if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
        count = array.size - sum(int(np.count_nonzero(np.isfinite(plane))) for plane in array)
        raise InputError(
            "data.nonfinite",
            f"{path.name} has {count} voxels of {array.size} that are NaN or infinite; replace them by numbers first",
        )


def truncated(path: Path, found: str) -> InputError:
    """Return the error of a truncated file."""
    return InputError("file.truncated", f"{path.name} is truncated: {found}; copy or export it again")
