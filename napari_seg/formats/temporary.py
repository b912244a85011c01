"""Temporary folders that go with their process, or, if it was killed, at the start of the next one."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_PREFIX = "napari-seg-"
_SECONDS_OF_CLOCK = 2.0


def temporary_folder() -> tempfile.TemporaryDirectory:
    """Make a folder that no other user can open, named after this process.

    Folders of processes that are no more are removed first: they hold scans.
    """
    _sweep()
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-{_start_of(os.getpid()):.0f}-")


@cache
def _sweep() -> None:
    """Remove what killed processes of this user left, once."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*-*"):
        named = re.fullmatch(rf"{_PREFIX}(\d+)-(\d+)-\w+", path.name)
        if named is None or abs(_start_of(int(named[1])) - int(named[2])) <= _SECONDS_OF_CLOCK:
            continue
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid()):
                shutil.rmtree(path, ignore_errors=True)


def _start_of(process_id: int) -> float:
    """The second in which a process started; 0 if there is none."""
    import psutil

    try:
        return psutil.Process(process_id).create_time()
    except (psutil.Error, OverflowError, ValueError):
        return 0.0
