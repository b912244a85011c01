"""Files that are whole or not there, and that one process has."""

from __future__ import annotations

import errno
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger("segnets")

PART = ".part"

# what file systems without locks say, NFS and Lustre as they are mounted in many clusters
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def replacing(path: str | Path, previous: str | Path | None = None) -> Iterator[Path]:
    """A path beside `path` to write to; what stands there at the end of the block takes the place of `path`.

    The folder is made if it is missing.

    What stood there before becomes `previous`, if that is given. Whoever opens `path` at any time, after a kill or a
    loss of power too, finds the old file or the new one, never a part of one (or no file in the instant between the
    two renamings, and the old one as `previous`). The name is this process's own, so that several may write the same
    file; a kill may leave it behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_whole(path: str | Path, map_location: str | None = None) -> Any:
    """What `torch.save` wrote, loaded without running code, from a file without any damage.

    torch does not compare the checksums that it writes: zeroed bytes would be loaded as weights.

    Raises:
        Exception: of nearly any kind, at a file that is absent, cut short or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} in it is damaged")
    return torch.load(path, map_location=map_location, weights_only=True)


def lock(path: str | Path) -> IO[str] | None:
    """A lock on `path` that no other process has until this one closes it or ends, however it ends; None if one has it.

    A process has it as a whole, and its children do not inherit it (POSIX record lock). On Windows nothing is locked,
    nor on a file system without locks, which is logged.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")  # noqa: SIM115 - as long as the lock is held
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        logger.warning("%s can't be locked (%s): see that no other process writes there", path, error.strerror)
    return file
