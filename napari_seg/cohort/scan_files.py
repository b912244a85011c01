"""Files of a scan: their size, and whether they are still those that were segmented."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from napari_seg.cohort.outputs import sha256_of
from napari_seg.formats.archive import shown
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.itk import with_pixel_files
from napari_seg.formats.scan import Scan

_BLOCK_BYTES = 4096
_GZIP = b"\x1f\x8b"
_DIVISORS = (8, 16, 32, 64, 128, 256, 512, 1024)
"""The size of a file divided by these numbers gives the distances of blocks from its middle.

The middle of an even number of slices is the border between two, where air is. Of 4 slices, the block at a distance of
1/8 is half a slice away from it, of 8 slices the one at 1/16, and so on; of any number up to 600, one block or more
lies in the inner 40 % of a slice.
"""
_MAX_READ = 8
"""Files of a scan of which blocks are read; of a larger DICOM series, the first and the last one are."""


def fingerprint(scan: Scan | ChannelSet) -> str:
    """Return a digest of a scan's files; "" if one is missing or can't be read.

    It covers the sizes, the times of modification, and a few blocks of some files. Sizes and times are not enough: the
    scans of a study often have one size, and files from one archive often have one time. Files that were moved, or
    copied with their times, keep their fingerprint.
    """
    digest = hashlib.sha256()
    files = with_pixel_files(scan.files)
    looked_into = files[:: -(-len(files) // _MAX_READ)]  # the outer ones of many may be air
    if scan.format == "dicom" and len(files) > _MAX_READ:
        looked_into = (files[0], files[-1])
    try:
        for file in files:
            status = file.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        for file in looked_into:
            digest.update(_blocks(file))
    except OSError:
        return ""
    return digest.hexdigest()


def _blocks(file: Path) -> bytes:
    """Return bytes that differ between scans.

    They are the beginning of a DICOM file, which has identifiers; the beginning and the middle of a compressed file;
    and further blocks of any other file.
    """
    with file.open("rb") as stream:
        blocks = stream.read(_BLOCK_BYTES)
        if blocks[128:132] == b"DICM":
            return blocks
        size = file.stat().st_size
        middle = max(0, size // 2 - _BLOCK_BYTES // 2)
        distances = [] if blocks.startswith(_GZIP) else [size // number for number in _DIVISORS]
        for distance in (0, *distances):
            stream.seek(middle + distance)
            blocks += stream.read(_BLOCK_BYTES)
    return blocks


def place_digest(scan: Scan | ChannelSet, salt: str) -> str:
    """Return a digest of where a scan lies, links not resolved; "" without a salt.

    The path may contain the name of a patient. The digest shows whether two paths are equal, and no path without
    guessing it whole.

    Args:
        scan: the scan.
        salt: text of the manifest, which makes its digests differ from those of others.
    """
    path = os.path.normcase(os.path.abspath(shown(scan.files[0])))
    return hashlib.sha256(f"{salt} {path}".encode(errors="surrogateescape")).hexdigest() if salt else ""


def is_same(scan: Scan | ChannelSet, known_fingerprint: str, known_sha256: str) -> bool:
    """Return whether a scan is the one that was segmented, as `fingerprint_if_same` decides."""
    return fingerprint_if_same(scan, known_fingerprint, known_sha256) is not None


def fingerprint_if_same(scan: Scan | ChannelSet, known_fingerprint: str, known_sha256: str) -> str | None:
    """Return the fingerprint that a scan has now; None if it is another one than the one that was segmented.

    A scan that can't be read counts as the same, and so does one whose digest is unknown.

    Args:
        scan: the scan.
        known_fingerprint: fingerprint of the scan that was segmented.
        known_sha256: digest of its files, which are read if the fingerprint differs; "" if it is unknown.
    """
    now = fingerprint(scan)
    if now == "":
        return known_fingerprint
    if now == known_fingerprint or not known_sha256:
        return now
    try:
        return now if scan_sha256(scan.files) == known_sha256 else None
    except OSError:
        return known_fingerprint


def scan_sha256(files: Iterable[Path]) -> str:
    """Return the SHA-256 of a scan: the contents of all its files, pixel files of headers included.

    Args:
        files: files of the scan, as it was found or read.

    Raises:
        OSError: one of them is missing or can't be read.
    """
    return sha256_of(with_pixel_files(files))


def is_of_headers_alone(files: Sequence[Path], known_sha256: str) -> bool:
    """Return whether a digest is that of the headers of a scan, whose pixel files earlier versions did not note.

    Args:
        files: files of the scan, as it was found or read.
        known_sha256: the digest.
    """
    if not known_sha256 or with_pixel_files(files) == tuple(files):
        return False
    with suppress(OSError):
        return sha256_of(files) == known_sha256
    return False


def input_bytes(scan: Scan | ChannelSet) -> int:
    """Return the size of the files of a scan; files that can't be found count nothing."""
    total = 0
    for file in with_pixel_files(scan.files):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
