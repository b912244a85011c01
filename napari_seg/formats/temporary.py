"""Temporary folders that are removed at the end of their process or, if it was killed, by the next process."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "napari-seg-"
_LOCK, _FILES = "lock", "files"


class TemporaryFolder:
    """Folder that no other user can open; it is removed at the end of a `with` block or by `cleanup`.

    A locked file next to it shows other processes that this one is alive. Process ids would not do so if machines or
    containers share the folder.

    Attributes:
        path: path of the folder.
    """

    def __init__(self) -> None:
        remove_leftovers()
        while True:
            self._outer = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
            self._lock = FileLock(self._outer / _LOCK)
            try:
                with suppress(NotImplementedError):  # a file system without locks: no process removes leftovers there
                    self._lock.acquire(timeout=0)
                self.path = self._outer / _FILES
                self.path.mkdir()
            except (Timeout, FileNotFoundError):  # another process removed it before it was locked
                continue
            return

    def cleanup(self) -> None:
        """Remove the folder; while a file in it can't be removed, its lock stays, by which others find it later."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        _remove_outer(self._outer)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.cleanup()


@cache
def remove_leftovers() -> None:
    """Remove the folders of killed processes of this user, once per process: they contain scans."""
    try:
        found = list(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"))
    except OSError:  # there is no folder for temporary files
        return
    for path in found:
        with suppress(OSError, Timeout, NotImplementedError):
            if path.is_symlink() or not (path / _LOCK).is_file():
                continue
            if hasattr(os, "getuid") and path.lstat().st_uid != os.getuid():
                continue
            with FileLock(path / _LOCK).acquire(timeout=0):
                shutil.rmtree(path / _FILES, ignore_errors=True)
            _remove_outer(path)


def _remove_outer(outer: Path) -> None:
    """Remove a folder whose files were removed; keep its lock while some are left, by which others find it later."""
    if not (outer / _FILES).exists():
        shutil.rmtree(outer, ignore_errors=True)
        return
    with suppress(OSError):  # Windows removes no file that is open, and has removed the lock
        (outer / _LOCK).touch()
