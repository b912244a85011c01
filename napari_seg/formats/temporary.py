"""Temporary folders that go with their process, or, if it was killed, at the start of the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "napari-seg-"
_LOCK = "lock"


class TemporaryFolder:
    """A folder that no other user can open, and that is removed at the end of a `with` block or by `cleanup`.

    A lock beside it tells other processes that this one lives: process ids would not, where machines or containers
    share the folder.

    Attributes:
        path: of the folder.
    """

    def __init__(self) -> None:
        remove_leftovers()
        while True:
            self._outer = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
            self._lock = FileLock(self._outer / _LOCK)
            try:
                with suppress(NotImplementedError):  # a file system without locks: nobody sweeps there
                    self._lock.acquire(timeout=0)
                self.path = self._outer / "files"
                self.path.mkdir()
            except (Timeout, FileNotFoundError):  # another process took it for one of the dead before it was locked
                continue
            return

    def cleanup(self) -> None:
        self._lock.release()
        shutil.rmtree(self._outer, ignore_errors=True)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.cleanup()


@cache
def remove_leftovers() -> None:
    """Remove what killed processes of this user left, once: it holds scans."""
    try:
        found = list(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"))
    except OSError:  # there is no folder for temporary files, so nothing is left in it
        return
    for path in found:
        with suppress(OSError, Timeout, NotImplementedError):
            if path.is_symlink() or not (path / _LOCK).is_file():
                continue
            if hasattr(os, "getuid") and path.lstat().st_uid != os.getuid():
                continue
            with FileLock(path / _LOCK).acquire(timeout=0):
                shutil.rmtree(path / "files", ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)
