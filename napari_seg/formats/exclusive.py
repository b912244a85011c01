"""Keep other processes from the same work by a file that only one process can lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from napari_seg.errors import NapariSegError


@contextmanager
def exclusive(path: Path, in_use: NapariSegError) -> Iterator[None]:
    """Lock a file, and remove it at the end; on a file system without locks nothing is locked.

    Args:
        path: the file; its folder must exist.
        in_use: error to raise if another process has locked it.

    Raises:
        NapariSegError: `in_use`.
        OSError: the file can't be created.
    """
    lock = FileLock(path)
    try:
        with suppress(NotImplementedError):
            lock.acquire(timeout=0)
    except Timeout as error:
        raise in_use from error
    try:
        yield
    finally:
        with suppress(OSError):  # while it is locked: FileLock takes no lock on a file without a name for one
            path.unlink()
        lock.release()  # on Windows this removes it
