"""Files of a scan: their size, and whether they are still those that were segmented."""

from __future__ import annotations

import hashlib
from pathlib import Path

from napari_seg.cohort.outputs import sha256_of
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.scan import Scan

_BLOCK_BYTES = 4096
_MAX_READ = 8
"""Files of a scan up to which all are looked into; of more, the first and the last one are."""


def fingerprint(scan: Scan | ChannelSet) -> str:
    """Return a digest of a scan's files; "" if one is missing or can't be read.

    It covers the sizes, the times of modification, and one block of some files. Sizes and times are not enough: the
    scans of a study often have one size, and files from one archive often have one time. Files that were moved, or
    copied with their times, keep their fingerprint.
    """
    digest = hashlib.sha256()
    files = scan.files
    looked_into = files if len(files) <= _MAX_READ else (files[0], files[-1])
    try:
        for file in files:
            status = file.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        for file in looked_into:
            digest.update(_block(file))
    except OSError:
        return ""
    return digest.hexdigest()


def _block(file: Path) -> bytes:
    """Return a block that differs between scans: the identifiers of a DICOM file, or the middle of another file."""
    with file.open("rb") as stream:
        block = stream.read(_BLOCK_BYTES)
        if block[128:132] != b"DICM":
            stream.seek(max(0, file.stat().st_size // 2 - _BLOCK_BYTES // 2))
            block = stream.read(_BLOCK_BYTES)
    return block


def is_same(scan: Scan | ChannelSet, known_fingerprint: str, known_sha256: str) -> bool:
    """Return whether a scan is the one that was segmented; one that can't be read counts as the same.

    Args:
        scan: the scan.
        known_fingerprint: fingerprint of the scan that was segmented.
        known_sha256: digest of its files, which are read if the fingerprint differs.
    """
    now = fingerprint(scan)
    if now in (known_fingerprint, ""):
        return True
    try:
        return sha256_of(scan.files) == known_sha256
    except OSError:
        return True


def input_bytes(scan: Scan | ChannelSet) -> int:
    """Return the size of the files of a scan; files that can't be found count nothing."""
    total = 0
    for file in scan.files:
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
