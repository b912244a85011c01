"""The bytes of voxels: streams, zipped or not, read once, into one array, and to their end.

Neither nibabel nor ITK notices each stream that was cut or altered, and ITK leaves memory as it finds it where a stream
is too short. So the bytes are read here, and what a header claims is checked before memory is taken for it.
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
"""Deflate turns no byte into more than this many; a header that claims more is not true."""

_MAX_REST_BYTES = 1 << 20


class Inflated(io.RawIOBase):
    """What a stream of zlib or gzip holds; gzip streams that follow one another are one.

    Raises:
        EOFError: while reading, the stream has no end.
        zlib.error: while reading, it is damaged.
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
    return zlib.decompressobj(zlib.MAX_WBITS + 32)  # zlib and gzip, told apart by their first bytes


@contextmanager
def stream_faults(path: Path) -> Iterator[None]:
    """Turn what streams raise into an `InputError` about a file."""
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
    """What a stream of bzip2 holds."""
    with bz2.BZ2File(file) as stream:
        try:
            yield stream
        except OSError as error:
            if error.errno is not None:
                raise
            text = f"{path.name} was damaged: its bzip2 check fails; copy or export it again"
            raise InputError("file.bad_checksum", text) from error


def check_room(shape: Sequence[int], stored: np.dtype, wanted: np.dtype, name: str) -> None:
    """Raise if an array does not fit the memory that reading it may take.

    It is there twice while it is handed from the process that read it to the one that asked.

    Args:
        shape: of the array.
        stored: its type in the file.
        wanted: its type once it is read.
        name: of the file, for the message.

    Raises:
        EnvironmentFault: `environment.memory`, it does not fit.
    """
    conversion = 0 if stored == wanted else stored.itemsize + wanted.itemsize
    check_fits(prod(shape) * max(2 * wanted.itemsize, conversion), f"reading {name}")


def fill(room: memoryview, stream: IO[bytes], path: Path) -> None:
    """Read bytes until all room is filled.

    Raises:
        InputError: `file.truncated`, there are too few.
    """
    done = 0
    while done < len(room):
        count = stream.readinto(room[done : done + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise truncated(path, f"{done} of {len(room)} bytes of voxels are there")
        done += count


def native(array: NDArray) -> NDArray:
    """Return an array in this machine's byte order, swapped in place, and in a type that every library knows."""
    if not array.dtype.isnative:
        array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return array


def read_to_end(stream: IO[bytes], claimed: int, path: Path) -> int:
    """Read what follows the voxels, and return how much it is: only at its end a zipped stream proves to be whole.

    Raises:
        InputError: `file.bad_header`, it goes on for more than the claimed bytes and a little.
    """
    rest = 0
    while chunk := stream.read(CHUNK_BYTES):
        rest += len(chunk)
        if rest > claimed + _MAX_REST_BYTES:
            raise InputError("file.bad_header", f"{path.name} goes on far behind the last voxel that its header names")
    return rest


def rest_notices(rest: int, path: Path) -> tuple[Notice, ...]:
    """Return a doubt about a file that holds more bytes than its header names."""
    if not rest:
        return ()
    text = f"{path.name} holds {rest} bytes more than its header names; compare the number of slices with its source"
    return (Notice("file.longer", text),)


def check_finite(array: NDArray, path: Path) -> None:
    """Raise `data.nonfinite` if any value is NaN or infinite."""
    # The extremes are NaN or infinite where any voxel is, and cost no array of their own.
    if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
        wrong = array.size - sum(int(np.count_nonzero(np.isfinite(plane))) for plane in array)
        raise InputError(
            "data.nonfinite",
            f"{path.name} has {wrong} voxels of {array.size} that are NaN or infinite; replace them by numbers first",
        )


def truncated(path: Path, found: str) -> InputError:
    return InputError("file.truncated", f"{path.name} was cut short: {found}; copy or export it again")
