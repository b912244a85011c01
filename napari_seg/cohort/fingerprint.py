"""Fingerprint of a scan: a quick digest that shows whether a scan was replaced since it was segmented."""

from __future__ import annotations

import hashlib
import os

from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.scan import Scan

_PART_BYTES = 1 << 16


def fingerprint(scan: Scan | ChannelSet) -> str:
    """Return a digest of the sizes of a scan's files, and of the start of the first and the end of the last.

    It does not depend on names or places, so that moved data keeps it. "" if a file can't be read.
    """
    digest = hashlib.sha256()
    try:
        for file in scan.files:
            digest.update(f"{file.stat().st_size}\n".encode())
        for file, whence in ((scan.files[0], os.SEEK_SET), (scan.files[-1], os.SEEK_END)):
            with file.open("rb") as stream:
                if whence == os.SEEK_END:
                    stream.seek(-min(_PART_BYTES, file.stat().st_size), whence)
                digest.update(stream.read(_PART_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()


def input_bytes(scan: Scan | ChannelSet) -> int:
    """Return the size of the files of a scan; files that can't be found count nothing."""
    total = 0
    for file in scan.files:
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
