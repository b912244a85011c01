"""Read the licence in a zip on the web before the zip is downloaded: its table of contents, then that member alone."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from napari_seg.bundles.spec import METADATA
from napari_seg.bundles.store.download import fetch_range
from napari_seg.bundles.store.licence import MAX_LICENCE_BYTES, Licence, is_licence_file, licence_of
from napari_seg.bundles.store.limits import MAX_FILES

BLOCK_BYTES = 2**16
MAX_BLOCKS = 64
"""Limit of the requests for parts of one zip."""

_DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, struct.error, ValueError, EOFError)


def licence_in_zip(url: str, model: str) -> Licence | None:
    """Return the licence in a zip; None if it has none, or if the server sends whole files only.

    Raises:
        DownloadError: see `download.download`.
    """
    try:
        with zipfile.ZipFile(_Blocks(url)) as archive:
            names = archive.namelist()[:MAX_FILES]
            metadata = min(
                (name for name in names if f"/{name}".endswith(f"/{METADATA.as_posix()}")), key=len, default=""
            )
            folder = metadata.removesuffix(METADATA.as_posix())
            files = {}
            for name in names:
                if name.startswith(folder) and is_licence_file(name.removeprefix(folder)):
                    with archive.open(name) as file:
                        files[name.removeprefix(folder)] = file.read(MAX_LICENCE_BYTES)
    except (_NoBlocks, *_DAMAGE):
        return None  # a damaged zip is reported once it is unpacked
    return licence_of(model, files) if files else None


class _NoBlocks(Exception):
    """The server sends no parts, or too many are needed."""


class _Blocks(io.RawIOBase):
    """File on the web, of which only the blocks are requested that are read; the last one first."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._position = 0
        last = fetch_range(url, None, BLOCK_BYTES)
        if last is None:
            raise _NoBlocks
        content, self._size = last
        self._tail = content
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if self._position < 0:
            raise ValueError("before the beginning")
        return self._position

    def read(self, count: int = -1) -> bytes:
        end = self._size if count < 0 else min(self._size, self._position + count)
        content = b""
        while self._position < end:
            part = self._at(self._position)[: end - self._position]
            content += part
            self._position += len(part)
        return content

    def _at(self, position: int) -> bytes:
        """Return what is known from a position on, at least a byte."""
        if position >= self._size - len(self._tail):
            return self._tail[position - self._size + len(self._tail) :]
        number, offset = divmod(position, BLOCK_BYTES)
        if number not in self._blocks:
            if len(self._blocks) >= MAX_BLOCKS:
                raise _NoBlocks
            found = fetch_range(self._url, number * BLOCK_BYTES, BLOCK_BYTES)
            if found is None or len(found[0]) <= offset:
                raise _NoBlocks
            self._blocks[number] = found[0]
        return self._blocks[number][offset:]
