"""Marks of files and scans, which recognise them wherever they lie, without their names.

A mark is a digest of the size, the first and the last 64 KiB of a file, keyed with a salt: marks with different salts
can't be compared, and none leads back to a name. It is quick to make. Uncompressed scans of one study can have equal
marks: equal headers, and air at both ends. Blocks between them make this unlikely.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from napari_seg.formats.itk import with_pixel_files
from napari_seg.volume import Source

_END_BYTES = 1 << 16

_BLOCK_BYTES = 1 << 12

_BLOCKS = 31

_DIGEST_BYTES = 16

MAX_FILES_OF_MARK = 2
"""Number of files in the mark of a scan: a header and its pixels, or the first slices of a series."""


def keyed_digest(salt: str, start: bytes) -> hashlib.blake2b:
    """Return a digest with a key that begins with some bytes."""
    digest = hashlib.blake2b(key=bytes.fromhex(salt), digest_size=_DIGEST_BYTES)
    digest.update(start)
    return digest


def digest_of_ends(file: Path, salt: str, blocks: int = 0) -> tuple[int, str]:
    """Return the size of a file, and the digest of its size and both ends.

    Args:
        file: file to read.
        salt: key of the digest.
        blocks: number of blocks between the ends, at equal distances, that the digest depends on too.

    Raises:
        OSError: the file can't be read.
    """
    size = file.stat().st_size
    digest = keyed_digest(salt, str(size).encode())
    with file.open("rb") as stream:
        digest.update(stream.read(_END_BYTES))
        if size > _END_BYTES:
            stream.seek(max(_END_BYTES, size - _END_BYTES))
            digest.update(stream.read(_END_BYTES))
        for number in range(1, blocks + 1):
            stream.seek(size * number // (blocks + 1))
            digest.update(stream.read(_BLOCK_BYTES))
    return size, digest.hexdigest()


@dataclass(frozen=True)
class ScanMark:
    """Mark of a scan that labels belong to, while its files are not known.

    Attributes:
        salt: key of the digests.
        digests: digests of the first files of the scan; a mark without any fits no scan.
        blocks: number of blocks, as in `digest_of_ends`.
        volume: number of the volume in these files, as in `Source`.
    """

    salt: str
    digests: tuple[str, ...]
    blocks: int = 0
    volume: int | None = None

    @classmethod
    def of(cls, source: Source) -> ScanMark:
        """Return the mark of a scan, with a new salt; it fits no scan if the files can't be read."""
        salt = secrets.token_hex(16)
        return cls(salt, _digests(source, salt, _BLOCKS), _BLOCKS, source.volume)

    def fits(self, source: Source) -> bool:
        """Return whether a scan has this mark."""
        if not self.digests or source.volume != self.volume:
            return False
        return _digests(source, self.salt, self.blocks)[: len(self.digests)] == self.digests


def _digests(source: Source, salt: str, blocks: int) -> tuple[str, ...]:
    """Return the digests of the first files of a scan; () if they can't be read."""
    try:
        return tuple(
            digest_of_ends(file, salt, blocks)[1] for file in with_pixel_files(source.files)[:MAX_FILES_OF_MARK]
        )
    except OSError:
        return ()
