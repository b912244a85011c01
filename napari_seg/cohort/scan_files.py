"""Files of a scan: their size, and whether they are still those that were segmented."""

from __future__ import annotations

import hashlib

from napari_seg.cohort.outputs import sha256_of
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.scan import Scan


def fingerprint(scan: Scan | ChannelSet) -> str:
    """Return a digest of the sizes and the times of modification of a scan's files; "" if a file is missing.

    No file is read. Files that were moved, or copied with their times, keep their fingerprint.
    """
    digest = hashlib.sha256()
    try:
        for file in scan.files:
            status = file.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    except OSError:
        return ""
    return digest.hexdigest()


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
